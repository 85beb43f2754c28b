"""A consistent copy of a store while a server writes to it."""

from contextlib import suppress
from pathlib import Path

import apsw

from sekali.errors import StoreBroken
from sekali.stores.folder import sync_file
from sekali.stores.sqlite_file import close_quietly, open_reader


def backup(db_path: Path, target: Path) -> int:
    """Copy a store to a new file and return the copy's size in bytes.

    The copy is what one moment held. It is complete and durable before it gets its name, and begins a log of its own
    (a new ``log_id``) when it is opened as a store.

    Raises:
        StoreBroken: the store cannot be read, or the copy cannot be written; nothing is left at ``target``.

    """
    if not db_path.is_file():
        raise StoreBroken(f"there is no store at {db_path}; name it with --db-path or DB_PATH")
    if target.exists():
        raise StoreBroken(f"{target} exists already; choose another name, or remove it first")
    partial = target.with_name(target.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        _copy(db_path, partial)
        sync_file(partial)
        partial.rename(target)
        sync_file(target.parent)
    except (OSError, apsw.Error) as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise StoreBroken(f"cannot back up {db_path} to {target}: {error}") from error
    return target.stat().st_size


def _copy(db_path: Path, partial: Path) -> None:
    source = open_reader(db_path)
    try:
        source.execute("VACUUM INTO ?", (str(partial),))
    finally:
        close_quietly(source)
    copy = apsw.Connection(str(partial))
    try:
        copy.execute("UPDATE log SET log_id = ''")
        found = copy.pragma("quick_check")
        if found != "ok":
            raise StoreBroken(f"the copy of {db_path} is damaged: {found}; run sekali verify on the store")
    finally:
        close_quietly(copy)
