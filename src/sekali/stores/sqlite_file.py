"""Connections to the SQLite file: opened safely, with the settings that a commit rests on.

Durability rests on two settings, set here and read back: the write-ahead log and ``synchronous=FULL``, with which
SQLite syncs the log before a commit returns (https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

from contextlib import suppress
from pathlib import Path

import apsw

from sekali.errors import StartupError, StoreBroken
from sekali.stores.sqlite_schema import SCHEMA_VERSION, make_or_migrate, require_ours

SYNCHRONOUS_FULL = 2
BUSY_TIMEOUT_MS = 5000
# Before 3.51.3 two connections, one writing and one checkpointing, could lose a transaction.
# https://www.sqlite.org/wal.html#walresetbug
SQLITE_VERSION_MIN = 3051003
_COPY_BYTES = 64 * 1024  # SQLite's own VFS takes less than 128 KiB at a time


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
        _make_log_durable(db_path, vfs)
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


def _make_log_durable(db_path: Path, vfs: str | None) -> None:
    """Write the write-ahead log over itself, and sync it: what can be read of it may not be on the disk.

    After a sync that failed Linux takes the pages for clean, so that no later sync writes them, and goes on showing
    them (https://wiki.postgresql.org/wiki/Fsync_Errors). SQLite would find the commit that failed, and put the next
    ones behind it; a power cut would then take all of them.
    """
    path = db_path.with_name(db_path.name + "-wal")
    if not path.is_file():
        return
    file = apsw.VFSFile(vfs or "", str(path), [apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READWRITE, 0])
    try:
        size = file.xFileSize()
        for start in range(0, size, _COPY_BYTES):
            file.xWrite(file.xRead(min(_COPY_BYTES, size - start), start), start)
        file.xSync(apsw.SQLITE_SYNC_NORMAL)
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
