"""Stores that fail, wait or repeat: decorators that wrap a real one and keep the ``EventStore`` port."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from sekali.delivery import Change, DeadLetter, Figures, PendingLane, Subscription
from sekali.errors import CommitUnknown
from sekali.event import Batch, Verdict
from sekali.ports import (
    Conflict,
    EventStore,
    Page,
    Progress,
    Query,
    Readable,
    SourceInfo,
    SourceQuery,
    Summary,
    TopicInfo,
    no_progress,
)


class WrappedStore:
    """An ``EventStore`` that passes everything on. Its children change one thing."""

    def __init__(self, store: EventStore) -> None:
        self._store = store

    def recover(self, progress: Progress = no_progress) -> None:
        self._store.recover(progress)

    def prepare(self, batches: Sequence[Batch]) -> Any:
        return self._store.prepare(batches)

    def prepare_changes(self, changes: Sequence[Change]) -> Any:
        return self._store.prepare_changes(changes)

    def commit(self, prepared: Sequence[Any]) -> list[list[Verdict]]:
        return self._store.commit(prepared)

    def subscriptions(self) -> list[Subscription]:
        return self._store.subscriptions()

    def pending(self, name: str) -> tuple[int, list[PendingLane]]:
        return self._store.pending(name)

    def figures(self, name: str, lag_max: int) -> Figures:
        return self._store.figures(name, lag_max)

    def dead_letters(self, name: str, after: int, limit: int, seqs: Sequence[int] | None = None) -> list[DeadLetter]:
        return self._store.dead_letters(name, after, limit, seqs)

    def first_seq_at(self, processed_at_ns: int) -> int:
        return self._store.first_seq_at(processed_at_ns)

    def read(self, query: Query) -> Page:
        return self._store.read(query)

    def missing(self, topic: str, event_ids: Sequence[str]) -> list[str]:
        return self._store.missing(topic, event_ids)

    def topics(self, after: str, limit: int, readable: Readable = None) -> list[TopicInfo]:
        return self._store.topics(after, limit, readable)

    def conflicts(self, after: int, limit: int, readable: Readable = None) -> list[Conflict]:
        return self._store.conflicts(after, limit, readable)

    def sources(self, query: SourceQuery) -> list[SourceInfo]:
        return self._store.sources(query)

    def summary(self, readable: Readable = None) -> Summary:
        return self._store.summary(readable)

    def gauges(self) -> Mapping[str, float]:
        return self._store.gauges()

    def close(self) -> None:
        self._store.close()


class FailingStore(WrappedStore):
    """Fails commits on demand. ``failures_left`` commits fail, before they reach the store or after.

    ``failed`` counts the failures, so that a test can assert that its fault happened.
    """

    def __init__(self, store: EventStore, *, failures_left: int = 0, after_commit: bool = False) -> None:
        super().__init__(store)
        self.failures_left = failures_left
        self.after_commit = after_commit
        self.failed = 0

    def commit(self, prepared: Sequence[Any]) -> list[list[Verdict]]:
        if self.failures_left <= 0:
            return super().commit(prepared)
        self.failures_left -= 1
        self.failed += 1
        if self.after_commit:
            super().commit(prepared)
        raise CommitUnknown("commit failed: injected")


class GatedStore(WrappedStore):
    """Holds every commit back until ``gate`` is set; ``reached`` tells that one waits there."""

    def __init__(self, store: EventStore) -> None:
        super().__init__(store)
        self.gate = threading.Event()
        self.reached = threading.Event()

    def commit(self, prepared: Sequence[Any]) -> list[list[Verdict]]:
        self.reached.set()
        self.gate.wait()
        return super().commit(prepared)


class HookedStore(WrappedStore):
    """Calls ``after_commit`` with the number of the commit, from 1, between a commit and its answer."""

    def __init__(self, store: EventStore, after_commit: Callable[[int], None]) -> None:
        super().__init__(store)
        self._after_commit = after_commit
        self._commits = 0

    def commit(self, prepared: Sequence[Any]) -> list[list[Verdict]]:
        verdicts = super().commit(prepared)
        self._commits += 1
        self._after_commit(self._commits)
        return verdicts


class DuplicatingStore(WrappedStore):
    """Commits every batch twice and gives the verdicts of the first: as if every publisher had sent it again."""

    def prepare(self, batches: Sequence[Batch]) -> Any:
        return super().prepare([*batches, *batches]), len(batches)

    def prepare_changes(self, changes: Sequence[Change]) -> Any:
        return super().prepare_changes(changes), 0

    def commit(self, prepared: Sequence[Any]) -> list[list[Verdict]]:
        verdicts = iter(super().commit([inner for inner, _ in prepared]))
        kept: list[list[Verdict]] = []
        for _, count in prepared:
            kept += islice(verdicts, count)
            deque(islice(verdicts, count), maxlen=0)  # those of the second time
        return kept
