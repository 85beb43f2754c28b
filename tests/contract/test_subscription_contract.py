"""What every store keeps of subscriptions. One suite; no store may skip a line of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from batches import STORED, batch, publish
from sekali.delivery import (
    Alter,
    Change,
    Create,
    DeadLetter,
    Definition,
    Delete,
    Figures,
    Forget,
    LaneState,
    Open,
    Pause,
    PendingLane,
    Place,
    Progress,
    Seek,
    Subscription,
)
from sekali.errors import CommitUnknown
from sekali.ports import EventStore, Query, StoredEvent
from sekali.stores.memory import MemoryStore
from sekali.stores.sqlite import SqliteStore
from sekali.testing import DuplicatingStore, FailingStore, FakeClock

LAG_MAX = 100


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[EventStore]:
    made: EventStore
    if request.param == "memory":
        made = MemoryStore(clock, topics_max=10)
    else:
        made = SqliteStore(tmp_path / "store.db", clock, topics_max=10)
    made.recover()
    yield made
    made.close()


def subscription(name: str = "s", topic: str = "t/**", position: int = 0) -> Subscription:
    return Subscription(name, Definition(topic, "earliest"), position, 5)


def change(store: EventStore, *changes: Change) -> None:
    assert store.commit([store.prepare_changes(changes)]) == []


def with_subscription(store: EventStore, *events: str, position: int = 0) -> None:
    """Store an event in each of the topics, seqs from 1, and make a subscription to t/**."""
    publish(store, *((topic, f"{topic} {number}") for number, topic in enumerate(events)))
    change(store, Create(subscription(position=position)))


def pending(store: EventStore, name: str = "s") -> dict[str, tuple[int, list[int], int]]:
    """Return cursor, what is open, and the newest seq of each lane in which something is not settled."""
    _, lanes = store.pending(name)
    topics = [lane.state.topic for lane in lanes]
    assert topics == sorted(topics)
    return {
        lane.state.topic: (lane.state.cursor, [event.seq for event in lane.state.open], lane.last_seq) for lane in lanes
    }


def dead(store: EventStore, name: str = "s") -> list[int]:
    return [one.seq for one in store.dead_letters(name, 0, 100)]


class TestDefinitions:
    def test_there_are_none_at_first(self, store: EventStore) -> None:
        assert store.subscriptions() == []
        assert store.pending("s") == (0, [])
        assert store.figures("s", LAG_MAX) == Figures(0, True, None, 0)
        assert store.dead_letters("s", 0, 10) == []

    def test_they_are_kept_whole_and_listed_by_name(self, store: EventStore) -> None:
        pushed = Definition(
            "t/*",
            Place(time="2026-01-01T00:00:00Z"),
            max_attempts=3,
            lease_seconds=0.5,
            paused=True,
            url="https://example.com/hook",
            secret="whsec_c2VjcmV0",
        )
        change(store, Create(Subscription("b", pushed, 7, 11)), Create(subscription("a")))
        assert store.subscriptions() == [subscription("a"), Subscription("b", pushed, 7, 11)]

    def test_altering_keeps_the_position(self, store: EventStore) -> None:
        with_subscription(store, "t/a", position=1)
        altered = Definition("t/**", "earliest", max_attempts=99)
        change(store, Alter("s", altered), Alter("nobody", altered))
        assert store.subscriptions() == [Subscription("s", altered, 1, 5)]

    def test_why_it_was_paused_is_kept_until_it_is_altered_again(self, store: EventStore) -> None:
        change(store, Create(subscription()))
        paused, pause = Definition("t/**", "earliest", paused=True), Pause("é \u0000 gone", 7)
        change(store, Alter("s", paused, pause))
        assert store.subscriptions() == [Subscription("s", paused, 0, 5, pause)]
        change(store, Seek("s", 0))
        assert store.subscriptions() == [Subscription("s", paused, 0, 5, pause)]
        change(store, Alter("s", paused))
        assert store.subscriptions() == [Subscription("s", paused, 0, 5)]

    def test_deleting_leaves_nothing_that_another_of_that_name_would_find(self, store: EventStore) -> None:
        with_subscription(store, "t/a", "t/a")
        change(store, Progress("s", [LaneState("t/a", 2)], [DeadLetter(1, "t/a", 3, "no", 9)]))
        assert pending(store) == {} and dead(store) == [1]
        change(store, Delete("s"), Delete("s"))
        assert store.subscriptions() == [] and pending(store) == {} and dead(store) == []
        change(store, Create(subscription()))
        assert pending(store) == {"t/a": (0, [], 2)} and dead(store) == []


class TestLanes:
    def test_what_is_above_the_position_and_matches_is_pending(self, store: EventStore) -> None:
        with_subscription(store, "t/a", "other", "t/b", "t/a", position=1)
        assert store.pending("s") == (
            4,
            [PendingLane(LaneState("t/a", 1), 4), PendingLane(LaneState("t/b", 1), 3)],
        )
        publish(store, ("t/c/d", "new"), ("other", "new"))
        assert pending(store) == {"t/a": (1, [], 4), "t/b": (1, [], 3), "t/c/d": (1, [], 5)}

    @pytest.mark.parametrize("topic", ["t/a", "t/*", "**", "*/a", "**/a"])
    def test_patterns_of_every_kind(self, store: EventStore, topic: str) -> None:
        publish(store, ("t/a", "1"), ("x", "1"))
        change(store, Create(subscription(topic=topic)))
        assert "t/a" in pending(store)
        assert ("x" in pending(store)) == (topic == "**")

    def test_progress_replaces_a_lane_and_leaves_the_others(self, store: EventStore) -> None:
        with_subscription(store, "t/a", "t/a", "t/b", "t/a")
        opened = (Open(1, 2, 77), Open(2))
        change(store, Progress("s", [LaneState("t/a", 4, opened)]))
        assert store.pending("s")[1] == [
            PendingLane(LaneState("t/a", 4, opened), 4),
            PendingLane(LaneState("t/b", 0), 3),
        ]
        change(store, Progress("s", [LaneState("t/a", 4, (Open(2),)), LaneState("t/b", 3)]))
        assert store.pending("s")[1] == [PendingLane(LaneState("t/a", 4, (Open(2),)), 4)]
        change(store, Progress("s", [LaneState("t/a", 4)]))
        assert pending(store) == {}
        publish(store, ("t/b", "later"))
        assert pending(store) == {"t/b": (3, [], 5)}

    def test_of_two_changes_of_a_commit_the_later_holds(self, store: EventStore) -> None:
        with_subscription(store, "t/a", "t/a")
        change(store, Progress("s", [LaneState("t/a", 2, (Open(1),))]), Progress("s", [LaneState("t/a", 2)]))
        assert pending(store) == {}

    def test_subscriptions_do_not_touch_each_other(self, store: EventStore) -> None:
        with_subscription(store, "t/a", "t/a")
        change(store, Create(subscription("other")))
        change(store, Progress("s", [LaneState("t/a", 2)], [DeadLetter(2, "t/a", 1, "", 0)]))
        assert pending(store, "other") == {"t/a": (0, [], 2)} and dead(store, "other") == []
        change(store, Seek("other", 1), Forget("other"))
        assert pending(store) == {} and dead(store) == [2]

    def test_progress_of_one_that_was_deleted_is_nothing(self, store: EventStore) -> None:
        with_subscription(store, "t/a")
        change(store, Delete("s"))
        change(store, Progress("s", [LaneState("t/a", 1)], [DeadLetter(1, "t/a", 1, "", 0)]), Seek("s", 1), Forget("s"))
        change(store, Create(subscription()))
        assert pending(store) == {"t/a": (0, [], 1)} and dead(store) == []

    def test_seek_makes_everything_above_pending_and_nothing_below(self, store: EventStore) -> None:
        with_subscription(store, "t/a", "t/a", "t/b", "t/a")
        letters = [DeadLetter(seq, topic, 1, "", 0) for seq, topic in ((1, "t/a"), (3, "t/b"), (4, "t/a"))]
        change(store, Progress("s", [LaneState("t/a", 4, (Open(2),)), LaneState("t/b", 3)], letters))
        change(store, Seek("s", 2))
        assert pending(store) == {"t/a": (2, [], 4), "t/b": (2, [], 3)}
        assert dead(store) == [1], "what comes again is no dead letter"
        change(store, Seek("s", 4))
        assert pending(store) == {}
        assert store.subscriptions()[0].position == 4


