"""The lanes of a subscription against a naive model: Hypothesis stores, takes, acknowledges, fails, waits and restarts.

The model knows of every event whether it is settled, held or free, by looking at all of them. What lanes say is to be
stored goes into the specification of a store, and after a restart other lanes begin with what comes out of that.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sekali.delivery import Create, Definition, Ordering, Progress, Seek, Subscription
from sekali.ports import StoredEvent
from sekali.stores.memory_subscriptions import Subscriptions
from sekali.subscriptions.lane import Counts, Found, Settlement, Want
from sekali.subscriptions.lanes import Lanes

NAME = "s"
START_NS = 1000
seqs_of = st.sets(st.integers(0, 6), min_size=1, max_size=4)


@dataclass(frozen=True)
class Event:
    """What the model knows of an event. ``lease`` holds it."""

    settled: bool = False
    failed: int = 0
    due_ns: int = 0
    lease: str | None = None


class LanesMachine(RuleBasedStateMachine):
    exclusive = True
    seen: ClassVar[Counter[str]] = Counter()  # over all runs: a machine that never does something shows nothing of it

    @initialize(max_attempts=st.integers(1, 5))
    def start(self, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self.now_ns = START_NS
        self.log: list[StoredEvent] = []
        self.notes: list[tuple[int, list[str]]] = []
        self.store = Subscriptions(self.log)
        order = Ordering.TOPIC if self.exclusive else Ordering.NONE
        self.store.apply(Create(Subscription(NAME, Definition("t/*", "earliest", order=order), 0, 0)))
        self.saved: dict[int, Event] = {}  # by seq: what is durable
        self.leases_made = 0
        self.restart()

    def restart(self) -> None:
        """Begin with what is stored."""
        self.events = {seq: replace(event, lease=None) for seq, event in self.saved.items()}
        self.under_way: list[tuple[Settlement, Progress, dict[int, Event]]] = []
        self.expiries: dict[str, int] = {}
        self.noted = len(self.log)
        self.counts = Counts()
        self.lanes = Lanes(
            exclusive=self.exclusive,
            max_attempts=self.max_attempts,
            head=len(self.log),
            pending=self.store.pending(NAME),
            counts=self.counts,
            now_ns=self.now_ns,
        )

    # What the model can tell.

    def topic(self, seq: int) -> str:
        return self.log[seq - 1].topic

    def unsettled(self, topic: str) -> list[int]:
        return [
            seq
            for seq, event in sorted(self.events.items())
            if not event.settled and seq <= self.noted and self.topic(seq) == topic
        ]

    def held(self, lease: str) -> list[int]:
        return [seq for seq, event in sorted(self.events.items()) if event.lease == lease]

    def may_be_given(self, topic: str) -> list[int]:
        """All events of a topic that somebody could get now, in order."""
        unsettled = self.unsettled(topic)
        free = [seq for seq in unsettled if self.events[seq].lease is None]
        due = [seq for seq in free if self.events[seq].due_ns <= self.now_ns]
        if not self.exclusive:
            return due
        if self.is_committing(topic) or free != unsettled:
            return []
        run = []
        for seq in free:
            if seq not in due:
                break
            run.append(seq)
        return run

    def is_committing(self, topic: str) -> bool:
        return any(lane.topic == topic for _, progress, _ in self.under_way for lane in progress.lanes)

    # What happens.

    @rule(topics=st.lists(st.sampled_from(["t/a", "t/b", "t/c", "other"]), min_size=1, max_size=5), tell=st.booleans())
    def store_events(self, topics: list[str], tell: bool) -> None:
        for topic in topics:
            seq = len(self.log) + 1
            self.log.append(StoredEvent(seq, topic, str(seq), 0, 0, "", None, b"1"))
            if topic != "other":
                self.events[seq] = self.saved[seq] = Event()
        self.notes.append((len(self.log), sorted({topic for topic in topics if topic != "other"})))
        while tell and self.notes:
            self.tell_what_was_stored()

    @precondition(lambda self: self.notes)
    @rule()
    def tell_what_was_stored(self) -> None:
        head, topics = self.notes.pop(0)
        if topics:
            self.lanes.stored(head, topics, self.now_ns)
            self.noted = max(self.noted, head)

    @precondition(lambda self: any(self.unsettled(topic) for topic in ("t/a", "t/b", "t/c")))
    @rule(
        lanes_max=st.integers(1, 3),
        events_max=st.integers(1, 6),
        read=st.sampled_from([3, 3, 2, 1, 0]),
        lease_ns=st.integers(1, 50),
        then=st.sampled_from(["hold", "acknowledge", "fail", "fail", "run out"]),
        which=seqs_of,
    )
    def consume(self, lanes_max: int, events_max: int, read: int, lease_ns: int, then: str, which: set[int]) -> None:
        lease_id = self.take(lanes_max, events_max, read, lease_ns)
        if lease_id in self.expiries and then != "hold":
            place = sorted(self.expiries).index(lease_id)
            if then == "acknowledge":
                self.acknowledge(place, which, foreign=False)
            elif then == "fail":
                self.give_back(place, which, foreign=False, delay_ns=0)
            else:
                self.wait(lease_ns)
                self.tick()

    def take(self, lanes_max: int, events_max: int, read: int, lease_ns: int) -> str:
        self.tick()
        eligible = {topic: self.may_be_given(topic) for topic in ("t/a", "t/b", "t/c")}
        eligible = {topic: seqs for topic, seqs in eligible.items() if seqs}
        wants = self.lanes.take(lanes_max, events_max, self.now_ns)
        topics = [want.topic for want in wants]
        assert len(set(topics)) == len(topics) <= lanes_max
        alone = [want for want in wants if self.is_alone(want.seqs[:1])]
        assert not alone or len(wants) == 1
        assert set(topics) <= eligible.keys(), "somebody gets what is not there"
        # What goes back may be given again once that is durable.
        surely = {topic for topic in eligible if not self.is_committing(topic)}
        assert wants or not surely, "somebody waits for nothing"
        if lanes_max == 3 and not any(self.is_alone(seqs[:1]) for seqs in eligible.values()):
            assert surely <= set(topics)
        found = [self.read(want, events_max) for want in wants[:read]]
        self.lanes.put_back(reversed(wants[len(found) :]), self.now_ns)
        self.leases_made += 1
        lease_id = f"lease {self.leases_made}"
        lease = self.lanes.lease(lease_id, found, self.now_ns + lease_ns, self.now_ns)
        given = [seq for one in found for seq in one.seqs]
        assert (lease is None) == (not given)
        for one in found:
            self.give(lease_id, one, eligible.get(one.want.topic, []))
        if given:
            self.expiries[lease_id] = self.now_ns + lease_ns
            self.seen["alone" if alone else "together"] += 1
        return lease_id

    def is_alone(self, seqs: Any) -> bool:
        return any(self.events[seq].failed > 0 and self.events[seq].failed * 2 >= self.max_attempts for seq in seqs)

    def read(self, want: Want, events_max: int) -> Found:
        seqs = list(want.seqs)
        assert len(seqs) <= events_max
        if not want.is_fresh:
            return Found(want, seqs, is_all=True)
        fresh = [event.seq for event in self.log if event.topic == want.topic and want.after < event.seq <= want.head]
        room = events_max - len(seqs)
        return Found(want, seqs + fresh[:room], is_all=len(fresh) <= room)

    def give(self, lease_id: str, found: Found, eligible: list[int]) -> None:
        if self.exclusive:
            assert list(found.seqs) == eligible[: len(found.seqs)], "a run skips something, or comes too early"
        assert set(found.seqs) <= set(eligible)
        assert list(found.seqs) == sorted(set(found.seqs))
        for seq in found.seqs:
            event = self.events[seq]
            assert found.want.attempts.get(seq, 1) == event.failed + 1 <= self.max_attempts
            assert not (self.is_alone([seq]) and len(found.seqs) > 1)
            self.seen["again"] += event.failed > 0
            self.events[seq] = replace(event, lease=lease_id)

    @precondition(lambda self: self.expiries)
    @rule(lease=st.integers(0, 5), which=seqs_of, foreign=st.booleans())
    def acknowledge(self, lease: int, which: set[int], foreign: bool) -> None:
        lease_id, held, named = self.choose(lease, which, foreign)
        lost, settlement = self.lanes.acknowledge(lease_id, named)
        assert lost == [seq for seq in named if seq not in held]
        self.settle(settlement, {seq: Event(settled=True) for seq in named if seq in held}, [])

    @precondition(lambda self: self.expiries)
    @rule(lease=st.integers(0, 5), which=seqs_of, foreign=st.booleans(), delay_ns=st.sampled_from([0, 0, 7, 60]))
    def give_back(self, lease: int, which: set[int], foreign: bool, delay_ns: int) -> None:
        lease_id, held, named = self.choose(lease, which, foreign)
        due_ns = self.now_ns + delay_ns
        lost, settlement = self.lanes.give_back(lease_id, named, due_ns, "why", self.now_ns)
        assert lost == [seq for seq in named if seq not in held]
        self.fail([seq for seq in named if seq in held], held, due_ns, settlement, "why")

    def choose(self, lease: int, which: set[int], foreign: bool) -> tuple[str, list[int], list[int]]:
        """Choose a lease, what it holds, and some seqs, most of which it holds."""
        lease_id = sorted(self.expiries)[lease % len(self.expiries)] if self.expiries else "none"
        held = self.held(lease_id)
        named = sorted({held[place % len(held)] for place in which if held} | ({1, 2} if foreign else set()))
        return lease_id, held, named

    def fail(self, seqs: list[int], held: list[int], due_ns: int, settlement: Settlement | None, error: str) -> None:
        changed: dict[int, Event] = {}
        dead = []
        for seq in seqs:
            failed = self.events[seq].failed + 1
            if failed >= self.max_attempts:
                dead.append((seq, failed, error))
                changed[seq] = Event(settled=True)
            else:
                changed[seq] = Event(failed=failed, due_ns=due_ns)
        if self.exclusive:  # what follows goes back, too
            for seq in held:
                if seq not in seqs and any(self.topic(one) == self.topic(seq) and one < seq for one in seqs):
                    self.events[seq] = replace(self.events[seq], lease=None)
                    self.seen["followers"] += 1
        self.seen["dead"] += len(dead)
        self.settle(settlement, changed, dead)

    def settle(
        self, settlement: Settlement | None, changed: dict[int, Event], dead: list[tuple[int, int, str]]
    ) -> None:
        assert (settlement is None) == (not changed)
        if settlement is None:
            return
        assert [(one.seq, one.attempts, one.error) for one in settlement.dead] == dead
        assert [lane.topic for lane in settlement.lanes] == list(dict.fromkeys(map(self.topic, changed)))
        self.events |= changed
        self.under_way.append((settlement, Progress(NAME, settlement.states(), settlement.dead), changed))

    @rule(ns=st.integers(0, 40))
    def wait(self, ns: int) -> None:
        self.now_ns += ns

    def tick(self) -> None:
        settlement = self.lanes.tick(self.now_ns)
        over = sorted((at_ns, lease_id) for lease_id, at_ns in self.expiries.items() if at_ns <= self.now_ns)
        seqs = [seq for _, lease_id in over for seq in self.held(lease_id)]
        for _, lease_id in over:
            del self.expiries[lease_id]
        self.seen["expired"] += bool(seqs)
        self.fail(seqs, [], self.now_ns, settlement, "the lease ran out")
        next_ns = self.lanes.next_at_ns()
        assert next_ns is None or next_ns > self.now_ns

    @precondition(lambda self: self.expiries)
    @rule(lease=st.integers(0, 5), lease_ns=st.integers(1, 50))
    def extend(self, lease: int, lease_ns: int) -> None:
        lease_id, held, _ = self.choose(lease, set(), False)
        assert (self.lanes.extend(lease_id, self.now_ns + lease_ns) or []) == held
        if held:
            self.expiries[lease_id] = self.now_ns + lease_ns

    @precondition(lambda self: self.expiries)
    @rule(lease=st.integers(0, 5))
    def release(self, lease: int) -> None:
        lease_id, held, _ = self.choose(lease, set(), False)
        self.lanes.release(lease_id, self.now_ns)
        for seq in held:
            self.events[seq] = replace(self.events[seq], lease=None, due_ns=0)
        self.expiries.pop(lease_id, None)

    @precondition(lambda self: any(event.settled for event in self.events.values()))
    @rule(which=seqs_of)
    def reopen(self, which: set[int]) -> None:
        settled = [seq for seq, event in self.events.items() if event.settled]
        seqs = sorted({settled[place % len(settled)] for place in which if settled})
        by_topic: dict[str, list[int]] = {}
        for seq in seqs:
            by_topic.setdefault(self.topic(seq), []).append(seq)
        self.settle(self.lanes.reopen(by_topic), {seq: Event() for seq in seqs}, [])
        self.seen["reopened"] += bool(seqs)

    @precondition(lambda self: self.under_way)
    @rule(count=st.integers(1, 3))
    def commit_some(self, count: int) -> None:
        for _ in range(min(count, len(self.under_way))):
            self.commit()

    def commit(self) -> None:
        settlement, progress, changed = self.under_way.pop(0)
        self.store.apply(progress)
        self.saved |= changed
        self.lanes.committed(settlement, self.now_ns)

    @precondition(lambda self: self.expiries or self.under_way)
    @rule()
    def crash(self) -> None:
        self.seen["crashed with something under way"] += bool(self.under_way)
        self.restart()

    @precondition(lambda self: self.log)
    @rule(position=st.integers(0, 30))
    def seek(self, position: int) -> None:
        self.store.apply(Seek(NAME, min(position, len(self.log))))
        self.saved = {seq: Event(settled=seq <= position) for seq in self.saved}
        self.restart()

    # What always holds.

    @invariant()
    def figures_and_answers_agree(self) -> None:
        if not hasattr(self, "events"):
            return
        given = [event for event in self.events.values() if event.lease is not None]
        assert self.lanes.in_flight == len(given)
        for seq, event in self.events.items():
            if seq <= self.noted:
                assert self.lanes.is_settled(self.topic(seq), seq) == event.settled
        if self.exclusive:
            for topic in ("t/a", "t/b", "t/c"):
                holders = {self.events[seq].lease for seq in self.unsettled(topic)} - {None}
                assert len(holders) <= 1, "two hold one topic"

    def teardown(self) -> None:
        """Consume all that is left: nothing is skipped, nothing is left behind."""
        if not hasattr(self, "events"):
            return
        while self.notes:
            self.tell_what_was_stored()
        for _ in range(1000):
            while self.under_way:
                self.commit()
            if all(event.settled for event in self.events.values()):
                break
            self.now_ns += 100
            self.take(3, 6, 3, 50)
            for lease_id in list(self.expiries):
                held = self.held(lease_id)
                _, settlement = self.lanes.acknowledge(lease_id, held)
                self.settle(settlement, {seq: Event(settled=True) for seq in held}, [])
                del self.expiries[lease_id]
        assert all(event.settled for event in self.events.values()), "something is never delivered"
        assert self.store.pending(NAME) == []
        assert self.lanes.in_flight == self.lanes.waiting == 0
        self.take(3, 6, 3, 50)  # lanes that were told of what was not for them
        assert self.lanes._lanes == {} and self.lanes._leases == {}


class UnorderedMachine(LanesMachine):
    exclusive = False
    seen: ClassVar[Counter[str]] = Counter()


TestOrderedLanes = LanesMachine.TestCase
TestOrderedLanes.settings = settings(max_examples=400, stateful_step_count=50, deadline=None, print_blob=True)
TestUnorderedLanes = UnorderedMachine.TestCase
TestUnorderedLanes.settings = settings(max_examples=200, stateful_step_count=50, deadline=None, print_blob=True)


def test_the_machines_met_what_they_are_about() -> None:
    """Runs after the two above."""
    for machine in (LanesMachine, UnorderedMachine):
        for what in ("alone", "together", "again", "dead", "expired", "reopened", "crashed with something under way"):
            assert machine.seen[what], (machine, what)
    assert LanesMachine.seen["followers"]
