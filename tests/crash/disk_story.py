"""What is published on a disk that fails, and what has to be true of the store afterwards."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from batches import CONFLICT, DUPLICATE, STORED, batch, read_all
from crash.disk_subscriptions import Consuming
from sekali import jsonvalue
from sekali.event import Batch, Outcome, Verdict
from sekali.ports import EventStore, Query, StoredEvent

COMMITS = 16
STORY_SEED = 4
TOPICS = ("app/a", "app/b", "sensor")


class Event(NamedTuple):
    """An event as it is sent."""

    topic: str
    event_id: str
    payload: bytes
    source: str

    @property
    def identity(self) -> tuple[str, str]:
        return self.topic, self.event_id

    def is_like(self, other: "Event") -> bool:
        """Tell whether both are the same event to Sekali."""
        return (
            self.identity == other.identity
            and self.source == other.source
            and jsonvalue.equal(self.payload, other.payload)
        )


Request = tuple[Event, ...]
Commit = tuple[tuple[Request, ...], ...]  # groups of requests, prepared one after the other and committed together


def tell(commits: int = COMMITS, seed: int = STORY_SEED) -> list[Commit]:
    """Return what is published: always the same for a seed, with a bit of everything in it.

    New events in several topics, some of them large; the same again in the same and in other words; other content for
    an identity that is taken; each within one request, across requests and groups of a commit, and across commits.
    """
    chance = random.Random(seed)
    sent: list[Event] = []
    story: list[Commit] = []
    for number in range(commits):
        groups: list[tuple[Request, ...]] = []
        for group in range(1 + (number % 4 == 2)):
            requests: list[Request] = []
            for place in range(1 + (number % 3 == 1)):
                request = list(_new(chance, f"{number}-{group}-{place}", large=number % 8 == 3))
                for _ in range(number % 3):
                    request.append(_again(chance, chance.choice([*sent, *request])))
                sent += request
                requests.append(tuple(request))
            groups.append(tuple(requests))
        story.append(tuple(groups))
    return story


def _new(chance: random.Random, name: str, *, large: bool) -> Iterator[Event]:
    for number in range(chance.randint(1, 3)):
        filler = "x" * (9000 if large and not number else chance.randrange(40))
        payload = f'{{"n":{number},"of":"{name}","filler":"{filler}"}}'
        yield Event(chance.choice(TOPICS), f"{name}-{number}", payload.encode(), chance.choice(("", "host")))


def _again(chance: random.Random, event: Event) -> Event:
    """Send an event again: as it was, in other words, or with other content."""
    how = chance.randrange(4)
    if how == 0:
        return event._replace(payload=event.payload.replace(b'"n":', b' "n" : ').replace(b",", b" , "))
    if how == 1:
        return event._replace(payload=b'{"other":%d}' % chance.randrange(2))
    if how == 2:
        return event._replace(source="another")
    return event


def batch_of(request: Request) -> Batch:
    """Return the events as a batch. Those of a host have numbers, with gaps, so that sources are counted too."""
    made = batch(*request)
    made.source_seqs = [int(event.event_id.replace("-", "")) if event.source else None for event in request]
    return made


class Lost(AssertionError):
    """The store does not hold what it acknowledged, or holds what it should not."""


def require(holds: bool, what: object) -> None:
    if not holds:
        raise Lost(what)


class Ledger:
    """What was sent and what was answered; the answers are checked as they come."""

    def __init__(self) -> None:
        self.attempts = 0  # how many events went out, each time they did
        self.answers: Counter[Outcome] = Counter()
        self._sent: dict[tuple[str, str], set[Event]] = {}
        self._seqs: dict[tuple[str, str], int] = {}
        self._owners: dict[int, tuple[str, str]] = {}
        self._first: dict[tuple[str, str], Event] = {}  # what is stored, byte for byte
        self._like: list[tuple[Event, bool]] = []  # whether what is stored is like it
        self._repeats: Counter[tuple[tuple[str, str], Outcome]] = Counter()
        self.consuming = Consuming()

    def seqs(self) -> dict[str, list[int]]:
        """Return what was answered to be stored, by topic, of those that the subscription is to."""
        found: dict[str, list[int]] = {topic: [] for topic in TOPICS if topic.startswith("app/")}
        for seq, (topic, _) in sorted(self._owners.items()):
            if topic in found:
                found[topic].append(seq)
        return found

    def sends(self, request: Request) -> None:
        """Note that a request goes out."""
        self.attempts += len(request)
        for event in request:
            self._sent.setdefault(event.identity, set()).add(event)

    def hears(self, request: Request, verdicts: Sequence[Verdict]) -> None:
        """Note an answer."""
        for event, verdict in zip(request, verdicts, strict=True):
            outcome, seq = verdict.outcome, verdict.seq
            require(outcome in {STORED, DUPLICATE, CONFLICT} and seq is not None, (event, verdict))
            assert seq is not None
            self.answers[outcome] += 1
            require(self._seqs.setdefault(event.identity, seq) == seq, f"{event}: {verdict}, not as before")
            require(self._owners.setdefault(seq, event.identity) == event.identity, f"{event}: {verdict} again")
            if outcome is STORED:
                require(event.identity not in self._first, f"{event}: stored twice")
                self._first[event.identity] = event
            else:
                self._repeats[event.identity, outcome] += 1
            self._like.append((event, outcome is not CONFLICT))

    def check(self, store: EventStore) -> dict[tuple[str, str], tuple[int, Event]]:
        """Everything acknowledged is there once, with what was sent, and nothing else; return what is there.

        Raises:
            Lost: it is not.

        """
        rows: list[StoredEvent] = read_all(store, Query())
        found = {
            (row.topic, row.event_id): (row.seq, Event(row.topic, row.event_id, row.payload, row.source))
            for row in rows
        }
        require(len(found) == len(rows), "an identity is there twice")
        require([row.seq for row in rows] == list(range(1, len(rows) + 1)), "seqs have gaps")
        for identity, (_, event) in found.items():
            require(event in self._sent.get(identity, ()), f"{event} was never sent")
        for identity, seq in self._seqs.items():
            require(identity in found and found[identity][0] == seq, f"{identity} with seq {seq} is lost")
        for identity, event in self._first.items():
            require(found[identity][1] == event, f"{event} is not as it was sent")
        for event, is_like in self._like:
            require(found[event.identity][1].is_like(event) == is_like, f"the answer to {event} was wrong")
        self._check_counts(store, {(row.topic, row.event_id): row.duplicates for row in rows})
        self._check_lookups(store, found)
        fault = self.consuming.fault(store)
        require(fault is None, fault)
        return found

    def _check_counts(self, store: EventStore, duplicates: dict[tuple[str, str], int]) -> None:
        lifetime = store.summary().lifetime
        require(lifetime.stored == len(duplicates), f"{lifetime} for {len(duplicates)} rows")
        require(lifetime.received == lifetime.stored + lifetime.duplicate + lifetime.conflict, lifetime)
        require(lifetime.received <= self.attempts, f"{lifetime} of {self.attempts} that were sent")
        for outcome, counted in (
            (STORED, lifetime.stored),
            (DUPLICATE, lifetime.duplicate),
            (CONFLICT, lifetime.conflict),
        ):
            require(counted >= self.answers[outcome], f"{lifetime} after {self.answers}")
        require(sum(duplicates.values()) == lifetime.duplicate, f"{lifetime} and {sum(duplicates.values())} by event")
        variants = Counter[tuple[str, str]]()
        for conflict in store.conflicts(0, 10_000):
            variants[conflict.topic, conflict.event_id] += conflict.count
        require(variants.total() == lifetime.conflict, f"{lifetime} and {variants.total()} by variant")
        for (identity, outcome), count in self._repeats.items():
            counted = duplicates[identity] if outcome is DUPLICATE else variants[identity]
            require(counted >= count, f"{identity}: {counted} of {count} times {outcome}")
        topics = store.topics("", 100)
        require(sum(topic.stored for topic in topics) == len(duplicates), topics)

    def _check_lookups(self, store: EventStore, found: dict[tuple[str, str], tuple[int, Event]]) -> None:
        """The index leads to all that is there, and to nothing else."""
        for topic in TOPICS:
            asked = [event_id for of, event_id in self._sent if of == topic]
            missing = [event_id for event_id in asked if (topic, event_id) not in found]
            require(store.missing(topic, [*asked, "never sent"]) == [*missing, "never sent"], "the index is wrong")

    def resend(self, store: EventStore, story: Sequence[Commit]) -> None:
        """Send the whole story; each verdict is what follows from what the store holds.

        Raises:
            Lost: one is not.

        """
        found = self.check(store)
        requests = list(chain.from_iterable(chain.from_iterable(story)))
        expected = [[_verdict(event, found) for event in request] for request in requests]
        for request in requests:
            self.sends(request)
        verdicts = store.commit([store.prepare(list(map(batch_of, requests)))])
        require(verdicts == expected, "a verdict of the resend is wrong")
        for request, answers in zip(requests, verdicts, strict=True):
            self.hears(request, answers)
        require(self.check(store) == found, "after the resend something else is there")


def _verdict(event: Event, found: dict[tuple[str, str], tuple[int, Event]]) -> Verdict:
    """Return the verdict for an event where ``found`` is stored, to which it is added."""
    known = event.identity in found
    seq, stored = found.setdefault(event.identity, (len(found) + 1, event))
    if not known:
        return Verdict(STORED, seq)
    return Verdict(DUPLICATE if stored.is_like(event) else CONFLICT, seq)
