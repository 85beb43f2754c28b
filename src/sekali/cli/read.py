"""``sekali events``, ``sekali tail`` and ``sekali stats``: what people and scripts read."""

import json as json_module
import math
import time
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sekali.cli.connect import ApiKeyFile, CaFile, connect
from sekali.cli.options import Json, Url, load_settings
from sekali.cli.output import console, error_console, reported_errors, write_json, write_line
from sekali.client.errors import StreamCut
from sekali.client.follow import Row, follow, rows
from sekali.client.http import Params, Server
from sekali.printable import escape_controls
from sekali.settings import PublisherSettings

EVENTS_EPILOG = """Examples:

sekali events --topic 'app/**' --since 2026-11-23T00:00:00Z --limit 20

sekali events --topic app/prod/api --all > export.ndjson
"""
TAIL_EPILOG = """Examples:

sekali tail --topic 'app/*/api'

sekali tail --after earliest --json | jq .payload
"""
STATS_EPILOG = """Examples:

sekali stats --watch

sekali stats --json | jq .duplicate_rate
"""

PAGE_EVENTS = 1000
WATCH_INTERVAL_S = 1.0
_NAMES_SHOWN_MAX = 10

Topic = Annotated[str | None, typer.Option(help="A topic, or a pattern: * is one segment, ** any number.")]


def events(
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    topic: Topic = None,
    source: Annotated[str | None, typer.Option(help="Who sent them.")] = None,
    since: Annotated[str | None, typer.Option(help="Event time, RFC 3339; inclusive.")] = None,
    until: Annotated[str | None, typer.Option(help="Event time, RFC 3339; exclusive.")] = None,
    after: Annotated[int | None, typer.Option(min=0, help="Only above this seq.")] = None,
    event_id: Annotated[str | None, typer.Option(help="One event of an exact --topic.")] = None,
    order: Annotated[
        Literal["seq", "-seq", "timestamp", "-timestamp"],
        typer.Option(help="By commit or by event time; - puts the newest first."),
    ] = "seq",
    limit: Annotated[int, typer.Option(min=1, help="At most so many events.")] = 100,
    everything: Annotated[
        bool, typer.Option("--all", help="All that match, without --limit, as NDJSON; for any size.")
    ] = False,
    json: Json = False,
) -> None:
    """Show stored events: a table, or one JSON object a line with --json.

    Exit codes: 0 done; 1 refused; 2 usage; 3 the server is not there, or cut the stream short.
    """
    params: Params = {
        "topic": topic,
        "source": source,
        "since": since,
        "until": until,
        "after": after,
        "event_id": event_id,
        "order": order,
    }
    settings = load_settings(PublisherSettings, aggregator_url=url, api_key_file=api_key_file, ca_file=ca_file)
    with connect(settings, give_up_after_s=0) as server, reported_errors():
        if everything:
            _write_stream(server, params, is_by_seq=order == "seq")
            return
        found = _limited(server, params, limit, write=json)
        if not json:
            console().print(_event_table(found))


def _limited(server: Server, params: Params, limit: int, *, write: bool) -> list[Row]:
    """Read pages until there are ``limit`` events or no more. With ``write`` they are written at once, not kept."""
    kept: list[Row] = []
    left = limit
    query: Params | str | None = {**params, "limit": min(limit, PAGE_EVENTS)}
    while query is not None and left > 0:
        page = server.get("/events", query)
        found = rows(page)[:left]
        left -= len(found)
        if write:
            for row in found:
                write_line(row.text)
        else:
            kept += found
        query = page.next
    return kept


def _write_stream(server: Server, params: Params, *, is_by_seq: bool) -> None:
    last = b""
    try:
        for line in server.stream("/events", params):
            write_line(line.decode(errors="backslashreplace"))
            last = line
    except StreamCut as error:
        if is_by_seq and last:
            raise StreamCut(f"{error}. Go on with --after {json_module.loads(last)['seq']}") from None
        raise


