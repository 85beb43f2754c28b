"""What a store promises. ``stores/memory.py`` is the executable specification, ``tests/contract`` the test of it.

All methods block; the consumer and the edge call them from threads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from sekali.delivery import SubscriptionStore
from sekali.event import Batch, Verdict

PAGE_BYTES_MAX = 8 * 1024 * 1024
PAGE_EVENTS_MAX = 10_000
CONFLICT_BYTES_MAX = 64 * 1024 * 1024
MISSING_RANGES_MAX = 100  # listed of one source
PAGE_RANGES_MAX = 100_000  # listed on one page of sources; with more it ends


class Order(StrEnum):
    """The order of a reader's events: by commit (``seq``) or by event time, ties by seq."""

    SEQ = "seq"
    SEQ_DESCENDING = "-seq"
    TIMESTAMP = "timestamp"
    TIMESTAMP_DESCENDING = "-timestamp"

    @property
    def descending(self) -> bool:
        """Whether the newest come first."""
        return self.value.startswith("-")

    @property
    def by_time(self) -> bool:
        """Whether event time comes before seq."""
        return self.value.endswith("timestamp")


class Position(msgspec.Struct, frozen=True, array_like=True):
    """The place of an event in any of the orders. A reader goes on behind it."""

    seq: int
    timestamp_ns: int = 0  # of no meaning where the order is by seq


# Topics and patterns that a reader may read, for whom nothing else exists; None: everything.
Readable = tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Query:
    """Which events a reader wants. Every condition given must hold.

    ``topic`` is a topic or a pattern. ``since_ns`` is inclusive and ``until_ns`` exclusive, both event time.
    ``after`` and ``up_to`` are seqs: only events above the first (exclusive) and not above the second (inclusive).
    ``position`` is where the last page ended. ``event_id`` comes with an exact topic. ``seqs`` are the only ones then.
    A page has at most ``limit`` events, and ends with the one that brings its payloads over ``bytes_max``.
    """

    topic: str | None = None
    source: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    after: int = 0
    up_to: int | None = None
    event_id: str | None = None
    seqs: tuple[int, ...] | None = None
    order: Order = Order.SEQ
    limit: int = 1000
    position: Position | None = None
    readable: Readable = None
    bytes_max: int = PAGE_BYTES_MAX


class StoredEvent(msgspec.Struct, frozen=True, gc=False):
    """An event as it was stored, and how often it was sent again."""

    seq: int
    topic: str
    event_id: str
    timestamp_ns: int
    processed_at_ns: int
    source: str
    source_seq: int | None
    payload: bytes
    duplicates: int = 0
    last_duplicate_at_ns: int | None = None


class Unreadable(msgspec.Struct, frozen=True):
    """A row that is there and cannot be read back."""

    seq: int
    error: str


@dataclass(frozen=True, slots=True)
class Page:
    """One page of events. ``next`` is set where there may be more; a page may be empty and have a next one."""

    events: list[StoredEvent | Unreadable]
    next: Position | None


class TopicInfo(msgspec.Struct, frozen=True):
    """What a topic holds. ``last_timestamp_ns`` is the latest event time."""

    topic: str
    stored: int
    duplicates: int
    conflicts: int
    first_seq: int
    last_seq: int
    last_timestamp_ns: int


@dataclass(frozen=True, slots=True)
class SourceQuery:
    """Which sources a reader wants, and about which of their numbers it asks.

    ``topic`` is a topic or a pattern. ``after`` is the topic and source that the last page ended with. ``first`` and
    ``last`` are the numbers asked about, both inclusive; without them it is from the lowest to the highest that came.
    Where one is given and the other is not, the range holds at least the one that is.
    """

    topic: str | None = None
    source: str | None = None
    first: int | None = None
    last: int | None = None
    after: tuple[str, str] = ("", "")
    limit: int = 1000
    readable: Readable = None

    def range_of(self, lowest: int, highest: int) -> tuple[int, int]:
        """Return first and last number asked about, of a source of which these came."""
        first = min(lowest, highest if self.last is None else self.last) if self.first is None else self.first
        return first, max(highest, first) if self.last is None else self.last


