"""``sekali subscriptions``: who takes which events, how far each has come, and what was given up."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import typer
from rich.table import Table
from rich.text import Text

from sekali.cli import output
from sekali.cli.connect import ApiKeyFile, CaFile, connect
from sekali.cli.options import Json, Url, load_settings
from sekali.client.errors import Gone
from sekali.client.http import Params, Server
from sekali.printable import escape_controls
from sekali.settings import PublisherSettings

CREATE_EPILOG = """Examples:

sekali subscriptions create billing --topic 'orders/**' --start earliest

sekali subscriptions create billing --topic 'orders/**' --start earliest --paused
"""
SEEK_EPILOG = """Examples:

sekali subscriptions seek billing --seq 1

sekali subscriptions seek billing --time 2026-11-23T10:00:00Z
"""
LIST_EPILOG = "Example: sekali subscriptions list --json"
SHOW_EPILOG = "Example: sekali subscriptions show billing"
DELETE_EPILOG = "Example: sekali subscriptions delete billing"
DEAD_LETTERS_EPILOG = "Example: sekali subscriptions dead-letters list billing --limit 10"
REPLAY_EPILOG = "Example: sekali subscriptions dead-letters replay billing --all"
DROP_EPILOG = "Example: sekali subscriptions dead-letters drop billing --seq 41 --seq 43"

_LISTED = ("name", "topic", "delivery", "order", "lag", "in_flight", "oldest_unacknowledged_seconds", "dead_letters")

app = typer.Typer(help="Durable subscriptions: make, show, move and delete them.", no_args_is_help=True)
dead_letters = typer.Typer(help="Events that failed at every attempt.", no_args_is_help=True)
app.add_typer(dead_letters, name="dead-letters")

Name = Annotated[str, typer.Argument(help="The name of the subscription.")]
Seqs = Annotated[list[int] | None, typer.Option("--seq", min=1, help="One of them, by seq; may be repeated.")]
All = Annotated[bool, typer.Option("--all", help="All of them.")]


@app.command("list", epilog=LIST_EPILOG)
def list_subscriptions(
    url: Url = None, api_key_file: ApiKeyFile = None, ca_file: CaFile = None, as_json: Json = False
) -> None:
    """Show the subscriptions with their figures. A lag with a + is at least that.

    Exit codes: 0 done; 1 refused; 2 usage; 3 the server is not there.
    """
    with _server(url, api_key_file, ca_file) as server:
        found = list(_pages(server, "/subscriptions"))
    if as_json:
        output.write_json(found)
        return
    table = Table("name", "topic", "delivery", "order", "lag", "in flight", "oldest s", "dead letters")
    for one in found:
        cells = [_cell(one.get(name)) for name in _LISTED]
        if one.get("lag_is_exact") is False:
            cells[_LISTED.index("lag")] += "+"
        if one.get("paused") is True:
            cells[0] += " (paused)"
        endpoint = one.get("endpoint")
        if isinstance(endpoint, dict) and endpoint.get("down_since") is not None:
            cells[0] += " (down)"
        table.add_row(*map(Text, cells))
    output.console().print(table)


@app.command("show", epilog=SHOW_EPILOG)
def show(
    name: Name, url: Url = None, api_key_file: ApiKeyFile = None, ca_file: CaFile = None, as_json: Json = False
) -> None:
    """Show one subscription: what it is, and its figures.

    Exit codes: 0 done; 1 refused, or there is none of that name; 2 usage; 3 the server is not there.
    """
    with _server(url, api_key_file, ca_file) as server:
        document = server.get_object(_path(name))
    if as_json:
        output.write_json(document)
        return
    table = Table(show_header=False, box=None)
    table.add_column(style="cyan")
    table.add_column()
    for field, value in document.items():
        inner = {f"{field} {key}": one for key, one in value.items()} if isinstance(value, dict) else {field: value}
        for key, one in inner.items():
            table.add_row(Text(escape_controls(key)), Text(_cell(one)))
    output.console().print(table)


@app.command("create", epilog=CREATE_EPILOG)
def create(
    name: Name,
    topic: Annotated[str, typer.Option(help="A topic, or a pattern: * is one segment, ** any number.")],
    start: Annotated[
        str, typer.Option(metavar="earliest|latest|SEQ|TIME", help="The first event: by seq, or stored at that time.")
    ] = "latest",
    order: Annotated[
        Literal["topic", "none"], typer.Option(help="topic: events of one topic one after the other.")
    ] = "topic",
    max_attempts: Annotated[int, typer.Option(min=1, help="Then an event is a dead letter.")] = 10,
    lease_seconds: Annotated[float, typer.Option(help="How long a consumer has, where it does not say.")] = 30.0,
    paused: Annotated[bool, typer.Option(help="Deliver nothing for now.")] = False,
    push_url: Annotated[
        str | None, typer.Option("--push", metavar="URL", help="Send events there, instead of waiting to be asked.")
    ] = None,
    secret_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A file with the secret that push signs with.")
    ] = None,
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    as_json: Json = False,
) -> None:
    """Make a subscription, or change what may change of one: --max-attempts, --lease-seconds, --paused and --push.

    The same again changes nothing.

    Exit codes: 0 done; 1 refused, or it exists with another topic, start or order; 2 usage; 3 the server is not there.
    """
    definition: dict[str, Any] = {
        "topic": topic,
        "start": _start(start),
        "order": order,
        "max_attempts": max_attempts,
        "lease_seconds": lease_seconds,
        "paused": paused,
        "delivery": "pull" if push_url is None else "push",
    }
    if push_url is not None:
        definition["url"] = push_url
    if secret_file is not None:
        definition["secret"] = secret_file.read_text().strip()
    with _server(url, api_key_file, ca_file) as server:
        document = server.send("PUT", _path(name), definition)
    if as_json:
        output.write_json(document)
    else:
        output.write_line(f"subscription {name} to {topic}")


@app.command("delete", epilog=DELETE_EPILOG)
def delete(name: Name, url: Url = None, api_key_file: ApiKeyFile = None, ca_file: CaFile = None) -> None:
    """Delete a subscription, with its place in the log and its dead letters. The events stay.

    Exit codes: 0 done; 1 refused, or there is none of that name; 2 usage; 3 the server is not there.
    """
    with _server(url, api_key_file, ca_file) as server:
        server.send("DELETE", _path(name))
    output.write_line(f"deleted subscription {name}")


@app.command("seek", epilog=SEEK_EPILOG)
def seek(
    name: Name,
    seq: Annotated[int | None, typer.Option(min=1, help="The first event to deliver, by seq.")] = None,
    time: Annotated[
        str | None, typer.Option(help="The first event to deliver: stored then or later, RFC 3339.")
    ] = None,
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    as_json: Json = False,
) -> None:
    """Go on from another place in the log, back to replay or on to skip. What consumers hold they lose.

    Exit codes: 0 done; 1 refused, or the log has not come so far; 2 usage; 3 the server is not there.
    """
    if (seq is None) == (time is None):
        raise typer.BadParameter("give one of --seq and --time")
    with _server(url, api_key_file, ca_file) as server:
        answer = server.send("POST", _path(name, "seek"), {"seq": seq} if time is None else {"time": time})
    if as_json:
        output.write_json(answer)
    else:
        output.write_line(f"subscription {name} goes on at seq {_cell(answer.get('next_seq'))}")


@dead_letters.command("list", epilog=DEAD_LETTERS_EPILOG)
def list_dead_letters(
    name: Name,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    as_json: Json = False,
) -> None:
    """Show dead letters in the order they were given up: a table, or one JSON object a line with --json.

    Exit codes: 0 done; 1 refused, or there is none of that name; 2 usage; 3 the server is not there.
    """
    with _server(url, api_key_file, ca_file) as server:
        found = [one for one, _ in zip(_pages(server, _path(name, "dead-letters")), range(limit), strict=False)]
    if as_json:
        for one in found:
            output.write_json(one)
        return
    table = Table("seq", "topic", "attempts", "given up", "error")
    for one in found:
        table.add_row(*(Text(_cell(one.get(field))) for field in ("seq", "topic", "attempts", "at", "error")))
    output.console().print(table)


@dead_letters.command("replay", epilog=REPLAY_EPILOG)
def replay(
    name: Name,
    seq: Seqs = None,
    everything: All = False,
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
) -> None:
    """Deliver dead letters again as if they were new: after events that came after them.

    Exit codes: 0 done; 1 refused, or there is none of that name; 2 usage; 3 the server is not there.
    """
    chosen = _chosen(seq, everything)
    count = 0
    with _server(url, api_key_file, ca_file) as server:
        more = True
        while more:
            answer = server.send("POST", _path(name, "dead-letters/replay"), chosen)
            replayed, more = answer.get("replayed"), answer.get("more") is True
            count += len(replayed) if isinstance(replayed, list) else 0
    output.write_line(f"{count} dead letters of {name} are delivered again")


@dead_letters.command("drop", epilog=DROP_EPILOG)
def drop(
    name: Name,
    seq: Seqs = None,
    everything: All = False,
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
) -> None:
    """Forget dead letters. The events stay in the log.

    Exit codes: 0 done; 1 refused, or there is none of that name; 2 usage; 3 the server is not there.
    """
    chosen = _chosen(seq, everything)
    with _server(url, api_key_file, ca_file) as server:
        server.send("POST", _path(name, "dead-letters/drop"), chosen)
    output.write_line(f"dropped {'all' if everything else len(seq or [])} dead letters of {name}")


@contextmanager
def _server(url: str | None, api_key_file: Path | None, ca_file: Path | None) -> Iterator[Server]:
    settings = load_settings(PublisherSettings, aggregator_url=url, api_key_file=api_key_file, ca_file=ca_file)
    with connect(settings, give_up_after_s=0) as server, output.reported_errors():
        try:
            yield server
        except Gone as error:
            output.print_error(str(error))
            raise typer.Exit(output.EXIT_NOT_ALL) from None


def _path(name: str, rest: str = "") -> str:
    return f"/subscriptions/{quote(name, safe='')}" + (f"/{rest}" if rest else "")


def _pages(server: Server, path: str) -> Iterator[dict[str, Any]]:
    query: Params | str | None = {}
    while query is not None:
        page = server.get(path, query)
        found = json.loads(page.text)
        yield from (one for one in found if isinstance(one, dict)) if isinstance(found, list) else ()
        query = page.next


def _start(text: str) -> Any:
    if text in {"earliest", "latest"}:
        return text
    return {"seq": int(text)} if text.isascii() and text.isdigit() else {"time": text}


def _chosen(seqs: list[int] | None, everything: bool) -> dict[str, Any]:
    if bool(seqs) == everything:
        raise typer.BadParameter("give --seq, once or more, or --all")
    return {"all": True} if everything else {"seqs": seqs}


def _cell(value: Any) -> str:
    """Return a value as text that is safe to print."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.3f}"
    return escape_controls(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