def tail(
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    topic: Topic = None,
    after: Annotated[
        str, typer.Option(metavar="SEQ|earliest|latest", help="Where to begin: behind this seq.")
    ] = "latest",
    json: Json = False,
) -> None:
    """Follow the log as it grows, in the order of seq and without a gap, until Ctrl-C.

    A server that restarts is waited for.

    Exit codes: 0 ended by Ctrl-C; 1 refused, or the log is another one now; 2 usage; 3 the server is not there.
    """
    if after not in {"earliest", "latest"} and not (after.isascii() and after.isdigit()):
        raise typer.BadParameter("--after takes a seq, earliest or latest")
    notices = error_console()

    def on_wait(reason: str, failures: int) -> None:
        if failures == 1:
            notices.print(Text(f"waiting for the server: {escape_controls(reason)}", style="yellow"))

    settings = load_settings(PublisherSettings, aggregator_url=url, api_key_file=api_key_file, ca_file=ca_file)
    # A server that was never there is more likely a wrong URL than a restart: the first question is asked once.
    with connect(settings, give_up_after_s=0) as asked_once, reported_errors():
        asked_once.get_object("/stats")
    with connect(settings, give_up_after_s=math.inf, on_wait=on_wait) as server, reported_errors():
        screen = console()
        try:
            for found in follow(server, topic=topic, after=after):
                for row in found:
                    if json:
                        write_line(row.text)
                    else:
                        screen.print(_event_text(row.event), soft_wrap=True)
        except KeyboardInterrupt:
            raise typer.Exit from None


def stats(
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second, until Ctrl-C.")] = False,
    json: Json = False,
) -> None:
    """Show the server's figures: a table, or JSON with --json (with --watch one document a second).

    Exit codes: 0 done; 1 refused; 2 usage; 3 the server is not there.
    """
    settings = load_settings(PublisherSettings, aggregator_url=url, api_key_file=api_key_file, ca_file=ca_file)
    with connect(settings, give_up_after_s=0) as server, reported_errors():
        if not watch:
            figures = server.get_object("/stats")
            if json:
                write_json(figures)
            else:
                console().print(_stats_table(figures))
            return
        try:
            _watch(server, console(), as_json=json)
        except KeyboardInterrupt:
            raise typer.Exit from None


def _watch(server: Server, screen: Console, *, as_json: bool) -> None:
    if as_json:
        while True:
            write_json(server.get_object("/stats"))
            time.sleep(WATCH_INTERVAL_S)
    with Live(_stats_table(server.get_object("/stats")), console=screen, auto_refresh=False) as live:
        while True:
            time.sleep(WATCH_INTERVAL_S)
            live.update(_stats_table(server.get_object("/stats")), refresh=True)


def _event_table(found: list[Row]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    # A column that may not wrap keeps its width; the others are cut, so that an event is one line.
    table.add_column("seq", style="cyan", no_wrap=True, justify="right")
    table.add_column("timestamp", style="dim", no_wrap=True)
    table.add_column("topic", style="green")
    table.add_column("event_id")
    table.add_column("source")
    table.add_column("again", no_wrap=True, justify="right")
    table.add_column("payload")
    for row in found:
        event = row.event
        cells = [
            _shown(event.get(name, "")) for name in ("seq", "timestamp", "topic", "event_id", "source", "duplicates")
        ]
        for cell in (*cells, payload := _payload(event)):
            cell.no_wrap, cell.overflow = True, "ellipsis"
        table.add_row(*cells, payload)
    return table


def _event_text(event: dict[str, Any]) -> Text:
    """Return an event as one line."""
    parts: list[tuple[Text, str]] = [
        (_shown(event.get("seq", "")), "cyan"),
        (_shown(event.get("timestamp", "")), "dim"),
        (_shown(event.get("topic", "")), "green"),
        (_shown(event.get("source", "")), "magenta"),
    ]
    texts = [Text(part.plain, style=style) for part, style in parts if part.plain]
    return Text(" ").join([*texts, _payload(event)])


def _payload(event: dict[str, Any]) -> Text:
    if "error" in event and "payload" not in event:
        return Text(f"cannot be read back: {escape_controls(str(event['error']))}", style="red")
    payload = event.get("payload")
    if isinstance(payload, dict) and list(payload) == ["line"]:  # a line of a log is best read as one
        payload = payload["line"]
    return _shown(payload)


def _shown(value: Any) -> Text:
    """Return a value as text that is safe to print."""
    text = value if isinstance(value, str) else json_module.dumps(value, ensure_ascii=False)
    return Text(escape_controls(text))


def _stats_table(figures: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(style="cyan")
    table.add_column()
    for name, value in figures.items():
        if isinstance(value, dict):
            for inner, inner_value in value.items():
                table.add_row(_shown(f"{name} {inner}"), _figure(inner_value))
        else:
            table.add_row(_shown(name), _figure(value))
    return table


def _figure(value: Any) -> Text:
    if isinstance(value, list):
        more = f", and {len(value) - _NAMES_SHOWN_MAX:,} more" if len(value) > _NAMES_SHOWN_MAX else ""
        return _shown(", ".join(str(name) for name in value[:_NAMES_SHOWN_MAX]) + more)
    if isinstance(value, float):
        return Text(f"{value:,.3f}")
    if isinstance(value, int) and not isinstance(value, bool):
        return Text(f"{value:,}")
    return _shown("-" if value is None else value)
