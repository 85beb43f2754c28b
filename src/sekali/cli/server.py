"""The commands of the machine that holds the store: ``serve``, ``verify``, ``backup`` and ``restore``."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sekali.cli import output
from sekali.cli.options import Json, load_settings, setting_option
from sekali.errors import SekaliError
from sekali.printable import escape_controls
from sekali.settings import ServerSettings, is_secret

SERVE_EPILOG = "Example: sekali serve --port 8080 --db-path data/store.db"
VERIFY_EPILOG = "Example: sekali verify --db-path data/store.db --json. Exit code 0: all holds; 1: something does not."
BACKUP_EPILOG = "Example: sekali backup backup-2026-11-23.db"
RESTORE_EPILOG = "Example: sekali restore backup-2026-11-23.db --replace"

EXIT_CANNOT_START = 3

AcceptLostTail = Annotated[
    bool,
    typer.Option(
        "--accept-lost-tail",
        help="Start although the log has lost its end; it becomes another log, and old cursors get 410.",
    ),
]
DbPath = Annotated[Path | None, setting_option(ServerSettings, "db_path", "--db-path")]


def _with_server_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one option for each server setting, and those of a single start."""
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                _flag_type(field.annotation) | None,
                setting_option(ServerSettings, name, "--" + name.replace("_", "-")),
            ],
        )
        for name, field in ServerSettings.model_fields.items()
        if not is_secret(field)
    ]
    parameters.append(
        inspect.Parameter("accept_lost_tail", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AcceptLostTail)
    )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _flag_type(annotation: Any) -> Any:
    return annotation if annotation in (int, float, Path) else str


@_with_server_settings
def serve(*, accept_lost_tail: bool, **flags: Any) -> None:
    """Run the server until SIGTERM or Ctrl-C. What was accepted is committed and answered before it stops."""
    from sekali import service  # noqa: PLC0415 - the other commands start faster without the server

    settings = load_settings(ServerSettings, **flags)
    try:
        code = service.serve(settings, partial(service.open_store, accept_lost_tail=accept_lost_tail))
    except SekaliError as error:
        output.print_error(str(error))
        raise typer.Exit(EXIT_CANNOT_START) from None
    raise typer.Exit(code)


def verify(db_path: DbPath = None, as_json: Json = False) -> None:
    """Audit a store that no server has open: every identity once, counters equal the rows, everything readable."""
    from sekali.stores.sqlite_audit import audit  # noqa: PLC0415 - likewise

    settings = load_settings(ServerSettings, db_path=db_path)
    with _work_on_a_store() as progress:
        report = audit(settings.db_path, progress)
    if as_json:
        output.write_json(report.document())
    else:
        title = Text(escape_controls(f"{report.db_path}: {report.events} events, log {report.log_id}"))
        table = Table("check", "result", title=title)
        for check in report.checks:
            lines = [escape_controls(failure) for failure in check.failures]
            if check.failure_count > len(lines):
                lines.append(f"and {check.failure_count - len(lines)} more")
            table.add_row(check.name, Text("ok", "green") if check.ok else Text("\n".join(lines), "red"))
        output.console().print(table)
        if not report.ok:
            output.print_error("the store does not keep the promise; keep the file and restore a backup")
    raise typer.Exit(output.EXIT_OK if report.ok else output.EXIT_NOT_ALL)


def backup(
    target: Annotated[Path, typer.Argument(help="The new file. It must not exist.")],
    db_path: DbPath = None,
    as_json: Json = False,
) -> None:
    """Copy the store to a new file, also while a server writes to it, and check the copy through."""
    from sekali.stores.sqlite_backup import backup as copy  # noqa: PLC0415 - likewise

    settings = load_settings(ServerSettings, db_path=db_path)
    with _work_on_a_store() as progress:
        size = copy(settings.db_path, target, progress)
    if as_json:
        output.write_json({"target": str(target), "bytes": size})
    else:
        output.write_line(f"{target}: {size} bytes. To put it in the place of a store: sekali restore {target}")


def restore(
    copy: Annotated[Path, typer.Argument(help="A file that sekali backup made. It stays as it is.")],
    db_path: DbPath = None,
    replace: Annotated[bool, typer.Option("--replace", help="Also where there is a store: it is gone then.")] = False,
    as_json: Json = False,
) -> None:
    """Put a backup in the place of a store that no server has open. Dedup goes on; old cursors get 410."""
    from sekali.stores.sqlite_backup import restore as put_back  # noqa: PLC0415 - likewise

    settings = load_settings(ServerSettings, db_path=db_path)
    with _work_on_a_store() as progress:
        size = put_back(copy, settings.db_path, progress, replace=replace)
    if as_json:
        output.write_json({"db_path": str(settings.db_path), "bytes": size})
    else:
        output.write_line(f"{settings.db_path}: {size} bytes. Start the server: sekali serve")


@contextmanager
def _work_on_a_store() -> Iterator[Callable[[int, int], None]]:
    """Show how far some work on a store has come, and turn what goes wrong into a message and an exit code."""
    try:
        with Progress(
            TextColumn("reading events"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=output.error_console(),
            transient=True,
        ) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    except SekaliError as error:
        output.print_error(str(error))
        raise typer.Exit(EXIT_CANNOT_START) from None
