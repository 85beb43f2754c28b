"""One relay at a time sends from an outbox, so that the events of a topic keep their order; the others stand by.

Whoever dies gives its turn back at once: both kinds of lock are the kernel's or the database's, and end with their
holder. There is no lease to run out too early or too late.
"""

import fcntl
import os
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any

from sekali.client.sql import POSTGRESQL, Database


class Turn(ABC):
    """The right to send from one outbox."""

    @abstractmethod
    def take(self) -> bool:
        """Take the turn if nobody else has it, and tell whether it is ours."""

    def close(self) -> None:
        """Give it back."""
        # Where it is not over with the transaction, there is something to do.
        return


class AdvisoryTurn(Turn):
    """PostgreSQL: a lock for the length of the transaction."""

    def __init__(self, database: Database, table: str) -> None:
        self._database = database
        self._table = table

    def take(self) -> bool:
        sql = "SELECT pg_try_advisory_xact_lock(hashtextextended('sekali outbox ' || ?::regclass::oid, 0))"
        return bool(self._database.rows(sql, (self._table,))[0][0])


class FileTurn(Turn):
    """SQLite: a lock on a file beside the database.

    Not on the database itself: to open and close that anywhere in the process would drop the locks of SQLite. And not
    in it: a process that dies would leave its mark there.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1
        self._is_ours = False

    def take(self) -> bool:
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not self._is_ours:
            with suppress(BlockingIOError):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._is_ours = True
        return self._is_ours

    def close(self) -> None:
        """Give it back. In a child of a fork: only let go of it, because the parent keeps it as long as it lives."""
        descriptor, self._descriptor, self._is_ours = self._descriptor, -1, False
        if descriptor >= 0:
            os.close(descriptor)


class NoTurn(Turn):
    """A database that no other process can see."""

    def take(self) -> bool:
        return True


def turn_of(database: Database, table: str) -> Turn:
    """Return the lock on an outbox."""
    if database.dialect is POSTGRESQL:
        return AdvisoryTurn(database, table)
    schema, _, name = table.rpartition(".")
    files: dict[Any, Any] = {row[1]: row[2] for row in database.rows("PRAGMA database_list")}
    path = files.get(schema or "main")
    return FileTurn(f"{path}.{name}.lock") if path else NoTurn()
