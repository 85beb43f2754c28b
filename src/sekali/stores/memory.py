"""The specification: what a store does, in the plainest code. Nothing is durable; it is the oracle of the others."""

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from sekali import jsonvalue
from sekali.delivery import Change, DeadLetter, Figures, PendingLane, Subscription
from sekali.event import Batch, Outcome, Verdict
from sekali.ports import (
    CONFLICT_BYTES_MAX,
    MISSING_RANGES_MAX,
    PAGE_RANGES_MAX,
    Conflict,
    Lifetime,
    Page,
    Position,
    Progress,
    Query,
    Readable,
    SourceInfo,
    SourceQuery,
    StoredEvent,
    Summary,
    TopicInfo,
    Unreadable,
    no_progress,
)
from sekali.stores.memory_subscriptions import Subscriptions
from sekali.topics import matches


@dataclass
class _Variant:
    number: int
    seq: int
    source: str
    payload: bytes
    count: int
    first_at_ns: int
    last_at_ns: int


@dataclass
class _State:
    """All that is stored. ``log[seq - 1]`` is the event with that seq; ``seqs`` finds it by identity."""

    log: list[StoredEvent] = field(default_factory=list)
    seqs: dict[tuple[str, str], int] = field(default_factory=dict)
    duplicates: dict[int, tuple[int, int]] = field(default_factory=dict)
    variants: list[_Variant] = field(default_factory=list)
    variants_seen: int = 0
    counts: dict[str, dict[Outcome, int]] = field(default_factory=dict)
    processed_at_ns: int = 0  # of the commit under way


