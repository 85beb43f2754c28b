"""Write the pages of docs/reference that come from the code. ``tests/test_docs.py`` holds them to it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from limits import LIMITS, Limit
from sekali.cli import app
from sekali.metrics import METRICS
from sekali.settings import PublisherSettings, ServerSettings, environment_names

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
NOTE = "<!-- Made by `make reference` from the code; edit it there. -->\n"


def settings_page() -> str:
    """Every setting, with its names, default and meaning."""
    lines = [
        "# Settings",
        "",
        NOTE,
        "A setting comes from a flag of the command, else from the environment, else it has its default. Where two",
        "environment variables are named, the second is an older name that is accepted too; the first wins.",
        "Combinations that cannot work are refused at start, with a sentence that says which two settings to change.",
    ]
    for title, settings in (("The server: `sekali serve`", ServerSettings), ("The load publisher", PublisherSettings)):
        lines += ["", f"## {title}", "", "| environment | default | meaning |", "|---|---|---|"]
        for name, field in settings.model_fields.items():
            names = ", ".join(f"`{variable}`" for variable in environment_names(settings, name))
            default = "none" if field.default in (None, "") else f"`{field.default}`"
            lines.append(f"| {names} | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """Every metric."""
    lines = [
        "# Metrics",
        "",
        NOTE,
        "`GET /metrics` gives these in the Prometheus text format. Counters start at 0 with the process. While the",
        "store cannot be read, the figures of the log (`sekali_log_*`) are absent and the others are there.",
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels) or '-'} | {metric.help} |" for metric in METRICS
    ]
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    """Every command with its options."""
    group: Any = typer.main.get_command(app)
    lines = [
        "# Command line",
        "",
        NOTE,
        "`sekali COMMAND --help` says the same. Exit codes are for scripts:",
        "",
        "| code | meaning |",
        "|---|---|",
        "| 0 | all went well; duplicates are fine |",
        "| 1 | something was invalid, in conflict or refused (no key, no scope), or an audit found a fault |",
        "| 2 | the command was not understood |",
        "| 3 | no server could be reached within the time given, or the server or store could not be opened |",
        "| 4 | `sekali serve` gave up: no commit worked any more, or there was no memory left; its log says which |",
        "| 130 | ended by Ctrl-C |",
    ]
    for name, command in _commands(group):
        arguments = [part.name.upper() for part in command.params if part.param_type_name == "argument"]
        lines += ["", f"## `sekali {name}`", "", (command.help or "").strip(), ""]
        lines.append(" ".join(["    sekali", name, "[OPTIONS]", *arguments]))
        if command.epilog:
            lines += ["", command.epilog.strip()]
        lines += ["", "| option | meaning |", "|---|---|"]
        for parameter in command.params:
            is_option = parameter.param_type_name == "option"
            names = [*parameter.opts, *parameter.secondary_opts] if is_option else [parameter.name.upper()]
            lines.append(f"| {', '.join(f'`{flag}`' for flag in names)} | {_cell(parameter.help)} |")
    return "\n".join(lines) + "\n"


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give every command with its whole name, those of groups too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def limits_page() -> str:
    """Every limit, and what comes of more."""
    lines = [
        "# Limits",
        "",
        NOTE,
        "Every limit is enforced while reading: what is beyond it is not kept first. `invalid` is the verdict on that",
        "item alone, and its neighbours are stored; a request refused with 4xx, or with 503 for one of these limits,",
        "stores nothing. Texts are measured in bytes of UTF-8.",
    ]
    for title, limits in LIMITS.items():
        lines += ["", f"## {title}", "", "| at most | of | setting | beyond |", "|---|---|---|---|"]
        for limit in limits:
            setting = "" if limit.setting is None else f"`{environment_names(ServerSettings, limit.setting)[0]}`"
            lines.append(f"| {_quantity(limit)} | {limit.what} | {setting} | {limit.beyond} |")
    return "\n".join(lines) + "\n"


def _quantity(limit: Limit) -> str:
    if limit.unit == "bytes":
        for size, unit in ((1024 * 1024, "MiB"), (1024, "KiB")):
            if limit.value >= size and limit.value % size == 0:
                return f"{limit.value / size:,g} {unit}"
    return f"{limit.value:,} {limit.unit}".replace(".0 ", " ").strip()


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


PAGES = {"settings.md": settings_page, "metrics.md": metrics_page, "cli.md": cli_page, "limits.md": limits_page}


def main() -> int:
    """Write the pages that differ and name them."""
    for name, page in PAGES.items():
        path = FOLDER / name
        if not path.exists() or path.read_text() != page():
            path.write_text(page())
            print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
