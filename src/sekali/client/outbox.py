"""The outbox: events written into the application's own transaction, for a relay to send.

The row of the business and the event exist together or not at all. A row is deleted when its event is in the log, or
marked when the server will never take it. Nothing remembers "sent up to here": transactions do not commit in the order
of their numbers, and what commits late would be passed by.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sekali.client.delivery import Verdict
from sekali.client.events import Event
from sekali.client.sql import POSTGRESQL, Database, check_table, database_of

PENDING, FAILED = "pending", "failed"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A row that is to be sent. ``event`` is the JSON."""

    row_id: int
    topic: str
    event_id: str
    event: bytes


Settled = list[tuple[Waiting, Verdict]]


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """An event that the server will not take. ``error`` is its verdict, in words."""

    row_id: int
    event: Event
    error: str


class Outbox:
    """A table of events in a database of the application's.

    Every method takes a connection of sqlite3, apsw or psycopg, and none commits: they are part of the application's
    transaction.

    Args:
        table: its name in lower case, perhaps with a schema before it.

    Raises:
        ValueError: that is no name.

    """

    def __init__(self, table: str = "sekali_outbox") -> None:
        self.table = check_table(table)

    def create_table(self, connection: Any) -> None:
        """Create the table and its index where they are missing. For a migration, or for the start of a program."""
        database = database_of(connection)
        dialect = database.dialect
        schema, _, name = self.table.rpartition(".")
        index, table = f"{name}_pending", self.table
        if schema and dialect is not POSTGRESQL:  # each of the two wants the schema in another place
            index, table = f"{schema}.{index}", name
        database.rows(
            f"CREATE TABLE IF NOT EXISTS {self.table} (id {dialect.identity}, topic text NOT NULL, "
            f"event_id text NOT NULL, event text NOT NULL, state text NOT NULL DEFAULT '{PENDING}', error text, "
            f"added_at {dialect.time_type} NOT NULL DEFAULT {dialect.now})"
        )
        database.rows(f"CREATE INDEX IF NOT EXISTS {index} ON {table} (id) WHERE state = '{PENDING}'")

    def add(self, connection: Any, event: Event) -> int:
        """Write an event into the transaction that is open, and return the number of its row.

        Raises:
            NoTransaction: none is open, and the connection would not begin one by itself.

        """
        database = database_of(connection)
        database.require_transaction()
        return self.insert(database, event)

    def pending(self, connection: Any) -> int:
        """Return how many events wait to be sent."""
        sql = f"SELECT count(*) FROM {self.table} WHERE state = '{PENDING}'"
        return int(database_of(connection).rows(sql)[0][0])

    def failed(self, connection: Any, limit: int = 100) -> list[FailedEvent]:
        """Return the first events that the server will not take."""
        sql = f"SELECT id, topic, event_id, event, error FROM {self.table} WHERE state = '{FAILED}' ORDER BY id LIMIT ?"
        return [
            FailedEvent(row_id, Event(topic, event_id, event.encode()), error)
            for row_id, topic, event_id, event, error in database_of(connection).rows(sql, (limit,))
        ]

    def retry(self, connection: Any, row_ids: Iterable[int]) -> None:
        """Let failed events be sent once more, for when the cause was on the server: a key without the topic, say."""
        _each(
            database_of(connection),
            f"UPDATE {self.table} SET state = '{PENDING}', error = NULL WHERE state = '{FAILED}' AND id IN ",
            row_ids,
        )

    def discard(self, connection: Any, row_ids: Iterable[int]) -> None:
        """Delete failed events."""
        _each(database_of(connection), f"DELETE FROM {self.table} WHERE state = '{FAILED}' AND id IN ", row_ids)

    # What follows is for the relay and for the publisher with an outbox of its own.

    def insert(self, database: Database, event: Event) -> int:
        """Write an event and return the number of its row."""
        sql = f"INSERT INTO {self.table} (topic, event_id, event) VALUES (?, ?, ?) RETURNING id"
        return int(database.rows(sql, (event.topic, event.event_id, event.json.decode()))[0][0])

    def claim(self, database: Database, events_max: int, bytes_max: int) -> list[Waiting]:
        """Return the next events to send, in the order of their numbers; a larger one than ``bytes_max`` alone.

        In PostgreSQL they stay locked until the transaction ends, and what others have locked is left out.
        """
        dialect = database.dialect
        sizes = database.rows(
            f"SELECT id, {dialect.event_bytes} FROM {self.table} WHERE state = '{PENDING}' ORDER BY id LIMIT ?"
            f"{dialect.skip_locked}",
            (events_max,),
        )
        ids: list[int] = []
        for row_id, size_bytes in sizes:
            bytes_max -= size_bytes + 1
            if ids and bytes_max < 0:
                break
            ids.append(row_id)
        if not ids:
            return []
        rows = database.rows(
            f"SELECT id, topic, event_id, event FROM {self.table} WHERE id IN {_places(ids)} ORDER BY id", ids
        )
        return [Waiting(row_id, topic, event_id, event.encode()) for row_id, topic, event_id, event in rows]

    def settle(self, database: Database, settled: Settled) -> None:
        """Delete what is in the log, and mark what never will be."""
        delivered: list[int] = []
        for row, verdict in settled:
            if verdict.ok:
                delivered.append(row.row_id)
            else:
                sql = f"UPDATE {self.table} SET state = '{FAILED}', error = ? WHERE id = ?"
                database.rows(sql, (str(verdict), row.row_id))
        _each(database, f"DELETE FROM {self.table} WHERE id IN ", delivered)

    def newest(self, database: Database) -> int:
        """Return the number of the newest row that is to be sent, 0 if there is none."""
        sql = f"SELECT max(id) FROM {self.table} WHERE state = '{PENDING}'"
        return int(database.rows(sql)[0][0] or 0)

    def is_sent_to(self, database: Database, row_id: int) -> bool:
        """Tell whether no row up to this number is to be sent any more."""
        sql = f"SELECT 1 FROM {self.table} WHERE state = '{PENDING}' AND id <= ? LIMIT 1"
        return not database.rows(sql, (row_id,))

    def left_of(self, database: Database, row_ids: list[int]) -> dict[int, str | None]:
        """Return those of these rows that are still there, with their error, which is None if they are to be sent."""
        sql = f"SELECT id, error FROM {self.table} WHERE id IN {_places(row_ids)}"
        return {row[0]: row[1] for row in database.rows(sql, row_ids)}


def _places(ids: list[int]) -> str:
    return f"({', '.join('?' * len(ids))})"


def _each(database: Database, sql: str, row_ids: Iterable[int]) -> None:
    ids = list(row_ids)
    for start in range(0, len(ids), 500):  # SQLite allows 999 parameters in its older versions
        part = ids[start : start + 500]
        database.rows(sql + _places(part), part)