class MemoryStore:
    """An ``EventStore`` in a list and a few dicts.

    ``clock_ns`` gives the wall clock in nanoseconds. Safe for many threads: every method takes one lock.
    """

    def __init__(
        self, clock_ns: Callable[[], int], *, topics_max: int, conflict_bytes_max: int = CONFLICT_BYTES_MAX
    ) -> None:
        self._clock_ns = clock_ns
        self._topics_max = topics_max
        self._conflict_bytes_max = conflict_bytes_max
        self._log_id = uuid.uuid4().hex
        self._state = _State()
        self._subscriptions = Subscriptions(self._state.log)
        self._lock = threading.Lock()

    def recover(self, progress: Progress = no_progress) -> None:
        """Nothing to do: what is in memory is all there is."""

    def prepare(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        return batches

    def prepare_changes(self, changes: Sequence[Change]) -> Sequence[Change]:
        return changes

    def commit(self, prepared: Sequence[Sequence[Batch | Change]]) -> list[list[Verdict]]:
        with self._lock:
            newest = self._state.log[-1].processed_at_ns if self._state.log else 0
            self._state.processed_at_ns = max(newest, self._clock_ns())
            verdicts: list[list[Verdict]] = []
            for one in (one for group in prepared for one in group):
                if isinstance(one, Batch):
                    verdicts.append(self._commit_batch(one))
                else:
                    self._subscriptions.apply(one)
            self._drop_oldest_variants()
            return verdicts

    def _commit_batch(self, batch: Batch) -> list[Verdict]:
        refused = self._topics_refused(batch)
        if refused and batch.all_or_nothing:
            other = Verdict(Outcome.INVALID, error="event: not stored, because another item of the request is invalid")
            return [self._refusal() if topic in refused else other for topic in batch.topics]
        return [
            self._refusal() if batch.topics[position] in refused else self._commit_event(batch, position)
            for position in range(len(batch))
        ]

    def _topics_refused(self, batch: Batch) -> set[str]:
        new = [topic for topic in dict.fromkeys(batch.topics) if topic not in self._state.counts]
        return set(new[max(self._topics_max - len(self._state.counts), 0) :])

    def _refusal(self) -> Verdict:
        return Verdict(Outcome.INVALID, error=f"topic: the store already holds {self._topics_max} topics (TOPICS_MAX)")

    def _commit_event(self, batch: Batch, position: int) -> Verdict:
        state = self._state
        topic, event_id = batch.topics[position], batch.event_ids[position]
        seq = state.seqs.get((topic, event_id))
        if seq is None:
            seq = len(state.log) + 1
            state.seqs[topic, event_id] = seq
            state.log.append(
                StoredEvent(
                    seq,
                    topic,
                    event_id,
                    batch.timestamps_ns[position],
                    state.processed_at_ns,
                    batch.sources[position],
                    batch.source_seqs[position],
                    batch.payloads[position],
                )
            )
            outcome = Outcome.STORED
        else:
            first = state.log[seq - 1]
            if _same_content(first, batch.sources[position], batch.payloads[position]):
                count, _ = state.duplicates.get(seq, (0, 0))
                state.duplicates[seq] = count + 1, state.processed_at_ns
                outcome = Outcome.DUPLICATE
            else:
                self._keep_variant(seq, batch.sources[position], batch.payloads[position])
                outcome = Outcome.CONFLICT
        counts = state.counts.setdefault(topic, dict.fromkeys(Outcome, 0))
        counts[outcome] += 1
        return Verdict(outcome, seq)

    def _keep_variant(self, seq: int, source: str, payload: bytes) -> None:
        state = self._state
        for variant in state.variants:
            if variant.seq == seq and _same_content(variant, source, payload):
                variant.count += 1
                variant.last_at_ns = state.processed_at_ns
                return
        state.variants_seen += 1
        now_ns = state.processed_at_ns
        state.variants.append(_Variant(state.variants_seen, seq, source, payload, 1, now_ns, now_ns))

    def _drop_oldest_variants(self) -> None:
        variants = self._state.variants
        while sum(len(variant.payload) + len(variant.source.encode()) for variant in variants) > (
            self._conflict_bytes_max
        ):
            del variants[0]

    def read(self, query: Query) -> Page:
        with self._lock:
            events = [event for event in self._state.log if _matches(event, query)]
            duplicates = dict(self._state.duplicates)
        events.sort(key=lambda event: _key(event, query), reverse=query.order.descending)
        if query.position is not None:
            bound = (query.position.timestamp_ns, query.position.seq) if query.order.by_time else (query.position.seq,)
            if query.order.descending:
                events = [event for event in events if _key(event, query) < bound]
            else:
                events = [event for event in events if _key(event, query) > bound]
        page: list[StoredEvent | Unreadable] = []
        size = 0
        for event in events[: query.limit]:
            if size > query.bytes_max:
                break
            count, at_ns = duplicates.get(event.seq, (0, None))
            page.append(
                StoredEvent(
                    event.seq,
                    event.topic,
                    event.event_id,
                    event.timestamp_ns,
                    event.processed_at_ns,
                    event.source,
                    event.source_seq,
                    event.payload,
                    count,
                    at_ns,
                )
            )
            size += len(event.payload)
        more = len(events) > len(page)
        last = events[len(page) - 1] if page else None
        return Page(page, Position(last.seq, last.timestamp_ns) if more and last is not None else None)

    def missing(self, topic: str, event_ids: Sequence[str]) -> list[str]:
        with self._lock:
            return [event_id for event_id in event_ids if (topic, event_id) not in self._state.seqs]

    def topics(self, after: str, limit: int, readable: Readable = None) -> list[TopicInfo]:
        with self._lock:
            names = sorted(name for name in self._state.counts if name > after and _may_read(name, readable))[:limit]
            return [self._topic_info(name) for name in names]

    def _topic_info(self, name: str) -> TopicInfo:
        events = [event for event in self._state.log if event.topic == name]
        counts = self._state.counts[name]
        return TopicInfo(
            name,
            counts[Outcome.STORED],
            counts[Outcome.DUPLICATE],
            counts[Outcome.CONFLICT],
            events[0].seq,
            events[-1].seq,
            max(event.timestamp_ns for event in events),
        )

    def conflicts(self, after: int, limit: int, readable: Readable = None) -> list[Conflict]:
        with self._lock:
            variants = [
                variant
                for variant in self._state.variants
                if variant.number > after and _may_read(self._state.log[variant.seq - 1].topic, readable)
            ][:limit]
            return [
                Conflict(
                    variant.number,
                    variant.seq,
                    self._state.log[variant.seq - 1].topic,
                    self._state.log[variant.seq - 1].event_id,
                    variant.source,
                    variant.payload,
                    variant.count,
                    variant.first_at_ns,
                    variant.last_at_ns,
                )
                for variant in variants
            ]

    def sources(self, query: SourceQuery) -> list[SourceInfo]:
        with self._lock:
            numbered = {(event.topic, event.source) for event in self._state.log if event.source_seq is not None}
            found: list[SourceInfo] = []
            for topic, source in sorted(numbered):
                if (
                    (topic, source) > query.after
                    and _may_read(topic, query.readable)
                    and (query.topic is None or matches(query.topic, topic))
                    and (query.source is None or source == query.source)
                ):
                    found.append(self._source_info(topic, source, query))
                    ranges = sum(len(info.missing_ranges) for info in found)
                    if len(found) == query.limit or ranges > PAGE_RANGES_MAX:
                        break
            return found

    def _source_info(self, topic: str, source: str, query: SourceQuery) -> SourceInfo:
        events = [event for event in self._state.log if (event.topic, event.source) == (topic, source)]
        numbers = [event.source_seq for event in events if event.source_seq is not None]
        first_place = next(place for place, event in enumerate(events) if event.source_seq is not None)
        first, last = query.range_of(min(numbers), max(numbers))
        inside = sorted({number for number in numbers if first <= number <= last})
        missing = [
            (before + 1, after - 1) for before, after in pairwise([first - 1, *inside, last + 1]) if after > before + 1
        ]
        return SourceInfo(
            topic,
            source,
            min(numbers),
            max(numbers),
            len(inside),
            last - first + 1 - len(inside),
            missing[:MISSING_RANGES_MAX],
            len(missing),
            len(numbers) - len(set(numbers)),
            sum(event.source_seq is None for event in events[first_place:]),
        )

    def summary(self, readable: Readable = None) -> Summary:
        with self._lock:
            topics = {name: counts for name, counts in self._state.counts.items() if _may_read(name, readable)}
            head = max((event.seq for event in self._state.log if event.topic in topics), default=0)
            totals = {outcome: sum(counts[outcome] for counts in topics.values()) for outcome in Outcome}
            lifetime = Lifetime(
                sum(totals.values()), totals[Outcome.STORED], totals[Outcome.DUPLICATE], totals[Outcome.CONFLICT]
            )
            return Summary(self._log_id, head, len(topics), lifetime)

    def gauges(self) -> Mapping[str, float]:
        return {}

    def subscriptions(self) -> list[Subscription]:
        with self._lock:
            return self._subscriptions.all()

    def pending(self, name: str) -> tuple[int, list[PendingLane]]:
        with self._lock:
            return len(self._state.log), self._subscriptions.pending(name)

    def figures(self, name: str, lag_max: int) -> Figures:
        with self._lock:
            return self._subscriptions.figures(name, lag_max)

    def dead_letters(self, name: str, after: int, limit: int, seqs: Sequence[int] | None = None) -> list[DeadLetter]:
        with self._lock:
            return self._subscriptions.dead_letters(name, after, limit, seqs)

    def first_seq_at(self, processed_at_ns: int) -> int:
        with self._lock:
            later = (event.seq for event in self._state.log if event.processed_at_ns >= processed_at_ns)
            return next(later, len(self._state.log) + 1)

    def close(self) -> None:
        """Nothing to release."""


def _same_content(first: StoredEvent | _Variant, source: str, payload: bytes) -> bool:
    return first.source == source and jsonvalue.equal(first.payload, payload)


def _may_read(topic: str, readable: Readable) -> bool:
    return readable is None or any(matches(pattern, topic) for pattern in readable)


def _matches(event: StoredEvent, query: Query) -> bool:
    return (
        _may_read(event.topic, query.readable)
        and (query.topic is None or matches(query.topic, event.topic))
        and (query.source is None or event.source == query.source)
        and (query.since_ns is None or event.timestamp_ns >= query.since_ns)
        and (query.until_ns is None or event.timestamp_ns < query.until_ns)
        and (query.event_id is None or event.event_id == query.event_id)
        and (query.seqs is None or event.seq in query.seqs)
        and event.seq > query.after
        and (query.up_to is None or event.seq <= query.up_to)
    )


def _key(event: StoredEvent, query: Query) -> tuple[int, ...]:
    return (event.timestamp_ns, event.seq) if query.order.by_time else (event.seq,)
