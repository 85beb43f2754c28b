"""``sekali publish``: the load publisher, and the publisher of real input."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from sekali.cli.connect import ApiKeyFile, CaFile, connect
from sekali.cli.inputs import STDIN, Input, input_items, size_bytes, source_of
from sekali.cli.options import Json, Url, load_settings, setting_option
from sekali.cli.output import (
    EXIT_INTERRUPTED,
    EXIT_NOT_ALL,
    EXIT_OK,
    console,
    error_console,
    exit_code_of,
    print_error,
    write_json,
)
from sekali.cli.publishing import Stop, progress_screen, publish_all
from sekali.cli.report import Report, print_report
from sekali.client.batches import Pace, batches
from sekali.client.errors import ClientError
from sekali.client.http import GIVE_UP_AFTER_S, Answer
from sekali.client.lines import Item
from sekali.client.timepattern import TimePattern
from sekali.settings import PublisherSettings
from sekali.simulator import simulate
from sekali.topics import topic_fault

EPILOG = """Examples:

sekali publish --count 100000 --dup-ratio 0.3 --seed 7

sekali publish --lines --topic app/prod/api --file /var/log/api.log --time-pattern '%Y-%m-%d %H:%M:%S,%f'

tail -F /var/log/api.log | sekali publish --lines --topic app/prod/api --source api.log

sekali publish --ndjson --file export.ndjson
"""

LOAD_CONNECTIONS = 2
_LOAD = "Load publisher"
_INPUT = "Real input"


def _check_existence(paths: list[Path] | None) -> list[Path] | None:
    # typer 0.29 looks for a file named - when it is asked to check this itself.
    for path in paths or []:
        if path != STDIN and not path.exists():
            raise typer.BadParameter(f"{str(path)!r} does not exist")
    return paths


def publish(
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    batch_size: Annotated[int | None, setting_option(PublisherSettings, "batch_size", "--batch-size")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="At most so many events a second.")] = None,
    give_up_after: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds to try again while the server does not answer; every answer starts them anew."
        ),
    ] = GIVE_UP_AFTER_S,
    json: Json = False,
    count: Annotated[int | None, setting_option(PublisherSettings, "publish_count", "--count", panel=_LOAD)] = None,
    dup_ratio: Annotated[
        float | None, setting_option(PublisherSettings, "dup_ratio", "--dup-ratio", panel=_LOAD)
    ] = None,
    topics: Annotated[str | None, setting_option(PublisherSettings, "topics", "--topics", panel=_LOAD)] = None,
    seed: Annotated[int | None, setting_option(PublisherSettings, "publish_seed", "--seed", panel=_LOAD)] = None,
    connections: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help=f"Requests under way at once. Default: {LOAD_CONNECTIONS}.", rich_help_panel=_LOAD
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "--file",
            dir_okay=False,
            readable=True,
            callback=_check_existence,
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
        api_key_file=api_key_file,
        ca_file=ca_file,
        publish_count=count,
        dup_ratio=dup_ratio,
        batch_size=batch_size,
        topics=topics,
        publish_seed=seed,
    )
    of_load = {
        "--count": count,
        "--dup-ratio": dup_ratio,
        "--topics": topics,
        "--seed": seed,
        "--connections": connections,
    }
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
    if inputs:
        connections = 1  # one request after another keeps the order of the lines
    elif connections is None:
        connections = LOAD_CONNECTIONS
    raise typer.Exit(
        _run(settings, inputs, rate=rate, give_up_after_s=give_up_after, connections=connections, as_json=json)
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
    return [Input(path, False, topic, source if source is not None else source_of(path), pattern) for path in paths]


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
    terminal = error_console()
    report = Report(lambda text: terminal.print(text, soft_wrap=True))
    failure: ClientError | None = None
    interrupted = False
    with progress_screen(terminal, size_bytes(inputs) if inputs else settings.publish_count) as screen:

        def on_wait(reason: str, failures: int) -> None:
            report.retry()
            screen.show_waiting(reason)

        def settle(batch: list[Item], answer: Answer) -> None:
            report.settle(batch, answer)
            screen.show_sent(report.sent)

        if inputs:
            items = input_items(inputs, report.refuse, screen.advance, stop.is_set)
        else:
            items = _load_items(settings, screen.advance)
        server = connect(
            settings,
            give_up_after_s=give_up_after_s,
            connections_max=connections,
            on_wait=on_wait,
            sleep=stop.sleep_or_raise,
        )
        try:
            publish_all(
                server,
                _paced(items, settings.batch_size, rate, stop),
                connections=connections,
                stop=stop,
                settle=settle,
            )
        except ClientError as error:
            failure = error
        except KeyboardInterrupt:
            interrupted = True
        server.close()
    figures = report.figures()
    if as_json:
        write_json(figures)
    else:
        print_report(figures, console())
    if failure is not None:
        print_error(f"{failure}. {_what_next(inputs)}")
        return exit_code_of(failure)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_NOT_ALL if report.invalid or report.conflict else EXIT_OK


def _load_items(settings: PublisherSettings, advance: Callable[[int], None]) -> Iterator[Item]:
    items = simulate(settings.publish_count, settings.dup_ratio, settings.topic_names, settings.publish_seed)
    for item in items:
        yield item
        advance(1)


def _paced(items: Iterator[Item | None], events_max: int, rate_per_s: float | None, stop: Stop) -> Iterator[list[Item]]:
    """Gather items into batches, and hold each back until its time has come."""
    if rate_per_s is None:
        yield from batches(items, events_max)
        return
    pace = Pace(rate_per_s, sleep=stop.sleep)
    for batch in batches(items, min(events_max, max(1, int(rate_per_s)))):  # at most one second's worth at once
        pace.wait_for(len(batch))
        yield batch


def _what_next(inputs: list[Input]) -> str:
    if not inputs:
        return "What was answered is stored"
    if any(entry.is_stdin for entry in inputs):
        return "What was answered is stored; what was read from standard input after that has to be sent again"
    return "What was answered is stored; run the same command again, and only what is missing will be added"
