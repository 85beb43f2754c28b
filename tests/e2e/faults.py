"""The server with a fault in its store: ``python -m e2e.faults KIND``, settings from the environment as ever.

Faults that can be turned on and off are on while the file named by ``FAULT_FILE`` is there.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from e2e.points import FAULT_FILE, RUN_KEYS, open_with_points
from sekali import consumer, service, writer
from sekali.api import publish, subscribe, wire
from sekali.event import Verdict
from sekali.ports import EventStore, Progress, no_progress
from sekali.settings import ServerSettings
from sekali.stores.sqlite import Prepared, PreparedChanges, SqliteStore
from sekali.testing import DuplicatingStore, FailingStore, WrappedStore

SLOW_COMMIT_S = 0.1
OWED_GROUPS_MAX = 10


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
        return [verdicts for one in prepared if isinstance(one, Prepared) for verdicts in one.verdicts]


class SettlesLater(WrappedStore):
    """Commits events at once, and what is said of deliveries now and then, though it answers at once.

    A kill brings back what was acknowledged last: tests that look for that must find it here.
    """

    def __init__(self, store: EventStore) -> None:
        super().__init__(store)
        self._owed: list[Any] = []

    def commit(self, prepared: Sequence[Any]) -> list[list[Verdict]]:
        self._owed += [one for one in prepared if isinstance(one, PreparedChanges)]
        due: list[Any] = []
        if len(self._owed) >= OWED_GROUPS_MAX:
            due, self._owed = self._owed, []
        return super().commit([one for one in prepared if isinstance(one, Prepared)] + due)


def _open_with_small_runs(settings: ServerSettings) -> SqliteStore:
    """Open a store in which a few events already make runs of the dedup index, and merges of runs."""
    return SqliteStore(settings.db_path, time.time_ns, topics_max=settings.topics_max, run_keys=RUN_KEYS)


def _open_and_lack_memory(settings: ServerSettings) -> EventStore:
    """Let memory be lacking at one step of a request, which is the text of the file."""
    api_publish: Any = publish  # what is replaced is not meant to be
    decode, feed = api_publish.decode_json, api_publish.PublishRequest.feed

    def lack_memory_to(step: str) -> None:
        if FAULT_FILE.exists() and FAULT_FILE.read_text() == step:
            raise MemoryError

    def decode_or_fail(*arguments: Any, **options: Any) -> Any:
        lack_memory_to("decode")
        return decode(*arguments, **options)

    def feed_or_fail(self: Any, data: bytes) -> None:
        lack_memory_to("read")
        asyncio.get_running_loop().call_soon(lack_memory_to, "go on")
        feed(self, data)

    api_publish.decode_json = decode_or_fail
    api_publish.PublishRequest.feed = feed_or_fail
    return service.open_store(settings)


def _resume_elsewhere(by: int) -> None:
    """Let streams go on so many events behind where their readers were."""
    api_wire: Any = wire  # what is replaced is not meant to be
    open_position = api_wire.open_position
    api_wire.open_position = lambda *arguments: max(open_position(*arguments) + by, 0)


STORES: dict[str, Callable[[EventStore], EventStore]] = {
    "failing": FailsWhileTold,
    "failing-after-commit": lambda store: FailsWhileTold(store, after_commit=True),
    "slow": SlowWhileTold,
    "held": HeldWhileTold,
    "acknowledges-before-commit": AcknowledgesBeforeCommit,
    "settles-later": SettlesLater,
    "points": WrappedStore,
    "no-memory": WrappedStore,
    "duplicating": DuplicatingStore,
    "small-runs": WrappedStore,
    "held-rebuild": RebuildHeldWhileTold,
    "few-probes": WrappedStore,
    "quick-heartbeats": WrappedStore,
    "resumers-skipped": WrappedStore,
    "resumers-repeated": WrappedStore,
    "ending-streams": WrappedStore,
    "hanging": HeldWhileTold,
}


def _end_streams() -> None:
    """Let streams of ``/subscribe`` end once they have begun, for clients that wait for the end of every answer."""
    stream: Any = subscribe._Stream  # what is replaced is not meant to be

    async def end(self: Any) -> None:
        return None

    stream._run = end


RESUMED_ELSEWHERE = {"resumers-skipped": 1, "resumers-repeated": -1}
OPEN: dict[str, Callable[[ServerSettings], EventStore]] = {
    "small-runs": _open_with_small_runs,
    "held-rebuild": _open_with_small_runs,
    "points": open_with_points,
    "no-memory": _open_and_lack_memory,
}


def main() -> int:
    kind = sys.argv[1]
    if kind == "few-probes":
        writer.PROBE_INTERVAL_S = 0.01
    if kind == "quick-heartbeats":
        subscribe.HEARTBEAT_S, subscribe.LOOK_INTERVAL_S = 0.05, 0.02
    if kind in RESUMED_ELSEWHERE:
        _resume_elsewhere(RESUMED_ELSEWHERE[kind])
    if kind == "ending-streams":
        _end_streams()
    if kind == "hanging":
        consumer.COMMIT_TIMEOUT_S = 0.1
        consumer.LOOK_INTERVAL_S = 0.01
    open_store = OPEN.get(kind, service.open_store)
    return service.serve(ServerSettings(), lambda settings: STORES[kind](open_store(settings)))


if __name__ == "__main__":
    sys.exit(main())
