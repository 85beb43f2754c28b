"""The schema: made in a new file, brought up to date in an older one, refused in a newer one.

A change of the schema is a new version: a step in ``_STEPS`` here, and once it is released a fixture of it
(``scripts/store_fixture.py``), which every later program has to open.
"""

import uuid
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import apsw
import structlog

from sekali import jsonvalue
from sekali.errors import StartupError
from sekali.stores.checksum import row_checksums
from sekali.stores.sqlite_source_rows import fill_sources
from sekali.stores.sqlite_subscriptions import pull_back

APPLICATION_ID = 0x53454B41  # "SEKA"
SCHEMA_VERSION = 3
_ROWS_AT_ONCE = 5000

log = structlog.get_logger("sekali.schema")


def require_ours(connection: apsw.Connection, db_path: Path) -> int:
    """Return the schema version of a file, 0 where it is new.

    Raises:
        StartupError: it is of another program, or of a newer one of ours.
        apsw.Error: it cannot be read.

    """
    application_id = connection.pragma("application_id")
    version: int = connection.pragma("user_version")
    if application_id != APPLICATION_ID and (application_id or version or connection.pragma("schema_version")):
        raise StartupError(f"{db_path} is an SQLite file of another program; choose another DB_PATH")
    if version > SCHEMA_VERSION:
        raise StartupError(
            f"{db_path} has schema {version} and this program knows {SCHEMA_VERSION}: run a newer sekali"
        )
    return version


def make_or_migrate(connection: apsw.Connection) -> None:
    """Bring a file that is ours to the schema of this program, in one transaction.

    Raises:
        apsw.Error: it cannot; the file is as it was.

    """
    version = connection.pragma("user_version")
    if version == SCHEMA_VERSION and connection.execute("SELECT log_id FROM log").get:
        return
    with connection:
        if version == 0:
            for name in ("schema.sql", "schema_subscriptions.sql"):
                _run(connection, name)
            connection.execute("INSERT INTO log (only, log_id) VALUES (1, '')")
            connection.pragma("application_id", APPLICATION_ID)
        elif version < SCHEMA_VERSION:
            log.info("bringing the store to the schema of this program", schema=version, to=SCHEMA_VERSION)
            for step in _STEPS[version - 1 :]:
                step(connection)
        connection.pragma("user_version", SCHEMA_VERSION)
        # A new file and a backup opened for the first time: both begin a log of their own.
        if not connection.execute("SELECT log_id FROM log").get:
            begin_another_log(connection)


def begin_another_log(connection: apsw.Connection) -> None:
    """Give the log another name: positions of readers in what it was are of no use any more.

    Subscriptions stay, but for what they know of events that are not in it.
    """
    connection.execute("UPDATE log SET log_id = ?", (uuid.uuid4().hex,))
    head = connection.execute("SELECT coalesce(max(seq), 0) FROM events").get
    if ahead := pull_back(connection, head):
        log.warning("subscriptions were ahead of the log, and go on from its end", subscriptions=ahead)


def _run(connection: apsw.Connection, name: str) -> None:
    connection.execute(resources.files("sekali.stores").joinpath(name).read_text())


def _add_checksums_and_commits(connection: apsw.Connection) -> None:
    connection.execute("ALTER TABLE log ADD COLUMN commits INTEGER NOT NULL DEFAULT 0")
    connection.execute("ALTER TABLE events ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0")
    seq: Any = 0
    while rows := connection.execute(
        "SELECT e.seq, CAST(t.topic AS BLOB), CAST(e.event_id AS BLOB), e.timestamp_ns, e.processed_at_ns, "
        "CAST(e.source AS BLOB), e.source_seq, e.payload "
        "FROM events e LEFT JOIN topics t ON t.topic_id = e.topic_id WHERE e.seq > ? ORDER BY e.seq LIMIT ?",
        (seq, _ROWS_AT_ONCE),
    ).fetchall():
        columns = [list(column) for column in zip(*filter(_is_whole, rows), strict=True)]
        if columns:
            for place in (1, 2, 5):
                columns[place] = [text.decode() for text in columns[place]]
            checksums = row_checksums(*columns)
            changes = zip(checksums, columns[0], strict=True)
            connection.executemany("UPDATE events SET checksum = ? WHERE seq = ?", changes)
        (seq, *_) = rows[-1]


def _is_whole(row: tuple[Any, ...]) -> bool:
    """Tell whether a row can be read. One that was damaged before keeps a checksum that does not fit."""
    try:
        for place in (1, 2, 5):
            row[place].decode()
    except (UnicodeDecodeError, AttributeError):
        return False
    return jsonvalue.is_readable([row[7]])


def _add_sources(connection: apsw.Connection) -> None:
    connection.execute(
        "CREATE TABLE sources (topic_id INTEGER NOT NULL REFERENCES topics, source TEXT NOT NULL, "
        "numbered INTEGER NOT NULL, unnumbered INTEGER NOT NULL, received INTEGER NOT NULL, ranges INTEGER NOT NULL, "
        "PRIMARY KEY (topic_id, source)) STRICT, WITHOUT ROWID;"
        "CREATE TABLE source_ranges (topic_id INTEGER NOT NULL, source TEXT NOT NULL, first INTEGER NOT NULL, "
        "last INTEGER NOT NULL, PRIMARY KEY (topic_id, source, first)) STRICT, WITHOUT ROWID"
    )
    fill_sources(connection)


def _add_sources_and_subscriptions(connection: apsw.Connection) -> None:
    _add_sources(connection)
    _run(connection, "schema_subscriptions.sql")


# From version 1 to 2, from 2 to 3, …
_STEPS: list[Callable[[apsw.Connection], None]] = [_add_checksums_and_commits, _add_sources_and_subscriptions]
assert len(_STEPS) == SCHEMA_VERSION - 1
