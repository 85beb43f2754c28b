"""What outbox and inbox need of a database, over the connections that an application has: sqlite3, apsw, psycopg 3.

No driver is imported for a connection that is not of it.
"""

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from sekali.client.background import no_fork
from sekali.client.errors import NoTransaction

BUSY_S = 30.0
_BUSY_ATTEMPT_S = 0.1
_BUSY_PAUSE_S = 0.005
_SQLITE_BUSY = 5
_TABLE = re.compile(r"[a-z_][a-z0-9_]{0,47}(\.[a-z_][a-z0-9_]{0,47})?")
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Dialect:
    """Where the two languages differ. Times are written by the database, so that only its clock counts."""

    identity: str
    time_type: str
    now: str
    ago: str  # a time so many seconds ago, as a parameter
    event_bytes: str
    skip_locked: str
    table_end: str


SQLITE = Dialect(
    identity="INTEGER PRIMARY KEY AUTOINCREMENT",  # never gives a number twice, also after the newest row is deleted
    time_type="TEXT",
    now="(strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))",
    ago="strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-' || ? || ' seconds')",
    event_bytes="length(CAST(event AS BLOB))",
    skip_locked="",
    table_end=" WITHOUT ROWID",
)
POSTGRESQL = Dialect(
    identity="bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    time_type="timestamptz",
    now="clock_timestamp()",
    ago="clock_timestamp() - make_interval(secs => ?)",
    event_bytes="octet_length(event)",
    skip_locked=" FOR UPDATE SKIP LOCKED",
    table_end="",
)


def check_table(name: str) -> str:
    """Return a table's name, which may have a schema before it.

    Raises:
        ValueError: it is more than lower-case letters, digits and underscores.

    """
    if not _TABLE.fullmatch(name):
        raise ValueError(f"{name!r} is no name for the table; write one such as sekali_outbox or shop.sekali_outbox")
    return name


class Database(ABC):
    """A connection of one of the drivers, used in one way: ``?`` for parameters, tuples for rows."""

    dialect: Dialect

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @abstractmethod
    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Execute a statement and return all of its rows."""

    @abstractmethod
    def begin(self) -> None:
        """Begin a transaction that writes."""

    @abstractmethod
    def commit(self) -> None:
        """Commit it."""

    @abstractmethod
    def rollback(self) -> None:
        """Roll it back, if there is one."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    @abstractmethod
    def require_transaction(self) -> None:
        """Make sure that what is executed next is part of a transaction of the application's.

        Raises:
            NoTransaction: it would be one by itself.

        """

    @abstractmethod
    def take_over(self) -> None:
        """Make this a connection of ours alone, whose transactions are begun and ended here."""


class _Sqlite(Database):
    """What the two SQLite libraries have in common."""

    dialect = SQLITE

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._is_ours = False

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        if not self._is_ours:
            return self._execute(sql, parameters)
        deadline_s = time.monotonic() + BUSY_S
        while True:  # the wait for other writers is cut into pieces, between which a fork can come
            try:
                with no_fork:
                    return self._execute(sql, parameters)
            except Exception as error:
                if not self._is_busy(error) or time.monotonic() > deadline_s:
                    raise
            time.sleep(_BUSY_PAUSE_S)

    @abstractmethod
    def _execute(self, sql: str, parameters: Sequence[Any]) -> list[Row]:
        """Execute a statement once."""

    @abstractmethod
    def _is_busy(self, error: Exception) -> bool:
        """Tell whether a statement did nothing because another connection has a lock."""

    def take_over(self) -> None:
        self._is_ours = True
        self.rows(f"PRAGMA busy_timeout = {round(_BUSY_ATTEMPT_S * 1000)}")

    def begin(self) -> None:
        self.rows("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self.rows("COMMIT")

    def rollback(self) -> None:
        if self._connection.in_transaction:
            self.rows("ROLLBACK")

    def close(self) -> None:
        """End the transaction, then close the connection.

        The connection lives on, with its locks, as long as anything refers to one of its statements; the traceback of
        an exception does, for instance.
        """
        with suppress(Exception):  # it may be broken
            self.rollback()
        with no_fork:
            self._connection.close()


class _Sqlite3(_Sqlite):
    """The standard library's."""

    def _execute(self, sql: str, parameters: Sequence[Any]) -> list[Row]:
        with closing(self._connection.cursor()) as cursor:
            cursor.row_factory = None  # not the connection's, which may make anything of a row
            return list(cursor.execute(sql, parameters).fetchall())

    def require_transaction(self) -> None:
        # Before Python 3.12 there is no such attribute; -1 is its value for the old way, with an isolation_level.
        begins_by_itself = (
            getattr(self._connection, "autocommit", -1) == -1 and self._connection.isolation_level is not None
        )
        if not self._connection.in_transaction and not begins_by_itself:
            raise NoTransaction("the connection is in autocommit mode; execute BEGIN first")

    def take_over(self) -> None:
        if getattr(self._connection, "autocommit", -1) != -1:
            self._connection.autocommit = True
        else:
            self._connection.isolation_level = None
        super().take_over()

    def _is_busy(self, error: Exception) -> bool:
        return getattr(error, "sqlite_errorcode", 0) & 0xFF == _SQLITE_BUSY


class _Apsw(_Sqlite):
    """Every statement is a transaction of its own, unless one was begun."""

    def _execute(self, sql: str, parameters: Sequence[Any]) -> list[Row]:
        cursor = self._connection.cursor()
        if self._connection.row_trace is not None:
            cursor.row_trace = lambda _, row: row
        return list(cursor.execute(sql, tuple(parameters)).fetchall())

    def require_transaction(self) -> None:
        if not self._connection.in_transaction:
            raise NoTransaction("no transaction is open; begin one: with connection: …")

    def _is_busy(self, error: Exception) -> bool:
        return getattr(error, "result", 0) == _SQLITE_BUSY


class _Psycopg(Database):
    """PostgreSQL."""

    dialect = POSTGRESQL

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        from psycopg.rows import tuple_row  # noqa: PLC0415 - whoever has such a connection has psycopg

        with self._connection.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(sql.replace("?", "%s"), tuple(parameters))
            return cursor.fetchall() if cursor.description is not None else []

    def require_transaction(self) -> None:
        if self._connection.autocommit and self._connection.info.transaction_status.name == "IDLE":
            raise NoTransaction("the connection is in autocommit mode; use: with connection.transaction(): …")

    def take_over(self) -> None:
        self._connection.autocommit = False

    def begin(self) -> None:
        """Nothing to do: the next statement begins one."""

    def commit(self) -> None:
        self._connection.commit()

    def rollback(self) -> None:
        self._connection.rollback()

    def close(self) -> None:
        self._connection.close()


_DRIVERS: dict[tuple[str, str], type[Database]] = {
    ("sqlite3", "Connection"): _Sqlite3,
    ("apsw", "Connection"): _Apsw,
    ("psycopg", "Connection"): _Psycopg,
}


def database_of(connection: Any) -> Database:
    """Return a connection in the one way that is used here.

    Raises:
        TypeError: it is of no driver that is known.

    """
    for kind in type(connection).__mro__:
        driver = _DRIVERS.get((kind.__module__, kind.__name__))
        if driver is not None:
            return driver(connection)
    found = f"{type(connection).__module__}.{type(connection).__qualname__}"
    raise TypeError(f"a connection of sqlite3, apsw or psycopg (3, not asynchronous) is needed, not {found}")
