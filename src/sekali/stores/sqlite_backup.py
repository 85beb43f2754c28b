"""A consistent copy of a store while a server writes to it, and such a copy put in the place of a store."""

import shutil
from contextlib import suppress
from pathlib import Path

import apsw

from sekali.errors import StoreBroken
from sekali.stores.folder import FolderLock, make_folder, sync_file
from sekali.stores.sqlite_audit import Progress, audit_file
from sekali.stores.sqlite_file import close_quietly, open_reader, open_writer
from sekali.stores.sqlite_schema import require_ours


def backup(db_path: Path, target: Path, progress: Progress) -> int:
    """Copy a store to a new file, check the copy through, and return its size in bytes.

    The copy is what one moment held. It is complete and durable before it gets its name, and begins a log of its own
    (a new ``log_id``) when it is opened as a store.

    Raises:
        StoreBroken: the store cannot be read, the copy cannot be written, or what was copied is damaged; nothing is
            left at ``target``.

    """
    if not db_path.is_file():
        raise StoreBroken(f"there is no store at {db_path}; name it with --db-path or DB_PATH")
    if target.exists():
        raise StoreBroken(f"{target} exists already; choose another name, or remove it first")
    partial = target.with_name(target.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        _copy(db_path, partial)
        _require_clean(partial, f"{db_path} is damaged, and so is the copy", progress)
        sync_file(partial)
        partial.rename(target)
        sync_file(target.parent)
    except (OSError, apsw.Error) as error:
        raise StoreBroken(f"cannot back up {db_path} to {target}: {error}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return target.stat().st_size


def restore(copy: Path, db_path: Path, progress: Progress, *, replace: bool = False) -> int:
    """Put a copy that ``backup`` made in the place of a store that no server has open, and return its size in bytes.

    The copy stays where it is. The store begins a log of its own: positions of readers in the old one are answered 410.
    If it is interrupted, the store is the old one, or it is refused until this is done again.

    Raises:
        StartupError: a server has the store open, or its folder cannot be written to.
        StoreBroken: there is a store and it may not be replaced; or the copy is damaged, or none that ``backup`` made.

    """
    if not copy.is_file():
        raise StoreBroken(f"there is no file {copy}")
    db_path = db_path.resolve()
    make_folder(db_path)
    lock = FolderLock(db_path)
    partial = db_path.with_name(db_path.name + ".partial")
    try:
        if db_path.exists() and not replace:
            raise StoreBroken(f"there is a store at {db_path}; to put the copy in its place, add --replace")
        shutil.copyfile(copy, partial)
        _begin_log(partial, copy)
        _require_clean(partial, f"{copy} is damaged", progress)
        sync_file(partial)
        # The write-ahead log first: to the new file it would be an old one, and SQLite could not tell.
        for ending in ("-wal", "-shm"):
            db_path.with_name(db_path.name + ending).unlink(missing_ok=True)
        sync_file(db_path.parent)
        partial.rename(db_path)
        sync_file(db_path.parent)
    except (OSError, apsw.Error) as error:
        raise StoreBroken(f"cannot restore {copy} to {db_path}: {error}") from error
    finally:
        for ending in ("", "-wal", "-shm"):
            with suppress(OSError):
                partial.with_name(partial.name + ending).unlink(missing_ok=True)
        lock.release()
    return db_path.stat().st_size


def _copy(db_path: Path, partial: Path) -> None:
    source = open_reader(db_path)
    try:
        source.execute("VACUUM INTO ?", (str(partial),))
    finally:
        close_quietly(source)
    copy = apsw.Connection(str(partial))
    try:
        copy.execute("UPDATE log SET log_id = ''")
    finally:
        close_quietly(copy)


def _begin_log(partial: Path, copy: Path) -> None:
    """Make a store of a copy: with a name of its own for its log, and the schema of this program."""
    connection = apsw.Connection(str(partial))
    try:
        require_ours(connection, copy)
        if connection.execute("SELECT log_id FROM log").get:
            raise StoreBroken(f"{copy} was not made by sekali backup; make one of the store that it is of")
    finally:
        close_quietly(connection)
    close_quietly(open_writer(partial))


def _require_clean(path: Path, otherwise: str, progress: Progress) -> None:
    for check in audit_file(path, progress).checks:
        if not check.ok:
            raise StoreBroken(f"{otherwise}; this does not hold: {check.name} ({check.failures[0]})")
