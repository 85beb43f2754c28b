"""``sekali publish``: the load publisher, and the publisher of real input."""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sekali.cli.options import Json, Url, load_settings, setting_option
from sekali.cli.output import (
    EXIT_INTERRUPTED,
    EXIT_NOT_ALL,
    console,
    error_console,
    escape_controls,
    exit_code_of,
    print_error,
    write_json,
)
from sekali.cli.publishing import Screen, Stop, progress_screen, publish_all
from sekali.cli.report import Report, print_report
from sekali.client.batches import FLUSH_AFTER_S, REQUEST_BYTES_MAX, Pace, batches
from sekali.client.errors import ClientError, Unreachable
from sekali.client.http import GIVE_UP_AFTER_S, Server
from sekali.client.lines import Item, Line, PlaceIds, line_events, ndjson_events, read_chunks, split_lines
from sekali.client.timepattern import TimePattern
from sekali.client.uuid7 import Uuid7
from sekali.settings import PublisherSettings
from sekali.simulator import simulate
from sekali.topics import topic_fault

EPILOG = """Examples:

sekali publish --count 100000 --dup-ratio 0.3 --seed 7

sekali publish --lines --topic app/prod/api --file /var/log/api.log --time-pattern '%Y-%m-%d %H:%M:%S,%f'

tail -F /var/log/api.log | sekali publish --lines --topic app/prod/api --source api.log

sekali publish --ndjson --file export.ndjson
"""

STDIN = Path("-")
_LOAD = "Load publisher"
_INPUT = "Real input"


@dataclass(frozen=True, slots=True)
class Input:
    """One file, or standard input, and how to read it."""

    path: Path
    ndjson: bool
    topic: str
    source: str
    time_pattern: TimePattern | None

    @property
    def is_stdin(self) -> bool:
        """Whether it is standard input."""
        return self.path == STDIN

    def items(self, lines: Iterator[Line | None], refuse: Callable[[str, str], None]) -> Iterator[Item | None]:
        """Return the events of the lines."""
        name = "stdin" if self.is_stdin else str(self.path)
        if self.ndjson:
            return ndjson_events(lines, name=name, on_fault=refuse)
        make_id: Callable[[Line], str] = PlaceIds()
        if self.is_stdin:  # there is no place to come back to
            new_id = Uuid7()
            make_id = lambda line: new_id()  # noqa: E731
        return line_events(
            lines, make_id, self.topic, self.source, name=name, on_fault=refuse, time_pattern=self.time_pattern
        )


