"""An outbox in an SQLite file of its own, for a publisher whose events have to outlive its process."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from sekali.client.background import leave_to_the_parent, no_fork
from sekali.client.delivery import DELIVERED, Delivery, Verdict
from sekali.client.errors import BufferFull, OutboxFailed, Unreachable
from sekali.client.outbox import Outbox, Settled
from sekali.client.sending import Entry
from sekali.client.sql import BUSY_S, Database, database_of

if TYPE_CHECKING:
    import sqlite3  # otherwise only where a file is opened: a program without an outbox does without

BYTES_MAX = 1024 * 1024 * 1024
WAL_BYTES_MAX = 4 * 1024 * 1024
LOOK_UP_MAX = 500
_SYNCHRONOUS_FULL = 2


_open: "WeakKeyDictionary[sqlite3.Connection, Path]" = WeakKeyDictionary()
_of_parent: set[Path] = set()


@cache
def _tracked_connection() -> "type[sqlite3.Connection]":
    import sqlite3  # noqa: PLC0415

    class Connection(sqlite3.Connection):
        def __init__(self, path: Path, **options: Any) -> None:
            _open[self] = path
            super().__init__(path, **options)

        def close(self) -> None:
            super().close()
            _open.pop(self, None)

    return Connection


def _after_fork() -> None:
    """Remember what was open at the fork.

    SQLite keeps what it knows of a file's locks for all connections of a process together. A child inherits that, but
    not the locks: with the next connection to the file it would wait for itself, or write where it may not.
    """
    for connection, path in list(_open.items()):
        _of_parent.add(path)
        leave_to_the_parent(connection)


os.register_at_fork(after_in_child=_after_fork)


class OutboxFile:
    """An SQLite file that holds an outbox and nothing else. Several processes may share it, on one machine.

    Args:
        path: the file; its folder must exist, on a local disk.
        bytes_max: how large it gets; beyond, it is full, as a disk is.

    """

    def __init__(self, path: str | os.PathLike[str], *, bytes_max: int = BYTES_MAX) -> None:
        self.path = Path(path).absolute()
        self.outbox = Outbox()
        self.bytes_max = bytes_max

    def open(self) -> "sqlite3.Connection":
        """Open a connection, for this thread. Its statements commit by themselves unless a transaction is begun.

        Raises:
            OutboxFailed: SQLite cannot open it, or cannot make commits durable.

        """
        import sqlite3  # noqa: PLC0415

        if self.path in _of_parent:
            raise OutboxFailed(f"{self.path} was open when this process was forked, and SQLite cannot open it safely")
        with no_fork:
            try:
                connection = sqlite3.connect(
                    self.path, timeout=BUSY_S, isolation_level=None, factory=_tracked_connection()
                )
                try:
                    self._configure(connection)
                except BaseException:
                    connection.close()
                    raise
            except sqlite3.Error as error:
                raise OutboxFailed(f"cannot open the outbox {self.path}: {error}") from error
        return connection

    def _configure(self, connection: "sqlite3.Connection") -> None:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 0"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        found = (_pragma(connection, "journal_mode"), _pragma(connection, "synchronous"))
        if found != ("wal", _SYNCHRONOUS_FULL):
            raise OutboxFailed(f"{self.path}: SQLite does not make commits durable here: {found}")

    def open_limited(self) -> "sqlite3.Connection":
        """Open a connection that cannot make the file larger than ``bytes_max``. Raises as ``open`` does."""
        connection = self.open()
        with no_fork:
            pages_max = max(1, self.bytes_max // _pragma(connection, "page_size"))
            connection.execute(f"PRAGMA max_page_count = {pages_max}").fetchall()
        return connection

    def prepare(self) -> None:
        """Make the file and its table where they are missing.

        Raises:
            OutboxFailed: that is not possible.

        """
        try:
            # SQLite does not wait while another process changes the journal mode of a new file.
            descriptor = os.open(f"{self.path}.setup", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise OutboxFailed(f"cannot make the outbox {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            connection = self.open()
            with no_fork, closing(connection):
                self.outbox.create_table(connection)
        finally:
            os.close(descriptor)

    def shorten_log(self, database: Database) -> None:
        """Copy the write-ahead log into the file once it is long.

        Always with the writers kept out (TRUNCATE), and nowhere else: SQLite before 3.51.3, which many Pythons have,
        can lose a transaction that commits during a checkpoint (https://www.sqlite.org/wal.html#walresetbug).
        """
        with suppress(Exception):  # what is committed is committed, and there is a next time
            if self.path.with_name(self.path.name + "-wal").stat().st_size > WAL_BYTES_MAX:
                database.rows("PRAGMA wal_checkpoint(TRUNCATE)")


def _pragma(connection: "sqlite3.Connection", name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


class FileDesk:
    """Where a publisher leaves its events for the relay: writes them, and remembers who waits for which row.

    Args:
        file: the outbox.
        waits_when_full: whether a full file is waited for rather than an error.

    """

    def __init__(self, file: OutboxFile, *, waits_when_full: bool) -> None:
        self._file = file
        self._waits_when_full = waits_when_full
        self.on_written: Callable[[], object] = lambda: None
        """Called after each commit."""
        self._lock = Lock()
        self._deliveries: WeakValueDictionary[int, Delivery] = WeakValueDictionary()  # by row
        self._database: Database | None = None

    def send(self, batch: list[Entry]) -> Iterator[tuple[list[Entry], None]]:
        """Commit a batch to the file, all or nothing.

        Raises:
            Unreachable: the file is full, and that is waited for.
            BufferFull: it is full.
            OutboxFailed: the disk failed. Some of it may be there.

        """
        import sqlite3  # noqa: PLC0415

        row_ids: list[int] = []
        try:
            database = self._database = self._database or self._open()
            database.begin()
            for entry in batch:
                row_ids.append(self._file.outbox.insert(database, entry.of))
                with self._lock:  # before the relay can see the row
                    self._deliveries[row_ids[-1]] = entry.delivery
            database.commit()
            self._file.shorten_log(database)
        except sqlite3.Error as error:
            for row_id in row_ids:
                self._take(row_id)
            self.close()  # rolls back; what the file is like now, the next connection finds out
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_FULL:
                raise OutboxFailed(f"cannot write to the outbox {self._file.path}: {error}") from error
            full = f"the outbox {self._file.path} is full: {error}"
            raise Unreachable(full) if self._waits_when_full else BufferFull(full) from error
        self.on_written()
        yield batch, None

    def close(self) -> None:
        """Close the connection, on the thread that sent."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _open(self) -> Database:
        database = database_of(self._file.open_limited())
        database.take_over()
        return database

    def settle(self, database: Database, settled: Settled) -> None:
        """Tell those who wait for these rows."""
        for row, verdict in settled:
            self._tell(row.row_id, verdict)
        self._file.shorten_log(database)

    def look_up(self, database: Database) -> None:
        """Tell those who wait for rows that another process has settled."""
        with self._lock:
            row_ids = list(self._deliveries)
        for start in range(0, len(row_ids), LOOK_UP_MAX):
            part = row_ids[start : start + LOOK_UP_MAX]
            left = self._file.outbox.left_of(database, part)
            for row_id in part:
                if row_id not in left:
                    self._tell(row_id, Verdict(DELIVERED))
                elif (error := left[row_id]) is not None:
                    self._tell(row_id, Verdict(error.partition(":")[0], None, error))

    def _tell(self, row_id: int, verdict: Verdict) -> None:
        delivery = self._take(row_id)
        if delivery is not None:
            delivery.settle(verdict)

    def _take(self, row_id: int) -> Delivery | None:
        with self._lock:
            return self._deliveries.pop(row_id, None)
