"""Write the figures of docs/performance.md from bench/results. ``tests/test_performance_page.py`` holds them to it."""

import json
import sys
from pathlib import Path
from typing import Any

from sekali.bench import targets
from sekali.bench.everything import ORDER

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "results"
BEGIN = "<!-- Made by `make performance` from bench/results; do not edit up to the end mark. -->"
END = "<!-- End of what is made. -->"


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Return the documents of the benchmarks that were run, in the order of running."""
    paths = [folder / f"{name}.json" for name in ORDER]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def render(documents: list[dict[str, Any]], plots: str) -> str:
    """Return the figures as Markdown. ``plots`` is the folder of the plots as seen from the page."""
    if not documents:
        return "\nNothing has been measured yet: `sekali bench all`, then `make performance`.\n"
    lines = ["", "## Figures to reach", ""]
    reached = [target for document in documents for target in targets.from_document(document)]
    lines += _table(targets.COLUMNS, targets.rows(reached))
    lines += ["", "## Machine", "", *_machine(documents), "", "## Each benchmark"]
    for document in documents:
        name = document["bench"]
        lines += ["", f"### {name}", "", _how(document)]
        for table in document["tables"]:
            lines += ["", f"{table['title'][:1].upper()}{table['title'][1:]}:", ""]
            lines += _table(table["columns"], table["rows"])
            lines += ["", *(f"* {note}" for note in table["notes"])] if table["notes"] else []
        lines += ["", f"![{name}]({plots}/{name}.svg)"]
    return "\n".join(lines) + "\n"


def _machine(documents: list[dict[str, Any]]) -> list[str]:
    lines = []
    for facts in {_facts(document["machine"]): None for document in documents}:
        lines += [f"* {fact}" for fact in facts]
    p50 = [document["machine"]["fsync_ms"]["p50"] for document in documents]
    return [
        *lines,
        f"* appending 4 KiB and syncing them: median {min(p50):.2f} to {max(p50):.2f} ms before each benchmark",
    ]


def _facts(machine: dict[str, Any]) -> tuple[str, ...]:
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB"
    return (
        f"{machine['cores']} cores, {machine['cpu']}, {memory}, Linux {machine['kernel']}",
        f"Python {machine['python']}, SQLite {machine['sqlite']}",
    )


def _how(document: dict[str, Any]) -> str:
    machine, options = document["machine"], document["options"]
    server = options["server"]
    if isinstance(server, dict):
        server = ", ".join(f"{name}={value}" for name, value in server.items())
    text = f"{machine['at']}, commit {machine['commit']}; {options['seconds']:g} s a run, {options['rounds']} rounds, "
    text += f"server settings: {server}."
    if pauses_s := document.get("pauses_s"):
        text += f" The machine stood still {len(pauses_s)} times, {sum(pauses_s):.0f} s in all, which do not count."
    return text


def _table(columns: Any, rows: Any) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def put_in(page: str, figures: str) -> str:
    """Return a page with these figures in the place of those it has."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE} has lost its marks: {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{figures}\n{END}{tail}"


def made() -> str:
    """Return the page as it should be."""
    return put_in(PAGE.read_text(), render(read_results(RESULTS), "../bench/results"))


if __name__ == "__main__":
    PAGE.write_text(made())
    sys.stderr.write(f"wrote {PAGE}\n")