class SourceInfo(msgspec.Struct, frozen=True):
    """What came of a source that numbers its events (``source_seq``) in a topic.

    ``lowest`` and ``highest`` are of all that came. Of the numbers asked about, ``received`` came and ``missing`` did
    not; ``missing_ranges`` are the first ``MISSING_RANGES_MAX`` of ``missing_ranges_count``, each with its first and
    last number. ``repeated`` events had a number that another event had before, and ``unnumbered`` ones had none,
    though the source had numbered others before.
    """

    topic: str
    source: str
    lowest: int
    highest: int
    received: int
    missing: int
    missing_ranges: list[tuple[int, int]]
    missing_ranges_count: int
    repeated: int
    unnumbered: int


class Conflict(msgspec.Struct, frozen=True):
    """A variant that was refused because its identity was taken. ``number`` orders the variants by first arrival.

    Of one that is ``damaged`` only number and seq mean something.
    """

    number: int
    seq: int
    topic: str
    event_id: str
    source: str
    payload: bytes
    count: int
    first_at_ns: int
    last_at_ns: int
    damaged: bool = False


class Lifetime(msgspec.Struct, frozen=True):
    """Counts of all time, committed with the events: ``received = stored + duplicate + conflict``."""

    received: int = 0
    stored: int = 0
    duplicate: int = 0
    conflict: int = 0


class Summary(msgspec.Struct, frozen=True):
    """The log as a whole. ``head`` is the newest seq, 0 when the log is empty."""

    log_id: str
    head: int
    topics_count: int
    lifetime: Lifetime


# Told how many of how many events are done, while a store recovers.
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""


class EventStore(SubscriptionStore, Protocol):
    """A log of events in which each identity, (topic, event_id), is stored once.

    ``recover`` comes before everything but reading. Then batches are prepared one group after the other, and what was
    prepared is committed in the same order, several groups at once or one, by one thread, while another may prepare
    the next. After a commit that failed, whatever was prepared is void and ``recover`` comes again. The reading methods
    may be called from any thread at any time. What a reader sees is committed.
    """

    def recover(self, progress: Progress = no_progress) -> None:
        """Get ready to commit, from nothing but what is stored; also after a commit that failed.

        It may take long, where something derived from the log has to be made anew; reading goes on meanwhile.

        Raises:
            StoreBroken: the store cannot be opened.
            DiskFull: there is no room to go on.

        """

    def prepare(self, batches: Sequence[Batch]) -> Any:
        """Do whatever can be done before the batches' turn to be committed comes. Changes nothing that is stored.

        Raises:
            Unavailable: the store is recovering.
            DiskFull: there is no room for more; what was prepared before stays good.
            CommitUnknown: what is stored cannot be read; ``recover`` has to come.

        """

    def commit(self, prepared: Sequence[Any]) -> list[list[Verdict]]:
        """Store what is new of the batches prepared, in order; return each batch's verdicts once all of it is durable.

        Events, conflict variants, duplicate counts and counters are one transaction, and so are the changes of
        subscriptions (``prepare_changes``) that stand among what is prepared. ``processed_at`` never falls.
        With no batches it is still a real commit, and shows whether the store can.

        Raises:
            CommitUnknown: it failed; whether anything was stored is not known until ``recover``.

        """

    def read(self, query: Query) -> Page:
        """Return the events that match, at most ``query.limit`` of them and about ``query.bytes_max``."""

    def missing(self, topic: str, event_ids: Sequence[str]) -> list[str]:
        """Return those of the ids that the topic does not hold, in the order given.

        Raises:
            Unavailable: the store is still recovering.

        """

    def topics(self, after: str, limit: int, readable: Readable = None) -> list[TopicInfo]:
        """Return topics by name, from behind ``after``."""

    def conflicts(self, after: int, limit: int, readable: Readable = None) -> list[Conflict]:
        """Return refused variants by number, from behind ``after``.

        A variant is kept once per (seq, content). Beyond ``CONFLICT_BYTES_MAX`` in all the oldest go first; the
        counters keep them.
        """

    def sources(self, query: SourceQuery) -> list[SourceInfo]:
        """Return sources that number their events, by topic and source, at most ``query.limit``.

        The list also ends once its sources list more than ``PAGE_RANGES_MAX`` ranges in all.
        """

    def summary(self, readable: Readable = None) -> Summary:
        """Return the state of the log as a whole, or as if it held nothing but what is ``readable``.

        Then the head is the newest readable event's seq, and the counts are those of the readable topics.
        """

    def gauges(self) -> Mapping[str, float]:
        """Return figures of what the store rests on, such as ``disk_free_bytes``, for ``/metrics``."""

    def close(self) -> None:
        """Release everything. May be called twice."""
