"""The SQLite file: opened safely, locked against a second server, its schema made or refused.

Durability rests on two settings, set here and read back: the write-ahead log and ``synchronous=FULL``, with which
SQLite syncs the log before a commit returns (https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

import fcntl
import os
import uuid
from contextlib import suppress
from importlib import resources
from pathlib import Path

import apsw

from sekali.errors import StartupError, StoreBroken

APPLICATION_ID = 0x53454B41  # "SEKA"
SCHEMA_VERSION = 1
SYNCHRONOUS_FULL = 2
BUSY_TIMEOUT_MS = 5000
# Before 3.51.3 two connections, one writing and one checkpointing, could lose a transaction.
# https://www.sqlite.org/wal.html#walresetbug
SQLITE_VERSION_MIN = 3051003


class FolderLock:
    """Holds ``<db_path>.lock`` for the life of a server: two writers on one file would give out the same seqs.

    A file of its own, because closing any descriptor of the database itself would drop SQLite's own locks.
    """

    def __init__(self, db_path: Path) -> None:
        self.path = db_path.with_name(db_path.name + ".lock")
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StartupError(f"cannot open the lock {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise StartupError(
                f"{db_path} is in use by another sekali process; stop it first, or choose another DB_PATH"
            ) from None

    def release(self) -> None:
        """Let the next server in. May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def index_folder(db_path: Path) -> Path:
    """Return the folder of the dedup index of a store."""
    return db_path.with_name(db_path.name + ".index")


def make_folder(db_path: Path) -> None:
    """Make the folder of the store.

    Raises:
        StartupError: it cannot be made or written to.

    """
    try:
        db_path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(
            f"cannot make the folder {db_path.parent}: {error.strerror}; choose another DB_PATH"
        ) from None
    if not os.access(db_path.parent, os.W_OK):
        raise StartupError(f"the folder {db_path.parent} cannot be written to; choose another DB_PATH or its owner")


def open_writer(db_path: Path, vfs: str | None = None) -> apsw.Connection:
    """Open the one connection that writes, making the file and its schema where there is none.

    Raises:
        StartupError: the file is not ours, or newer than this program, or SQLite is not safe.
        StoreBroken: SQLite cannot open it.

    """
    if apsw.SQLITE_VERSION_NUMBER < SQLITE_VERSION_MIN:
        raise StartupError(f"SQLite {apsw.sqlite_lib_version()} can lose transactions; install apsw 3.51.3 or later")
    try:
        connection = apsw.Connection(str(db_path), vfs=vfs)
    except apsw.Error as error:
        raise StoreBroken(f"cannot open {db_path}: {error}") from error
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        _require_ours(connection, db_path)
        _make_durable(connection)
        with connection:
            _make_schema(connection)
    except apsw.Error as error:
        close_quietly(connection)
        raise StoreBroken(f"cannot open {db_path}: {error}") from error
    except StartupError:
        close_quietly(connection)
        raise
    return connection


def open_checkpointer(db_path: Path, vfs: str | None = None) -> apsw.Connection:
    """Open a connection for checkpoints only, beside a writer.

    Raises:
        apsw.Error: SQLite cannot open it.

    """
    connection = apsw.Connection(str(db_path), flags=apsw.SQLITE_OPEN_READWRITE, vfs=vfs)
    connection.pragma("synchronous", "full")
    connection.wal_autocheckpoint(0)
    return connection


def open_reader(db_path: Path, vfs: str | None = None) -> apsw.Connection:
    """Open a connection that only reads and never checkpoints.

    Raises:
        StoreBroken: there is no such store, or SQLite cannot open it.

    """
    try:
        connection = apsw.Connection(str(db_path), flags=apsw.SQLITE_OPEN_READONLY, vfs=vfs)
    except apsw.Error as error:
        raise StoreBroken(f"cannot open {db_path}: {error}") from error
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        _require_ours(connection, db_path)
        if connection.pragma("user_version") == 0:
            raise StoreBroken(f"{db_path} is not a Sekali store")
    except (apsw.Error, StartupError) as error:
        close_quietly(connection)
        raise StoreBroken(f"cannot open {db_path}: {error}") from error
    return connection


def close_quietly(connection: apsw.Connection) -> None:
    """Close a connection that may be in any state."""
    with suppress(apsw.Error):
        connection.close(True)


def sync_file(path: Path) -> None:
    """Make a file, or the entries of a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_ours(connection: apsw.Connection, db_path: Path) -> None:
    application_id = connection.pragma("application_id")
    version = connection.pragma("user_version")
    if application_id != APPLICATION_ID and (application_id or version or connection.pragma("schema_version")):
        raise StartupError(f"{db_path} is an SQLite file of another program; choose another DB_PATH")
    if version > SCHEMA_VERSION:
        raise StartupError(
            f"{db_path} has schema {version} and this program knows {SCHEMA_VERSION}: run a newer sekali"
        )


def _make_durable(connection: apsw.Connection) -> None:
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "full")
    connection.pragma("foreign_keys", "off")  # the writer keeps them; verify checks them
    connection.pragma("trusted_schema", "off")
    connection.pragma("mmap_size", 0)  # an I/O error would become a signal
    journal_mode, synchronous = connection.pragma("journal_mode"), connection.pragma("synchronous")
    if journal_mode != "wal" or synchronous != SYNCHRONOUS_FULL:
        raise StartupError(
            f"SQLite did not take the settings that make a commit durable (journal_mode={journal_mode}, "
            f"synchronous={synchronous}); is the store on a network file system? choose a local DB_PATH"
        )


def _make_schema(connection: apsw.Connection) -> None:
    if connection.pragma("user_version") == 0:
        schema = resources.files("sekali.stores").joinpath("schema.sql").read_text()
        connection.execute(schema)
        connection.execute("INSERT INTO log (only, log_id) VALUES (1, '')")
        connection.pragma("application_id", APPLICATION_ID)
        connection.pragma("user_version", SCHEMA_VERSION)
    # A new file and a backup opened for the first time: both begin a log of their own.
    connection.execute("UPDATE log SET log_id = ? WHERE log_id = ''", (uuid.uuid4().hex,))