class TestDeadLetters:
    def test_they_are_kept_whole_and_paged_by_number(self, store: EventStore) -> None:
        with_subscription(store, "t/a", "t/b", "t/a")
        letters = [DeadLetter(3, "t/a", 10, "é \u0000 \U0001f600", 123), DeadLetter(2, "t/b", 1, "", 124)]
        change(store, Progress("s", [LaneState("t/a", 3)], letters))
        first, second = store.dead_letters("s", 0, 10)
        assert [(one.seq, one.topic, one.attempts, one.error, one.at_ns) for one in (first, second)] == [
            (one.seq, one.topic, one.attempts, one.error, one.at_ns) for one in letters
        ]
        assert first.number < second.number
        assert store.dead_letters("s", 0, 1) == [first]
        assert store.dead_letters("s", first.number, 10) == [second]
        assert store.dead_letters("s", second.number, 10) == []
        assert store.dead_letters("s", 0, 10, [2, 99]) == [second]
        assert store.dead_letters("s", 0, 10, []) == []

    def test_one_that_dies_again_comes_last_and_is_there_once(self, store: EventStore) -> None:
        with_subscription(store, "t/a", "t/a")
        change(store, Progress("s", [], [DeadLetter(1, "t/a", 1, "first", 1), DeadLetter(2, "t/a", 1, "", 2)]))
        change(store, Progress("s", [], [DeadLetter(1, "t/a", 2, "again", 3)]))
        assert [(one.seq, one.error) for one in store.dead_letters("s", 0, 10)] == [(2, ""), (1, "again")]

    def test_forgetting_some_or_all(self, store: EventStore) -> None:
        with_subscription(store, "t/a", "t/a", "t/a")
        change(store, Progress("s", [], [DeadLetter(seq, "t/a", 1, "", 1) for seq in (1, 2, 3)]))
        change(store, Forget("s", [2, 7]))
        assert dead(store) == [1, 3]
        change(store, Forget("s", []))
        assert dead(store) == [1, 3]
        change(store, Forget("s"))
        assert dead(store) == []


