"""Fault points: a server dies by SIGKILL at the one that is armed. Its dedup index has small runs, its log few pages.

A point is armed while its name is the text of the file named by ``FAULT_FILE``; as the process dies there, the file
gets the ending ``.hit``.
"""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw

from sekali.event import Verdict
from sekali.ports import EventStore, Progress, no_progress
from sekali.settings import ServerSettings
from sekali.stores import sqlite_checkpoint
from sekali.stores.folder import index_folder
from sekali.stores.index_files import FolderFiles, OpenFile
from sekali.stores.sqlite import SqliteStore
from sekali.testing import HookedStore

FAULT_FILE = Path(os.environ.get("FAULT_FILE", "no-fault-file"))
RUN_KEYS = 16
CHECKPOINT_PAGES = 64

WRITTEN = ("half written", "before its sync", "after its sync")
RENAMED = ("half written", "without its name", "with its name")
START_POINTS = ("before recovery", "while the index is made", "after recovery")
MARK_POINTS = tuple(f"the high-water mark {point}" for point in RENAMED)
POINTS = (
    *("before a commit", "between BEGIN and COMMIT", "between commit and answer"),
    *(f"the write-ahead log {point}" for point in WRITTEN),
    *(f"a checkpoint {point}" for point in WRITTEN),
    *(f"a run of the index {point}" for point in RENAMED),
    *(f"a merged run of the index {point}" for point in RENAMED),
    "a file of the index removed",
    *MARK_POINTS,
    *START_POINTS,
)


def die_at(point: str) -> None:
    """End the process by SIGKILL if this point is armed, and leave word of it."""
    try:
        armed = FAULT_FILE.read_text()
    except FileNotFoundError:
        return
    if armed == point:
        FAULT_FILE.rename(FAULT_FILE.with_name(FAULT_FILE.name + ".hit"))
        os.kill(os.getpid(), signal.SIGKILL)


def open_with_points(settings: ServerSettings) -> EventStore:
    """Open a store that dies at the point that is armed."""
    sqlite_checkpoint.START_PAGES = CHECKPOINT_PAGES
    sqlite_checkpoint.LEFT_PAGES_MAX = CHECKPOINT_PAGES // 4
    apsw.connection_hooks.append(_die_inside_transactions)
    store = SqliteStore(
        settings.db_path,
        time.time_ns,
        topics_max=settings.topics_max,
        run_keys=RUN_KEYS,
        index_files=_FilesWithPoints(index_folder(settings.db_path)),
        mark_files=_FilesWithPoints(settings.db_path.parent),
        vfs=_VFS.name,
    )
    return _StoreWithPoints(store)


class _StoreWithPoints(HookedStore):
    def __init__(self, store: EventStore) -> None:
        super().__init__(store, lambda _: die_at("between commit and answer"))

    def recover(self, progress: Progress = no_progress) -> None:
        def report(done: int, total: int) -> None:
            die_at("while the index is made")
            progress(done, total)

        die_at("before recovery")
        super().recover(report)
        die_at("after recovery")

    def commit(self, prepared: Sequence[Any]) -> list[list[Verdict]]:
        die_at("before a commit")
        return super().commit(prepared)


def _die_inside_transactions(connection: apsw.Connection) -> None:
    def before_commit() -> bool:
        die_at("between BEGIN and COMMIT")
        return False  # go on

    connection.set_commit_hook(before_commit)


class _Vfs(apsw.VFS):
    """SQLite's own, with points where the file and its write-ahead log are written."""

    def __init__(self) -> None:
        self.name = "sekali-points"
        super().__init__(self.name, "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        if flags[0] & apsw.SQLITE_OPEN_WAL:
            return _VfsFile(name, flags, "the write-ahead log")
        if flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            return _VfsFile(name, flags, "a checkpoint")  # which is all that writes to the file itself
        return apsw.VFSFile("", name, flags)


class _VfsFile(apsw.VFSFile):
    def __init__(self, name: Any, flags: list[int], what: str) -> None:
        super().__init__("", name, flags)
        self._what = what

    def xWrite(self, data: bytes, offset: int) -> None:
        half = len(data) // 2
        super().xWrite(data[:half], offset)
        die_at(f"{self._what} half written")
        super().xWrite(data[half:], offset + half)

    def xSync(self, flags: int) -> None:
        die_at(f"{self._what} before its sync")
        super().xSync(flags)
        die_at(f"{self._what} after its sync")


_VFS = _Vfs()


class _FilesWithPoints(FolderFiles):
    """Files of the dedup index, or of the high-water mark."""

    def create(self, name: str) -> OpenFile:
        return _FileWithPoint(super().create(name), self._what(name))

    def rename(self, old: str, new: str) -> None:
        what = self._what(new)
        die_at(f"{what} without its name")
        super().rename(old, new)
        die_at(f"{what} with its name")

    def remove(self, name: str) -> None:
        super().remove(name)
        die_at("a file of the index removed")

    def _what(self, name: str) -> str:
        if ".mark" in name:
            return "the high-water mark"
        # A merged run begins where another one does.
        first_seq, _, _ = name.partition("-")
        merged = any(other.startswith(first_seq) and other.endswith(".run") for other in self.names())
        return "a merged run of the index" if merged else "a run of the index"


class _FileWithPoint:
    def __init__(self, file: OpenFile, what: str) -> None:
        self._file = file
        self._what = what

    def append(self, data: bytes | memoryview) -> None:
        half = len(data) // 2
        self._file.append(data[:half])
        die_at(f"{self._what} half written")
        self._file.append(data[half:])

    def read_at(self, offset: int, length: int) -> bytes:
        return self._file.read_at(offset, length)

    def sync(self) -> None:
        self._file.sync()

    def size(self) -> int:
        return self._file.size()

    def close(self) -> None:
        self._file.close()
