"""``sekali keys``: who may publish and read what."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from sekali.cli import output
from sekali.cli.options import Json, load_settings
from sekali.cli.server import EXIT_CANNOT_START, DbPath
from sekali.errors import StartupError
from sekali.keyfile import KeyFile, KeyRefused, new_key_text
from sekali.keys import Key
from sekali.settings import ServerSettings

CREATE_EPILOG = """Examples:

sekali keys create --name shop --scope 'publish:shop/**' --scope 'read:shop/**' --expires 90d

export SEKALI_API_KEY=$(sekali keys create --name ops --scope admin)
"""
REVOKE_EPILOG = "Example: sekali keys revoke 1f3a90bc"
BOOTSTRAP_EPILOG = "Example: export SEKALI_BOOTSTRAP_KEY=$(sekali keys bootstrap)"

_DURATION = re.compile(r"(\d{1,6})([mhdw])", re.ASCII)
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_EXPIRES_AFTER_MAX = timedelta(days=36_500)

app = typer.Typer(
    help="Make, list and revoke keys. Their file lies beside the store; a running server notices within a second.",
    no_args_is_help=True,
)


@app.command("create", epilog=CREATE_EPILOG)
def create(
    name: Annotated[
        str, typer.Option(help="Whose key it is. A name has at most two live keys: the old and the new one.")
    ],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it may do: publish:PATTERN, read:PATTERN (* is one segment, ** any number) or admin; may be "
            "repeated. Without it: what the name's live key may do."
        ),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="90d", help="When it stops working: minutes, hours, days or weeks from now.")
    ] = None,
    db_path: DbPath = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it. It is shown this once: what is kept cannot be turned back into it.

    To replace a key, make a second one of the same name, move everybody over to it, and revoke the first.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    expires_at = None if expires is None else now + _duration(expires)
    with _reported():
        key, text = _file(db_path).create(name, scope or [], now, expires_at)
    if as_json:
        output.write_json({"key": text, **_document(key, now)})
        return
    output.write_line(text)
    until = f", until {_text(key.expires_at)}" if key.expires_at else ""
    output.print_note(f"key {key.id} of {key.name}: {', '.join(key.scopes)}{until}. It is not shown again")


@app.command("list")
def list_keys(db_path: DbPath = None, as_json: Json = False) -> None:
    """Show the keys, without their secrets."""
    now = datetime.now(UTC)
    with _reported():
        keys = _file(db_path).read() or []
    if as_json:
        output.write_json([_document(key, now) for key in keys])
        return
    table = Table("id", "name", "scopes", "made", "expires", "")
    for key in keys:
        state = Text("live", "green") if key.is_live(now) else Text("expired", "red")
        expires = "never" if key.expires_at is None else _text(key.expires_at)
        table.add_row(key.id, key.name, Text(", ".join(key.scopes)), _text(key.created_at), expires, state)
    output.console().print(table)


@app.command("revoke", epilog=REVOKE_EPILOG)
def revoke(
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="As in the list: what stands before the point of the key.")
    ],
    db_path: DbPath = None,
    as_json: Json = False,
) -> None:
    """Remove a key. A running server refuses it within a second, and cuts the streams that were begun with it."""
    now = datetime.now(UTC)
    with _reported():
        key = _file(db_path).revoke(key_id)
    if as_json:
        output.write_json(_document(key, now))
    else:
        output.write_line(f"revoked key {key.id} of {key.name}")


@app.command("bootstrap", epilog=BOOTSTRAP_EPILOG)
def bootstrap() -> None:
    """Print a new key to give to the server as SEKALI_BOOTSTRAP_KEY. It is kept nowhere, and may do everything."""
    output.write_line(new_key_text())


def _file(db_path: Path | None) -> KeyFile:
    return KeyFile(load_settings(ServerSettings, db_path=db_path).db_path)


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except KeyRefused as error:
        output.print_error(str(error))
        raise typer.Exit(output.EXIT_NOT_ALL) from None
    except StartupError as error:
        output.print_error(str(error))
        raise typer.Exit(EXIT_CANNOT_START) from None


def _duration(text: str) -> timedelta:
    match = _DURATION.fullmatch(text)
    found = timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else timedelta()
    if not timedelta() < found <= _EXPIRES_AFTER_MAX:
        raise typer.BadParameter(
            f"--expires: {text!r} is not a time such as 30m, 12h, 90d or 52w, of at most 100 years"
        )
    return found


def _document(key: Key, now: datetime) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": list(key.scopes),
        "created_at": _text(key.created_at),
        "expires_at": None if key.expires_at is None else _text(key.expires_at),
        "live": key.is_live(now),
    }


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
