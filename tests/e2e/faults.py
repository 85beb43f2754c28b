"""The server with a fault in its store: ``python faults.py KIND``, settings from the environment as ever.

Faults that can be turned on and off are on while the file named by ``FAULT_FILE`` is there. Where the text of that file
is one of ``POINTS``, the process ends there by SIGKILL, and the file gets the ending ``.hit``.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apsw

from sekali import service
from sekali.event import Verdict
from sekali.ports import EventStore, Progress, no_progress
from sekali.settings import ServerSettings
from sekali.stores.index_files import FolderFiles, OpenFile
from sekali.stores.sqlite import SqliteStore
from sekali.stores.sqlite_file import index_folder
from sekali.testing import DuplicatingStore, FailingStore, HookedStore, WrappedStore

FAULT_FILE = Path(os.environ.get("FAULT_FILE", "no-fault-file"))
SLOW_COMMIT_S = 0.1
RUN_KEYS = 16
OWED_GROUPS_MAX = 10

COMMIT_POINTS = ("before a commit", "between BEGIN and COMMIT", "between commit and answer")
START_POINTS = ("before recovery", "while the index is made", "after recovery")
INDEX_POINTS = tuple(
    f"{kind} {point}"
    for kind in ("a run", "a merged run")
    for point in ("half written", "without its name", "with its name")
)
POINTS = (*COMMIT_POINTS, *START_POINTS, *INDEX_POINTS, "a file of the index removed")


class FailsWhileTold(FailingStore):
    """Fails commits while the file is there."""

    def commit(self, prepared: Sequence[Any]) -> list[list[Verdict]]:
        self.failures_left = int(FAULT_FILE.exists())
        return super().commit(prepared)


class SlowWhileTold(WrappedStore):
    """Delays commits while the file is there."""

    def commit(self, prepared: Sequence[Any]) -> list[list[Verdict]]:
        if FAULT_FILE.exists():
            threading.Event().wait(SLOW_COMMIT_S)
        return super().commit(prepared)


class HeldWhileTold(WrappedStore):
    """Holds commits that have events in them back while the file is there."""

    def commit(self, prepared: Sequence[Any]) -> list[list[Verdict]]:
        while FAULT_FILE.exists():
            threading.Event().wait(0.005)
        return super().commit(prepared)


class RebuildHeldWhileTold(WrappedStore):
    """Holds the making of the dedup index back after its first part while the file is there."""

    def recover(self, progress: Progress = no_progress) -> None:
        def report(done: int, total: int) -> None:
            progress(done, total)
            while FAULT_FILE.exists():
                threading.Event().wait(0.005)
                progress(done, total)  # which ends it when the server stops

        super().recover(report)


class AcknowledgesBeforeCommit(WrappedStore):
    """Gives the verdicts at once and commits now and then, as a server would that syncs by the clock.

    A kill loses what was acknowledged last: tests that look for loss must find it here.
    """

    def __init__(self, store: EventStore) -> None:
        super().__init__(store)
        self._owed: list[Any] = []

    def recover(self, progress: Progress = no_progress) -> None:
        self._owed = []
        super().recover(progress)

    def commit(self, prepared: Sequence[Any]) -> list[list[Verdict]]:
        self._owed += prepared
        if len(self._owed) >= OWED_GROUPS_MAX:
            owed, self._owed = self._owed, []
            super().commit(owed)
        return [verdicts for one in prepared for verdicts in one.verdicts]


def _die_at(point: str) -> None:
    """End the process by SIGKILL if this point is armed, and leave word of it."""
    try:
        armed = FAULT_FILE.read_text()
    except FileNotFoundError:
        return
    if armed == point:
        FAULT_FILE.rename(FAULT_FILE.with_name(FAULT_FILE.name + ".hit"))
        os.kill(os.getpid(), signal.SIGKILL)


class DiesAtPoints(HookedStore):
    """Ends the process around a commit or a recovery, at the point that is armed."""

    def __init__(self, store: EventStore) -> None:
        super().__init__(store, lambda _: _die_at("between commit and answer"))

    def recover(self, progress: Progress = no_progress) -> None:
        def report(done: int, total: int) -> None:
            _die_at("while the index is made")
            progress(done, total)

        _die_at("before recovery")
        super().recover(report)
        _die_at("after recovery")

    def commit(self, prepared: Sequence[Any]) -> list[list[Verdict]]:
        _die_at("before a commit")
        return super().commit(prepared)


class IndexFilesWithPoints(FolderFiles):
    """Files of the dedup index that end the process while they are written, at the point that is armed."""

    def create(self, name: str) -> OpenFile:
        return _FileWithPoint(super().create(name), self._kind(name))

    def rename(self, old: str, new: str) -> None:
        kind = self._kind(new)
        _die_at(f"{kind} without its name")
        super().rename(old, new)
        _die_at(f"{kind} with its name")

    def remove(self, name: str) -> None:
        super().remove(name)
        _die_at("a file of the index removed")

    def _kind(self, name: str) -> str:
        """Tell runs that are merged by their first seq: there is one already that begins there."""
        first_seq, _, _ = name.partition("-")
        merged = any(other.startswith(first_seq) and other.endswith(".run") for other in self.names())
        return "a merged run" if merged else "a run"


class _FileWithPoint:
    def __init__(self, file: OpenFile, kind: str) -> None:
        self._file = file
        self._point = f"{kind} half written"

    def append(self, data: bytes | memoryview) -> None:
        half = len(data) // 2
        self._file.append(data[:half])
        _die_at(self._point)
        self._file.append(data[half:])

    def read_at(self, offset: int, length: int) -> bytes:
        return self._file.read_at(offset, length)

    def sync(self) -> None:
        self._file.sync()

    def size(self) -> int:
        return self._file.size()

    def close(self) -> None:
        self._file.close()


def _open_with_small_runs(settings: ServerSettings) -> SqliteStore:
    """Open a store in which a few events already make runs of the dedup index, and merges of runs."""
    return SqliteStore(settings.db_path, time.time_ns, topics_max=settings.topics_max, run_keys=RUN_KEYS)


def _open_with_points(settings: ServerSettings) -> SqliteStore:
    """Open a store that dies at the point that is armed; a few events already make runs of its dedup index."""
    settings.db_path.parent.mkdir(parents=True, exist_ok=True)
    apsw.connection_hooks.append(_die_inside_transactions)
    return SqliteStore(
        settings.db_path,
        time.time_ns,
        topics_max=settings.topics_max,
        run_keys=RUN_KEYS,
        index_files=IndexFilesWithPoints(index_folder(settings.db_path)),
    )


def _die_inside_transactions(connection: apsw.Connection) -> None:
    def before_commit() -> bool:
        _die_at("between BEGIN and COMMIT")
        return False  # go on

    connection.set_commit_hook(before_commit)


STORES: dict[str, Callable[[EventStore], EventStore]] = {
    "failing": FailsWhileTold,
    "failing-after-commit": lambda store: FailsWhileTold(store, after_commit=True),
    "slow": SlowWhileTold,
    "held": HeldWhileTold,
    "acknowledges-before-commit": AcknowledgesBeforeCommit,
    "points": DiesAtPoints,
    "duplicating": DuplicatingStore,
    "small-runs": WrappedStore,
    "held-rebuild": RebuildHeldWhileTold,
}
OPEN: dict[str, Callable[[ServerSettings], EventStore]] = {
    "small-runs": _open_with_small_runs,
    "held-rebuild": _open_with_small_runs,
    "points": _open_with_points,
}


def main() -> int:
    kind = sys.argv[1]
    open_store = OPEN.get(kind, service.open_store)
    return service.serve(ServerSettings(), lambda settings: STORES[kind](open_store(settings)))


if __name__ == "__main__":
    sys.exit(main())
