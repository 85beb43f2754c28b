"""``sekali bench``: how fast is it here?"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from sekali.bench import targets
from sekali.bench.options import Options, Report, Table
from sekali.cli import output
from sekali.cli.options import Json
from sekali.errors import SekaliError

EPILOG = "Examples: sekali bench ingest --seconds 10 --rounds 3; sekali bench all. Needs: pip install 'sekali[bench]'"


class What(StrEnum):
    """The benchmarks."""

    CEILING = "ceiling"
    INGEST = "ingest"
    GROWTH = "growth"
    INDEX = "index"
    LATENCY = "latency"
    READS = "reads"
    FOLLOW = "follow"
    CONSUME = "consume"
    STALL = "stall"
    PEERS = "peers"
    ALL = "all"


def bench(
    what: Annotated[What, typer.Argument(help="What to measure.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for <name>.json and <name>.svg.")] = Path("bench/results"),
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=0.5, max=3600, help="Length of one run; else 10, and 600 of stall.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=100, help="Runs of each load; medians count.")] = 3,
    events: Annotated[
        int, typer.Option("--events", min=1000, max=1_000_000_000, help="Events in a large store.")
    ] = 20_000_000,
    keys: Annotated[
        int, typer.Option("--keys", min=10_000, max=1_000_000_000, help="Keys in the index by itself.")
    ] = 100_000_000,
    keep: Annotated[
        Path | None, typer.Option("--keep", file_okay=False, help="growth, reads: keep the large store in this folder.")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", exists=True, file_okay=False, help="reads: a store kept with --keep; it grows."),
    ] = None,
    db_dir: Annotated[
        Path | None,
        typer.Option("--db-dir", exists=True, file_okay=False, help="Where stores are put; removed afterwards."),
    ] = None,
    commit_rows: Annotated[
        int | None, typer.Option("--commit-rows", min=1, help="Rows in a commit of the ceiling; else the server's.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="A server setting that is not default: NAME=VALUE.")
    ] = None,
    only: Annotated[
        str, typer.Option("--only", help="Part of a load's name, such as v7: run just that, without the ceiling.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Measure a real server on this machine, with fsync before every answer, and check that it did everything right.

    The load goes to 127.0.0.1 only. Figures of a machine that does other work meanwhile mean little.
    """
    from sekali.bench import everything, suite  # noqa: PLC0415 - the other commands start faster without numpy

    options = Options(
        seconds=suite.seconds_of(what, seconds),
        rounds=rounds,
        events=events,
        keys=keys,
        db_dir=db_dir,
        settings=_settings(setting or []),
        commit_rows=commit_rows,
        only=only,
        keep=keep,
        store=store,
    )
    failures: dict[str, str] = {}
    try:
        with _progress() as bar:
            task = bar.add_task("starting", total=1.0)

            def notify(doing: str, done: float) -> None:
                bar.update(task, description=doing, completed=done)

            def on_report(name: str, report: Report) -> None:
                if not as_json:
                    _print_report(report)

            if what is What.ALL:
                document, report = everything.run(options, seconds, out, notify, on_report)
                failures = document["failures"]
            else:
                document, report = suite.run(what, options, out, notify)
    except SekaliError as error:
        output.print_error(str(error))
        raise typer.Exit(output.EXIT_NOT_ALL) from None
    if as_json:
        output.write_json(document)
    else:
        _print_report(report)
        if pauses_s := document.get("pauses_s"):
            output.write_line(
                f"note: the machine stood still {len(pauses_s)} times, {sum(pauses_s):.0f} s, not counted"
            )
        output.write_line(f"written: {out / 'summary.json' if what is What.ALL else out / f'{what}.json'}")
    if failures:
        raise typer.Exit(output.EXIT_NOT_ALL)


def _print_report(report: Report) -> None:
    for table in report.tables:
        _print_table(table)
    if report.targets:
        _print_table(Table("figures to reach", targets.COLUMNS, targets.rows(report.targets)))


def _print_table(table: Table) -> None:
    shown = RichTable(*table.columns, title=table.title)
    for row in table.rows:
        shown.add_row(*row)
    output.console().print(shown)
    for note in table.notes:
        output.write_line(f"note: {note}")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=output.error_console(),
        transient=True,
    )


def _settings(given: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    for name, sign, _ in pairs:
        if not sign or not name:
            raise typer.BadParameter("--set takes NAME=VALUE, such as --set CONSUMER_WORKERS=2")
    return {name.upper().removeprefix("SEKALI_"): value for name, _, value in pairs}