class TestFigures:
    def test_lag_counts_what_is_not_settled(self, store: EventStore, clock: FakeClock) -> None:
        with_subscription(store, "t/a", "other", "t/b", "t/a")
        stored_at_ns = clock.ns
        assert store.figures("s", LAG_MAX) == Figures(3, True, stored_at_ns, 0)
        change(store, Progress("s", [LaneState("t/a", 4, (Open(1),))], [DeadLetter(4, "t/a", 1, "", 0)]))
        assert store.figures("s", LAG_MAX) == Figures(2, True, stored_at_ns, 1)
        clock.advance(5)
        publish(store, ("t/b", "later"))
        assert store.figures("s", LAG_MAX) == Figures(3, True, stored_at_ns, 1)
        change(store, Progress("s", [LaneState("t/a", 4), LaneState("t/b", 3)]))
        assert store.figures("s", LAG_MAX) == Figures(1, True, clock.ns, 1)
        change(store, Progress("s", [LaneState("t/b", 5)]))
        assert store.figures("s", LAG_MAX) == Figures(0, True, None, 1)

    def test_counting_ends_at_the_most(self, store: EventStore) -> None:
        with_subscription(store, *["t/a"] * 3, *["t/b"] * 3)
        for lag_max, expected in ((5, (5, False)), (6, (6, True)), (3, (3, False)), (1, (1, False)), (7, (6, True))):
            figures = store.figures("s", lag_max)
            assert (figures.lag, figures.lag_is_exact) == expected, lag_max
        change(store, Progress("s", [LaneState("t/a", 3, (Open(1), Open(2)))]))
        figures = store.figures("s", 5)
        assert (figures.lag, figures.lag_is_exact) == (5, True)

    def test_the_first_event_of_a_time(self, store: EventStore, clock: FakeClock) -> None:
        assert store.first_seq_at(0) == 1
        times = []
        for number in range(7):
            times.append(clock.ns)
            publish(store, ("t", str(number)), ("t", f"{number} too"))
            clock.advance(1)
        for number, time_ns in enumerate(times):
            assert store.first_seq_at(time_ns) == 2 * number + 1
            assert store.first_seq_at(time_ns + 1) == 2 * number + 3
        assert store.first_seq_at(clock.ns) == 15
        assert store.first_seq_at(-(2**63)) == 1 and store.first_seq_at(2**63 - 1) == 15


