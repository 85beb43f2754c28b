"""Connections to the SQLite file: opened safely, with the settings that a commit rests on.

Durability rests on two settings, set here and read back: the write-ahead log and ``synchronous=FULL``, with which
SQLite syncs the log before a commit returns (https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

from contextlib import suppress
from pathlib import Path

import apsw

from sekali.errors import StartupError, StoreBroken
from sekali.stores.checksum import DAMAGE
from sekali.stores.folder import sync_file
from sekali.stores.sqlite_schema import SCHEMA_VERSION, make_or_migrate, require_ours

SYNCHRONOUS_FULL = 2
BUSY_TIMEOUT_MS = 5000
LOG_BYTES_AT_ONCE = 64 * 1024  # SQLite writes at most 128 KiB at once
# Before 3.51.3 two connections, one writing and one checkpointing, could lose a transaction.
# https://www.sqlite.org/wal.html#walresetbug
SQLITE_VERSION_MIN = 3051003


def open_writer(db_path: Path, vfs: str | None = None, *, may_be_new: bool = True) -> apsw.Connection:
    """Open the one connection that writes, making the file and its schema where there is none.

    Without ``may_be_new`` there has to be a store.

    Raises:
        StartupError: the file is not ours, or newer than this program, or gone, or SQLite is not safe.
        StoreBroken: SQLite cannot open it.

    """
    if apsw.SQLITE_VERSION_NUMBER < SQLITE_VERSION_MIN:
        raise StartupError(f"SQLite {apsw.sqlite_lib_version()} can lose transactions; install apsw 3.51.3 or later")
    try:
        _write_log_again(db_path, vfs)
        connection = apsw.Connection(str(db_path), vfs=vfs)
    except apsw.Error as error:
        raise StoreBroken(f"cannot open {db_path}: {error}") from error
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        if require_ours(connection, db_path) == 0 and not may_be_new:
            raise StartupError(
                f"there is no store at {db_path}, and there was one, as the high-water mark beside it tells: put the "
                "file back, together with the one that ends in -wal, or restore a backup; to begin an empty log "
                "instead, start with --accept-lost-tail"
            )
        _make_durable(connection)
        make_or_migrate(connection)
        sync_file(db_path.parent)  # SQLite does too, and takes no notice where that fails
    except (apsw.Error, OSError, *DAMAGE) as error:
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
    try:
        connection.pragma("synchronous", "full")
        connection.wal_autocheckpoint(0)
    except apsw.Error:
        close_quietly(connection)
        raise
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
        version = require_ours(connection, db_path)
        if version == 0:
            raise StoreBroken(f"{db_path} is not a Sekali store")
        if version < SCHEMA_VERSION:
            raise StoreBroken(
                f"{db_path} has schema {version}, and this program reads {SCHEMA_VERSION}: run sekali serve on it "
                "once, which brings it up to date"
            )
    except (apsw.Error, StartupError) as error:
        close_quietly(connection)
        raise StoreBroken(f"cannot open {db_path}: {error}") from error
    return connection


def close_quietly(connection: apsw.Connection) -> None:
    """Close a connection that may be in any state."""
    with suppress(apsw.Error):
        connection.close(True)


def _write_log_again(db_path: Path, vfs: str | None) -> None:
    """Write the write-ahead log over with itself, and sync it.

    A sync that fails leaves pages in memory that Linux takes for written: the next sync says that all is well, and is
    wrong (https://wiki.postgresql.org/wiki/Fsync_Errors). What we read from the log, and build on, may be such pages.
    """
    path = db_path.with_name(db_path.name + "-wal")
    if not path.exists():
        return
    file = apsw.VFSFile(vfs or "", str(path), [apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_WAL, 0])
    try:
        size = file.xFileSize()
        for offset in range(0, size, LOG_BYTES_AT_ONCE):
            file.xWrite(file.xRead(min(LOG_BYTES_AT_ONCE, size - offset), offset), offset)
        if size:
            file.xSync(apsw.SQLITE_SYNC_FULL)
    finally:
        file.xClose()


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
