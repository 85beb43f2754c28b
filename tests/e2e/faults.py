"""The server with a fault in its store: ``python faults.py KIND``, settings from the environment as ever.

Faults that can be turned on and off are on while the file named by ``FAULT_FILE`` is there.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sekali import consumer, service, writer
from sekali.event import Verdict
from sekali.ports import EventStore, Progress, no_progress
from sekali.settings import ServerSettings
from sekali.stores.sqlite import SqliteStore
from sekali.testing import DuplicatingStore, FailingStore, HookedStore, WrappedStore

FAULT_FILE = Path(os.environ["FAULT_FILE"])
SLOW_COMMIT_S = 0.1
RUN_KEYS = 16


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


def _open_with_small_runs(settings: ServerSettings) -> EventStore:
    """Open a store in which a few events already make runs of the dedup index, and merges of runs."""
    return SqliteStore(settings.db_path, time.time_ns, topics_max=settings.topics_max, run_keys=RUN_KEYS)


def _die_while_told(_: int) -> None:
    if FAULT_FILE.exists():
        os.kill(os.getpid(), signal.SIGKILL)


STORES: dict[str, Callable[[EventStore], EventStore]] = {
    "failing": FailsWhileTold,
    "failing-after-commit": lambda store: FailsWhileTold(store, after_commit=True),
    "slow": SlowWhileTold,
    "held": HeldWhileTold,
    "killed-after-commit": lambda store: HookedStore(store, _die_while_told),
    "duplicating": DuplicatingStore,
    "small-runs": WrappedStore,
    "held-rebuild": RebuildHeldWhileTold,
    "few-probes": WrappedStore,
    "hanging": HeldWhileTold,
}
OPEN: dict[str, Callable[[ServerSettings], EventStore]] = {
    "small-runs": _open_with_small_runs,
    "held-rebuild": _open_with_small_runs,
}


def main() -> int:
    kind = sys.argv[1]
    if kind == "few-probes":
        writer.PROBE_INTERVAL_S = 0.01
    if kind == "hanging":
        consumer.COMMIT_TIMEOUT_S = 0.1
        consumer.LOOK_INTERVAL_S = 0.01
    open_store = OPEN.get(kind, service.open_store)
    return service.serve(ServerSettings(), lambda settings: STORES[kind](open_store(settings)))


if __name__ == "__main__":
    sys.exit(main())