class TestCommits:
    def test_changes_and_events_are_one_commit(self, store: EventStore) -> None:
        with_subscription(store, "t/a")
        prepared = [
            store.prepare([batch(("t/a", "2"))]),
            store.prepare_changes([Progress("s", [LaneState("t/a", 1)])]),
            store.prepare([batch(("t/a", "3"), ("t/b", "1"))]),
        ]
        verdicts = store.commit(prepared)
        assert [[verdict.outcome for verdict in one] for one in verdicts] == [[STORED], [STORED, STORED]]
        assert pending(store) == {"t/a": (1, [], 3), "t/b": (0, [], 4)}

    def test_a_commit_that_fails_changes_nothing(self, store: EventStore) -> None:
        failing = FailingStore(store)
        with_subscription(failing, "t/a")
        failing.failures_left = 1
        with pytest.raises(CommitUnknown):
            change(failing, Progress("s", [LaneState("t/a", 1)]))
        assert failing.failed == 1
        failing.recover()
        assert pending(failing) == {"t/a": (0, [], 1)}

    def test_duplicates_do_not_count(self, store: EventStore) -> None:
        duplicating = DuplicatingStore(store)
        with_subscription(duplicating, "t/a")
        change(duplicating, Progress("s", [LaneState("t/a", 1)]))
        publish(duplicating, ("t/a", "t/a 0"))
        assert pending(duplicating) == {}

    def test_some_seqs_can_be_read(self, store: EventStore) -> None:
        publish(store, *(("t", str(number)) for number in range(5)), ("u", "1"))
        for topic, found in ((None, [2, 4, 6]), ("t", [2, 4]), ("u", [6]), ("nobody", [])):
            page = store.read(Query(topic=topic, seqs=(6, 2, 4, 99)))
            assert [event.seq for event in page.events if isinstance(event, StoredEvent)] == found
            assert page.next is None
        assert store.read(Query(seqs=())).events == []
        page = store.read(Query(seqs=(1, 2, 3), limit=2))
        assert len(page.events) == 2 and page.next is not None
        assert [event.seq for event in store.read(Query(seqs=(1, 2, 3), position=page.next)).events] == [3]


def test_what_was_committed_is_there_after_a_restart(tmp_path: Path, clock: FakeClock) -> None:
    store = SqliteStore(tmp_path / "store.db", clock, topics_max=10)
    store.recover()
    with_subscription(store, "t/a", "t/a", "t/b")
    change(store, Progress("s", [LaneState("t/a", 2, (Open(1, 1, 5),))], [DeadLetter(2, "t/a", 1, "no", 3)]))
    before = store.subscriptions(), store.pending("s"), store.dead_letters("s", 0, 10), store.figures("s", LAG_MAX)
    store.close()
    store = SqliteStore(tmp_path / "store.db", clock, topics_max=10)
    store.recover()
    after = store.subscriptions(), store.pending("s"), store.dead_letters("s", 0, 10), store.figures("s", LAG_MAX)
    store.close()
    assert after == before and before[3].lag == 2