def publish(
    url: Url = None,
    batch_size: Annotated[int | None, setting_option(PublisherSettings, "batch_size", "--batch-size")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="At most so many events a second.")] = None,
    give_up_after: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds to try again while the server does not answer; every answer starts them anew."
        ),
    ] = GIVE_UP_AFTER_S,
    json: Json = False,
    count: Annotated[
        int | None, setting_option(PublisherSettings, "publish_count", "--count", panel=_LOAD)
    ] = None,
    dup_ratio: Annotated[
        float | None, setting_option(PublisherSettings, "dup_ratio", "--dup-ratio", panel=_LOAD)
    ] = None,
    topics: Annotated[str | None, setting_option(PublisherSettings, "topics", "--topics", panel=_LOAD)] = None,
    seed: Annotated[int | None, setting_option(PublisherSettings, "publish_seed", "--seed", panel=_LOAD)] = None,
    connections: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Requests under way at once. Default: 2.", rich_help_panel=_LOAD),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            readable=True,
            allow_dash=True,
            help="A file to publish; may be repeated. - is standard input, which is also what is read without --file.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="The input is plain lines; empty ones are skipped.", rich_help_panel=_INPUT)
    ] = False,
    ndjson: Annotated[
        bool, typer.Option("--ndjson", help="The input is one event a line, as JSON.", rich_help_panel=_INPUT)
    ] = False,
    topic: Annotated[str | None, typer.Option(help="The topic of --lines.", rich_help_panel=_INPUT)] = None,
    source: Annotated[
        str | None,
        typer.Option(help="The source of --lines. Default: the name of the file, or stdin.", rich_help_panel=_INPUT),
    ] = None,
    time_pattern: Annotated[
        str | None,
        typer.Option(
            help="Where the time stands in a line, as a strptime format such as '%Y-%m-%d %H:%M:%S,%f'. "
            "Otherwise, and in lines without one, it is when the line was read.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
) -> None:
    """Publish made-up events to try a server, or real ones from files and standard input.

    Without --lines or --ndjson it is the load publisher. With one of them it publishes each line of its input. A line
    of a file keeps its identity: publish a file again, grown or not, and only what is new is stored. After a rotation
    pass the old file's name with --source, because the source belongs to the content. Lines of standard input are new
    each time. A line over 1 MiB (--ndjson: 4 MiB) is not sent and counts as invalid.

    Exit codes: 0 all is stored, now or before; 1 something was invalid, in conflict or refused; 2 usage; 3 the server
    did not answer in time; 130 interrupted.
    """
    settings = load_settings(
        PublisherSettings,
        aggregator_url=url,
        publish_count=count,
        dup_ratio=dup_ratio,
        batch_size=batch_size,
        topics=topics,
        publish_seed=seed,
    )
    of_load = {"--count": count, "--dup-ratio": dup_ratio, "--topics": topics, "--seed": seed}
    of_load["--connections"] = connections
    of_lines = {"--topic": topic, "--source": source, "--time-pattern": time_pattern}
    if lines or ndjson:
        _refuse_given(of_load, "belongs to the load publisher; leave it out, or leave out --lines and --ndjson")
        if lines and ndjson:
            raise typer.BadParameter("the input is either --lines or --ndjson")
        if ndjson:
            _refuse_given(of_lines, "belongs to --lines; with --ndjson each event says it itself")
        inputs = _inputs(file or [STDIN], ndjson=ndjson, topic=topic, source=source, time_pattern=time_pattern)
    else:
        _refuse_given({"--file": file, **of_lines}, "needs --lines or --ndjson, which say what the input holds")
        _check_topics(settings.topic_names)
        inputs = []
    raise typer.Exit(
        _run(settings, inputs, rate=rate, give_up_after_s=give_up_after, connections=connections or 2, as_json=json)
    )


def _refuse_given(options: dict[str, Any], why: str) -> None:
    for name, value in options.items():
        if value is not None and value != []:
            raise typer.BadParameter(f"{name} {why}")


def _check_topics(names: list[str]) -> None:
    if not names:
        raise typer.BadParameter("--topics is empty; name at least one topic")
    for name in names:
        if fault := topic_fault(name):
            raise typer.BadParameter(f"{name!r} is {fault}")


def _inputs(
    paths: list[Path], *, ndjson: bool, topic: str | None, source: str | None, time_pattern: str | None
) -> list[Input]:
    if ndjson:
        return [Input(path, True, "", "", None) for path in paths]
    if topic is None:
        raise typer.BadParameter("--lines needs a --topic to publish to")
    _check_topics([topic])
    try:
        pattern = TimePattern(time_pattern) if time_pattern is not None else None
    except ValueError as error:
        raise typer.BadParameter(f"--time-pattern: {error}") from None
    return [Input(path, False, topic, source if source is not None else _source_of(path), pattern) for path in paths]


def _source_of(path: Path) -> str:
    # A name that is not UTF-8 still has to become text.
    return "stdin" if path == STDIN else os.fsencode(path.name).decode(errors="backslashreplace")


def _run(
    settings: PublisherSettings,
    inputs: list[Input],
    *,
    rate: float | None,
    give_up_after_s: float,
    connections: int,
    as_json: bool,
) -> int:
    """Publish everything, report, and return the exit code."""
    stop = Stop()
    screen_console = error_console()
    report = Report(screen_console.print)
    failure: ClientError | None = None
    interrupted = False
    with ExitStack() as stack:
        total = _size_bytes(inputs) if inputs else settings.publish_count
        screen = stack.enter_context(progress_screen(screen_console, total))

        def on_wait(reason: str, failures: int) -> None:
            report.retry()
            screen.show_waiting(reason)

        server = _server(settings.aggregator_url, give_up_after_s, connections if not inputs else 1, on_wait, stop)
        stack.callback(server.close)
        if inputs:
            items = _input_items(inputs, report, screen, stop)
        else:
            items = _load_items(settings, screen)
        try:
            publish_all(
                server,
                _paced(items, settings.batch_size, rate, stop),
                connections=connections if not inputs else 1,
                stop=stop,
                settle=lambda batch, answer: (report.settle(batch, answer), screen.show_sent(report.sent))[0],
            )
        except ClientError as error:
            failure = error
        except KeyboardInterrupt:
            interrupted = True
    figures = report.figures()
    if as_json:
        write_json(figures)
    else:
        print_report(figures, console())
    if failure is not None:
        print_error(f"{failure}. {_what_next(failure, inputs)}")
        return exit_code_of(failure)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_NOT_ALL if report.invalid or report.conflict else 0
