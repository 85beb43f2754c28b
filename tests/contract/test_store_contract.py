"""What every store promises. One suite; no store may skip a line of it."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from batches import CONFLICT, DUPLICATE, INVALID, STORED, batch, commit, publish, read_all
from indexes import weak_hashes
from sekali.errors import CommitUnknown
from sekali.event import Batch, Verdict
from sekali.ports import (
    MISSING_RANGES_MAX,
    EventStore,
    Lifetime,
    Order,
    Position,
    Query,
    SourceInfo,
    SourceQuery,
    StoredEvent,
)
from sekali.stores import memory, sqlite_read, sqlite_source_pages
from sekali.stores.memory import MemoryStore
from sekali.stores.sqlite import SqliteStore
from sekali.testing import DuplicatingStore, FailingStore, FakeClock
from sekali.topics import matches

TOPICS_MAX = 5
CONFLICT_BYTES_MAX = 1000

Make = Callable[[Path, FakeClock], EventStore]


def _memory(_: Path, clock: FakeClock) -> EventStore:
    return MemoryStore(clock, topics_max=TOPICS_MAX, conflict_bytes_max=CONFLICT_BYTES_MAX)


def _sqlite(folder: Path, clock: FakeClock) -> EventStore:
    return SqliteStore(folder / "store.db", clock, topics_max=TOPICS_MAX, conflict_bytes_max=CONFLICT_BYTES_MAX)


def _sqlite_colliding(folder: Path, clock: FakeClock) -> EventStore:
    """Nearly all identities have the hash of another, and a few events already make runs and merges of runs."""
    return SqliteStore(
        folder / "store.db",
        clock,
        topics_max=TOPICS_MAX,
        conflict_bytes_max=CONFLICT_BYTES_MAX,
        hash_identities=weak_hashes(3),
        run_keys=4,
    )


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=[_memory, _sqlite, _sqlite_colliding], ids=["memory", "sqlite", "sqlite, colliding hashes"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[EventStore]:
    make: Make = request.param
    made = make(tmp_path, clock)
    made.recover()
    yield made
    made.close()
    made.close()  # closing twice is allowed


def lifetime(store: EventStore) -> Lifetime:
    return store.summary().lifetime


def seqs(store: EventStore, query: Query) -> list[int]:
    return [event.seq for event in read_all(store, query)]


class TestDedup:
    def test_an_event_is_stored_once_however_often_it_is_sent(self, store: EventStore) -> None:
        assert publish(store, ("a", "1")) == [(STORED, 1)]
        assert publish(store, ("a", "1")) == [(DUPLICATE, 1)]
        assert publish(store, ("a", "1"), ("a", "1")) == [(DUPLICATE, 1), (DUPLICATE, 1)]
        assert seqs(store, Query()) == [1]
        assert lifetime(store) == Lifetime(received=4, stored=1, duplicate=3)

    def test_duplicates_inside_one_batch_and_inside_one_commit(self, store: EventStore) -> None:
        first, second = commit(store, batch(("a", "1"), ("a", "1"), ("a", "2")), batch(("a", "2"), ("b", "2")))
        assert [verdict.outcome for verdict in first] == [STORED, DUPLICATE, STORED]
        assert [verdict.outcome for verdict in second] == [DUPLICATE, STORED]
        assert [verdict.seq for verdict in first + second] == [1, 1, 2, 2, 3]

    def test_the_same_id_in_another_topic_is_another_event(self, store: EventStore) -> None:
        assert publish(store, ("a", "1"), ("b", "1")) == [(STORED, 1), (STORED, 2)]

    def test_ids_are_compared_byte_for_byte(self, store: EventStore) -> None:
        ids = ["x", "X", "x ", " x", "é", "e", "0", "00", "x\u200b"]
        assert publish(store, *[("a", event_id) for event_id in ids]) == [
            (STORED, seq) for seq in range(1, len(ids) + 1)
        ]

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (b'{"a":1,"b":2}', b'{"b":2,"a":1}'),
            (b'{"a":1}', b'{ "a" : 1 }'),
            (b"1", b"1.0"),
            (b"1e2", b"100"),
            (b'"\\u0041"', b'"A"'),
            (b"0", b"-0.0"),
            (b"[1,[2.50]]", b"[1.0, [25e-1]]"),
        ],
    )
    def test_payloads_are_compared_as_json_values(self, store: EventStore, first: bytes, second: bytes) -> None:
        publish(store, ("a", "1", first))
        assert publish(store, ("a", "1", second)) == [(DUPLICATE, 1)]
        (event,) = read_all(store, Query())
        assert event.payload == first

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (b"1", b"2"),
            (b"1", b"true"),
            (b"0", b"false"),
            (b"null", b"0"),
            (b"[1,2]", b"[2,1]"),
            (b'{"a":1}', b'{"a":1,"b":null}'),
            (b"9007199254740993", b"9007199254740992"),
            (b"0.1", b"0.10000000000000001"),
            (b'"1"', b"1"),
        ],
    )
    def test_another_payload_is_a_conflict(self, store: EventStore, first: bytes, second: bytes) -> None:
        publish(store, ("a", "1", first))
        assert publish(store, ("a", "1", second)) == [(CONFLICT, 1)]
        (event,) = read_all(store, Query())
        assert event.payload == first

    def test_another_source_is_a_conflict_and_another_time_is_not(self, store: EventStore) -> None:
        publish(store, ("a", "1", b"{}", "host-1"))
        assert publish(store, ("a", "1", b"{}", "host-2")) == [(CONFLICT, 1)]
        later = batch(("a", "1", b"{}", "host-1"))
        later.timestamps_ns = [5]
        assert [verdict.outcome for verdict in commit(store, later)[0]] == [DUPLICATE]

    def test_missing_tells_what_is_not_stored_in_the_order_asked(self, store: EventStore) -> None:
        publish(store, ("a", "1"), ("b", "2"))
        assert store.missing("a", ["3", "1", "2", "3"]) == ["3", "2", "3"]
        assert store.missing("unknown", ["1"]) == ["1"]
        assert store.missing("a", []) == []


class TestConcurrency:
    def test_readers_see_whole_commits_in_order_while_the_writer_writes(self, store: EventStore) -> None:
        done = threading.Event()
        trouble: list[str] = []

        def watch() -> None:
            seen = 0
            while not done.is_set() or seen < 100 * 10:
                page = store.read(Query(after=seen))
                found = [event.seq for event in page.events]
                if found != list(range(seen + 1, seen + 1 + len(found))):
                    trouble.append(f"after {seen} came {found}")
                    return
                if len(found) % 10:
                    trouble.append(f"a commit of 10 was seen in part: {len(found)}")
                    return
                seen += len(found)

        watchers = [threading.Thread(target=watch) for _ in range(3)]
        for watcher in watchers:
            watcher.start()
        for number in range(100):
            publish(store, *[("a", f"{number}-{place}") for place in range(10)])
        done.set()
        for watcher in watchers:
            watcher.join(60)
            assert not watcher.is_alive()
        assert trouble == []

    def test_preparing_ahead_changes_nothing_and_is_judged_in_order(self, store: EventStore) -> None:
        prepared = [store.prepare([batch(("a", str(number)), ("a", "same"))]) for number in range(50)]
        assert store.summary().head == 0
        verdicts = store.commit(prepared[:20]) + store.commit(prepared[20:21]) + store.commit(prepared[21:])
        assert [answer[0] for answer in verdicts] == [
            Verdict(STORED, 1 if number == 0 else number + 2) for number in range(50)
        ]
        assert [answer[1] for answer in verdicts] == [Verdict(STORED, 2)] + [Verdict(DUPLICATE, 2)] * 49
        assert [event.event_id for event in read_all(store, Query())][:3] == ["0", "same", "1"]

    def test_one_thread_prepares_while_another_commits(self, store: EventStore) -> None:
        line: queue.SimpleQueue[object] = queue.SimpleQueue()
        verdicts: list[list[Verdict]] = []

        def commit_all() -> None:
            while (prepared := line.get()) is not None:
                verdicts.extend(store.commit([prepared]))

        writer = threading.Thread(target=commit_all)
        writer.start()
        for number in range(200):
            line.put(store.prepare([batch(("a", str(number)), ("a", str(number // 2)), ("b", str(number)))]))
        line.put(None)
        writer.join(60)
        assert not writer.is_alive()
        outcomes = [[verdict.outcome for verdict in answer] for answer in verdicts]
        assert outcomes == [[STORED, DUPLICATE, STORED]] * 200
        assert lifetime(store) == Lifetime(received=600, stored=400, duplicate=200)


class TestFailures:
    def test_after_a_failed_commit_the_retry_settles_it(self, store: EventStore) -> None:
        for after_commit, expected in ((False, STORED), (True, DUPLICATE)):
            failing = FailingStore(store, failures_left=1, after_commit=after_commit)
            event = ("a", f"event {after_commit}")
            with pytest.raises(CommitUnknown):
                publish(failing, event)
            failing.recover()
            assert publish(failing, event)[0][0] is expected, "what was prepared for the failed commit is forgotten"
            assert failing.failed == 1
        assert seqs(store, Query()) == [1, 2]

    def test_everything_sent_twice_is_stored_once(self, store: EventStore) -> None:
        duplicating = DuplicatingStore(store)
        assert publish(duplicating, ("a", "1"), ("a", "2")) == [(STORED, 1), (STORED, 2)]
        assert lifetime(store) == Lifetime(received=4, stored=2, duplicate=2)

    def test_a_commit_of_nothing_is_allowed(self, store: EventStore) -> None:
        assert store.commit([]) == []
        assert commit(store, batch()) == [[]]
        assert store.summary().head == 0

    def test_recovering_forgets_nothing(self, store: EventStore) -> None:
        publish(store, ("a", "1"), ("a", "1"), ("a", "1", b"1"))
        before = store.summary(), store.topics("", 10), store.conflicts(0, 10), read_all(store, Query())
        store.recover()
        assert (store.summary(), store.topics("", 10), store.conflicts(0, 10), read_all(store, Query())) == before
        assert publish(store, ("a", "2"), ("a", "1")) == [(STORED, 2), (DUPLICATE, 1)]


class TestTime:
    def test_processed_at_never_falls_though_the_clock_does(self, store: EventStore, clock: FakeClock) -> None:
        start_ns = clock.ns
        for number, seconds in enumerate((0, 10, -3600, 1, 7200)):
            clock.advance(seconds)
            publish(store, ("a", str(number)))
        store.recover()
        clock.advance(-86400)
        publish(store, ("a", "after"))
        times = [event.processed_at_ns - start_ns for event in read_all(store, Query())]
        assert times == [0, 10 * 10**9, 10 * 10**9, 10 * 10**9, 3611 * 10**9, 3611 * 10**9]

    def test_duplicates_are_counted_with_the_time_of_the_last(self, store: EventStore, clock: FakeClock) -> None:
        publish(store, ("a", "1"), ("a", "2"))
        clock.advance(5)
        publish(store, ("a", "1"), ("a", "1"))
        clock.advance(5)
        publish(store, ("a", "1"), ("a", "1", b"other"[:0] + b"7"))
        one, two = read_all(store, Query())
        assert (one.duplicates, one.last_duplicate_at_ns) == (3, clock.ns)
        assert (two.duplicates, two.last_duplicate_at_ns) == (0, None)


class TestConflicts:
    def test_a_variant_is_kept_once_for_each_content(self, store: EventStore, clock: FakeClock) -> None:
        publish(store, ("a", "1", b"1"), ("a", "2", b"1"))
        publish(store, ("a", "1", b'{"x":1,"y":2}'))
        clock.advance(1)
        publish(store, ("a", "1", b'{"y":2.0,"x":1}'), ("a", "1", b"3", "host"), ("a", "2", b"3"))
        first, second, third = store.conflicts(0, 10)
        assert (first.seq, first.topic, first.event_id) == (1, "a", "1")
        assert (first.payload, first.source, first.count) == (b'{"x":1,"y":2}', "", 2)
        assert first.last_at_ns - first.first_at_ns == 10**9
        assert (second.seq, second.payload, second.source, second.count) == (1, b"3", "host", 1)
        assert (third.seq, third.payload) == (2, b"3")
        assert lifetime(store).conflict == 4
        assert store.conflicts(first.number, 1) == [second]

    def test_beyond_the_maximum_the_oldest_variants_go_and_the_counts_stay(self, store: EventStore) -> None:
        publish(store, ("a", "1"))
        for number in range(10):
            publish(store, ("a", "1", b'"%d%s"' % (number, b"x" * 250)))
        kept = store.conflicts(0, 100)
        assert [conflict.payload[1:2] for conflict in kept] == [b"7", b"8", b"9"]
        assert lifetime(store).conflict == 10
        publish(store, ("a", "1", b'"%d%s"' % (0, b"x" * 250)))
        numbers = [conflict.number for conflict in store.conflicts(0, 100)]
        assert numbers == sorted(numbers) and numbers[-1] > kept[-1].number  # a number is never used again
        publish(store, ("a", "1", b'"%s"' % (b"y" * 2000)))
        assert store.conflicts(0, 100) == []


class TestTopics:
    def test_figures_of_each_topic(self, store: EventStore) -> None:
        publish(store, ("b", "1"), ("a", "1"), ("b", "2"), ("b", "1"), ("b", "1", b"7"))
        a, b = store.topics("", 10)
        assert (a.topic, a.stored, a.duplicates, a.conflicts, a.first_seq, a.last_seq) == ("a", 1, 0, 0, 2, 2)
        assert (b.topic, b.stored, b.duplicates, b.conflicts, b.first_seq, b.last_seq) == ("b", 2, 1, 1, 1, 3)
        assert (a.last_timestamp_ns, b.last_timestamp_ns) == (1001, 1002)
        assert store.topics("a", 10) == [b] and store.topics("", 1) == [a] and store.topics("b", 10) == []
        assert store.summary().topics_count == 2

    def test_the_latest_event_time_does_not_fall_with_a_late_event(self, store: EventStore) -> None:
        publish(store, ("a", "1"), ("a", "2"))
        late = batch(("a", "3"))
        late.timestamps_ns = [-5]
        commit(store, late)
        assert store.topics("", 10)[0].last_timestamp_ns == 1001

    def test_an_event_of_one_topic_too_many_is_invalid_and_its_neighbours_are_stored(self, store: EventStore) -> None:
        events = [(f"t{number}", "1") for number in range(TOPICS_MAX)]
        publish(store, *events[:-1])
        answer = commit(store, batch(events[-1], ("t-over", "1"), ("t0", "2"), ("t-over", "2")))[0]
        assert [verdict.outcome for verdict in answer] == [STORED, INVALID, STORED, INVALID]
        assert [verdict.seq for verdict in answer] == [TOPICS_MAX, None, TOPICS_MAX + 1, None]
        assert "TOPICS_MAX" in str(answer[1].error)
        assert lifetime(store).received == TOPICS_MAX + 1
        assert publish(store, ("t-over", "1")) == [(INVALID, None)]

    def test_all_or_nothing_stores_nothing_when_a_topic_is_refused(self, store: EventStore) -> None:
        publish(store, *[(f"t{number}", "1") for number in range(TOPICS_MAX - 1)])
        answer = commit(store, batch(("new-1", "1"), ("t0", "2"), ("new-2", "1"), strict=True))[0]
        assert {verdict.outcome for verdict in answer} == {INVALID}
        assert lifetime(store).received == TOPICS_MAX - 1
        assert publish(store, ("new-3", "1")) == [(STORED, TOPICS_MAX)]  # the room was not used up

    def test_two_batches_of_one_commit_share_the_room_for_topics(self, store: EventStore) -> None:
        publish(store, *[(f"t{number}", "1") for number in range(TOPICS_MAX - 1)])
        one, two = commit(store, batch(("x", "1")), batch(("y", "1"), ("x", "2")))
        assert [verdict.outcome for verdict in one + two] == [STORED, INVALID, STORED]


def numbered(*rows: tuple[str, str, str, int | None]) -> Batch:
    """Build a batch from (topic, event_id, source, source_seq)."""
    made = batch(*[(topic, event_id, b"{}", source) for topic, event_id, source, _ in rows])
    made.source_seqs = [source_seq for *_, source_seq in rows]
    return made


# First and last number asked about, how many came and what is missing, where 1, 2, 5, 6, 7 and 10 are stored.
ASKED: list[tuple[int | None, int | None, int, list[tuple[int, int]]]] = [
    (None, None, 6, [(3, 4), (8, 9)]),
    (1, 10, 6, [(3, 4), (8, 9)]),
    (1, 11, 6, [(3, 4), (8, 9), (11, 11)]),
    (1, 2, 2, []),
    (2, 2, 1, []),
    (2, 3, 1, [(3, 3)]),
    (3, 4, 0, [(3, 4)]),
    (4, 4, 0, [(4, 4)]),
    (4, 8, 3, [(4, 4), (8, 8)]),
    (5, 7, 3, []),
    (6, 6, 1, []),
    (8, 11, 1, [(8, 9), (11, 11)]),
    (-5, 0, 0, [(-5, 0)]),
    (-5, 1, 1, [(-5, 0)]),
    (-5, 20, 6, [(-5, 0), (3, 4), (8, 9), (11, 20)]),
    (11, 20, 0, [(11, 20)]),
    (0, None, 6, [(0, 0), (3, 4), (8, 9)]),
    (6, None, 3, [(8, 9)]),
    (12, None, 0, [(12, 12)]),
    (None, 12, 6, [(3, 4), (8, 9), (11, 12)]),
    (None, 3, 2, [(3, 3)]),
    (None, 0, 0, [(0, 0)]),
]


class TestSources:
    """What came of the numbers that sources give to their events."""

    def count(self, store: EventStore, source: str, *numbers: int | None, topic: str = "a") -> None:
        """Store an event for each number, with an id of its own, in one commit."""
        head = store.summary().head
        commit(store, numbered(*[(topic, f"{head}-{place}", source, n) for place, n in enumerate(numbers)]))

    def only(self, store: EventStore, first: int | None = None, last: int | None = None) -> SourceInfo:
        (info,) = store.sources(SourceQuery(first=first, last=last))
        return info

    def test_without_numbers_there_are_none(self, store: EventStore) -> None:
        publish(store, ("a", "1"), ("a", "2", b"{}", "host"))
        assert store.sources(SourceQuery()) == []

    def test_in_order_nothing_is_missing(self, store: EventStore) -> None:
        for start in (1, 4, 7):
            self.count(store, "s", start, start + 1, start + 2)
        assert self.only(store) == SourceInfo("a", "s", 1, 9, 9, 0, [], 0, 0, 0)

    def test_what_is_missing_and_what_comes_late(self, store: EventStore) -> None:
        self.count(store, "s", 10, 3, 4, 12)
        assert self.only(store) == SourceInfo("a", "s", 3, 12, 4, 6, [(5, 9), (11, 11)], 2, 0, 0)
        self.count(store, "s", 6, 9)
        assert self.only(store).missing_ranges == [(5, 5), (7, 8), (11, 11)]
        self.count(store, "s", 11, 8, 5, 1)
        assert self.only(store) == SourceInfo("a", "s", 1, 12, 10, 2, [(2, 2), (7, 7)], 2, 0, 0)
        self.count(store, "s", 7, 2)
        assert self.only(store) == SourceInfo("a", "s", 1, 12, 12, 0, [], 0, 0, 0)

    def test_an_event_that_is_sent_again_counts_once_whatever_number_it_has_then(self, store: EventStore) -> None:
        first = numbered(("a", "x", "s", 1), ("a", "y", "s", 2))
        commit(store, first)
        assert [verdict.outcome for verdict in commit(store, first)[0]] == [DUPLICATE, DUPLICATE]
        assert commit(store, numbered(("a", "x", "s", 3)))[0][0].outcome is DUPLICATE
        assert commit(store, numbered(("a", "y", "other", 9)))[0][0].outcome is CONFLICT
        assert self.only(store) == SourceInfo("a", "s", 1, 2, 2, 0, [], 0, 0, 0)

    def test_a_number_of_two_events_is_repeated(self, store: EventStore) -> None:
        self.count(store, "s", 1, 2, 2)
        self.count(store, "s", 1, 3)
        assert self.only(store) == SourceInfo("a", "s", 1, 3, 3, 0, [], 0, 2, 0)

    def test_events_without_a_number_count_from_the_first_with_one(self, store: EventStore) -> None:
        self.count(store, "s", None, None)
        self.count(store, "s", None, 1, None)
        self.count(store, "s", None)
        self.count(store, "other", None)
        self.count(store, "s", None, topic="b")
        self.count(store, "s", None, 2, None)
        assert self.only(store) == SourceInfo("a", "s", 1, 2, 2, 0, [], 0, 0, 4)

    def test_two_groups_prepared_before_the_first_is_committed(self, store: EventStore) -> None:
        groups = [[("a", f"{number}", "s", n)] for number, n in enumerate((1, 3, None, 2, 3))]
        store.commit([store.prepare([numbered(*group)]) for group in groups])
        assert self.only(store) == SourceInfo("a", "s", 1, 3, 3, 0, [], 0, 1, 1)

    def test_numbers_at_the_ends_of_their_range(self, store: EventStore) -> None:
        low, high = -(2**63), 2**63 - 1
        self.count(store, "s", high, low)
        assert self.only(store) == SourceInfo("a", "s", low, high, 2, 2**64 - 2, [(low + 1, high - 1)], 1, 0, 0)
        self.count(store, "s", low + 1, -1, high - 1, high)
        info = self.only(store)
        assert info.missing_ranges == [(low + 2, -2), (0, high - 2)]
        assert (info.received, info.missing, info.repeated) == (5, 2**64 - 5, 1)
        assert self.only(store, low, low) == SourceInfo("a", "s", low, high, 1, 0, [], 0, 1, 0)
        assert self.only(store, high, high).missing == 0 and self.only(store, 0, 0).missing_ranges == [(0, 0)]

    def test_the_numbers_asked_about(self, store: EventStore) -> None:
        self.count(store, "s", 1, 2, 5, 6, 7, 10)
        for first, last, received, missing in ASKED:
            info = self.only(store, first, last)
            assert (info.lowest, info.highest) == (1, 10)
            assert (info.received, info.missing_ranges) == (received, missing), (first, last)
            assert info.missing_ranges_count == len(missing)
            assert info.missing == sum(end - begin + 1 for begin, end in missing)

    def test_many_missing_ranges_are_counted_and_the_first_of_them_listed(self, store: EventStore) -> None:
        self.count(store, "s", *range(0, 500, 2))
        info = self.only(store)
        assert info.missing_ranges == [(n, n) for n in range(1, 2 * MISSING_RANGES_MAX, 2)]
        assert (info.missing_ranges_count, info.missing) == (249, 249)
        rest = self.only(store, info.missing_ranges[-1][1] + 1, 498)
        assert (rest.missing_ranges[0], rest.missing_ranges_count) == ((201, 201), 149)

    @pytest.fixture
    def several(self, store: EventStore) -> EventStore:
        for topic, source in product(["b", "a/b", "a"], ["x", "", "\u00e9", "X"]):
            self.count(store, source, 1, 3, topic=topic)
        self.count(store, "without", None, topic="a")
        return store

    def test_listing(self, several: EventStore) -> None:
        queries = [
            SourceQuery(topic=topic, source=source, readable=readable)
            for topic, source, readable in (
                *product([None, "a", "a/*", "**", "nothing"], [None, "", "x", "without"], [None]),
                *product([None, "a", "b", "*"], [None, "x"], [(), ("a",), ("a/**",), ("b", "nothing/*")]),
            )
        ]
        for query, limit in product(queries, [1, 2, 5, 12, 100]):
            expected = [
                (topic, source)
                for topic, source in product(["a", "a/b", "b"], ["", "X", "x", "\u00e9"])
                if (query.topic is None or matches(query.topic, topic))
                and query.source in {None, source}
                and may_read(topic, query.readable)
            ]
            found: list[tuple[str, str]] = []
            while page := several.sources(replace(query, limit=limit, after=found[-1] if found else ("", ""))):
                found += [(info.topic, info.source) for info in page]
                assert len(page) == limit or len(found) == len(expected)
                assert all(info.missing_ranges == [(2, 2)] for info in page)
            assert found == expected, query

    def test_positions_need_not_exist(self, several: EventStore) -> None:
        assert [info.topic for info in several.sources(SourceQuery(after=("a", "z")))][:2] == ["a", "a/b"]
        assert several.sources(SourceQuery(after=("c", ""))) == []
        assert several.sources(SourceQuery(topic="a", after=("b", ""))) == []

    def test_a_page_ends_with_many_ranges(self, several: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (memory, sqlite_source_pages):
            monkeypatch.setattr(module, "PAGE_RANGES_MAX", 2)
        assert len(several.sources(SourceQuery())) == 3
        assert len(several.sources(SourceQuery(first=0, last=5))) == 1

    def test_after_a_failed_commit_the_numbers_are_those_that_are_stored(self, store: EventStore) -> None:
        self.count(store, "s", 1)
        for after_commit in (False, True):
            failing = FailingStore(store, failures_left=1, after_commit=after_commit)
            again = numbered(("b", f"{after_commit}", "s", int(after_commit)))
            with pytest.raises(CommitUnknown):
                commit(failing, again)
            failing.recover()
            commit(failing, again)
        self.count(store, "s", None, topic="b")
        assert store.sources(SourceQuery(topic="b")) == [SourceInfo("b", "s", 0, 1, 2, 0, [], 0, 0, 1)]


class TestReading:
    @pytest.fixture
    def filled(self, store: EventStore) -> EventStore:
        """Nine events, seq 1 to 9, with event times 50, 10, 30, 30, 20, 30, 90, 80, 70."""
        made = batch(
            ("app/prod/api", "1", b"1", "h1"),
            ("app/prod/db", "2", b"2", "h2"),
            ("app/test/api", "3", b"3", "h1"),
            ("app/prod/api", "4", b"4", "h2"),
            ("app/prod/api", "5", b"5", "h1"),
            ("other", "6", b"6", "h1"),
            ("other", "7", b"7", ""),
            ("app/prod/api", "8", b"8", "h1"),
            ("app/prod", "9", b"9", "h1"),
        )
        made.timestamps_ns = [50, 10, 30, 30, 20, 30, 90, 80, 70]
        made.source_seqs = [None, -5, 2**63 - 1, 0, None, None, None, None, None]
        commit(store, made)
        return store

    def test_an_event_comes_back_as_it_was_sent(self, filled: EventStore, clock: FakeClock) -> None:
        assert filled.read(Query(after=2, limit=1)).events == [
            StoredEvent(3, "app/test/api", "3", 30, clock.ns, "h1", 2**63 - 1, b"3")
        ]

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            (Query(), [1, 2, 3, 4, 5, 6, 7, 8, 9]),
            (Query(order=Order.SEQ_DESCENDING), [9, 8, 7, 6, 5, 4, 3, 2, 1]),
            (Query(order=Order.TIMESTAMP), [2, 5, 3, 4, 6, 1, 9, 8, 7]),
            (Query(order=Order.TIMESTAMP_DESCENDING), [7, 8, 9, 1, 6, 4, 3, 5, 2]),
            (Query(topic="app/prod/api"), [1, 4, 5, 8]),
            (Query(topic="app/prod/api", order=Order.SEQ_DESCENDING), [8, 5, 4, 1]),
            (Query(topic="app/prod/api", order=Order.TIMESTAMP), [5, 4, 1, 8]),
            (Query(topic="app/prod/api", order=Order.TIMESTAMP_DESCENDING), [8, 1, 4, 5]),
            (Query(topic="app/*/api"), [1, 3, 4, 5, 8]),
            (Query(topic="app/*/api", order=Order.TIMESTAMP), [5, 3, 4, 1, 8]),
            (Query(topic="app/**"), [1, 2, 3, 4, 5, 8, 9]),
            (Query(topic="*"), [6, 7]),
            (Query(topic="**"), [1, 2, 3, 4, 5, 6, 7, 8, 9]),
            (Query(topic="nothing"), []),
            (Query(topic="nothing/**"), []),
            (Query(source="h2"), [2, 4]),
            (Query(source=""), [7]),
            (Query(source="h"), []),
            (Query(since_ns=30), [1, 3, 4, 6, 7, 8, 9]),
            (Query(since_ns=30, until_ns=50), [3, 4, 6]),
            (Query(since_ns=30, until_ns=50, order=Order.TIMESTAMP_DESCENDING), [6, 4, 3]),
            (Query(until_ns=30, order=Order.TIMESTAMP), [2, 5]),
            (Query(since_ns=91), []),
            (Query(after=6), [7, 8, 9]),
            (Query(after=6, order=Order.SEQ_DESCENDING), [9, 8, 7]),
            (Query(after=6, order=Order.TIMESTAMP), [9, 8, 7]),
            (Query(after=9), []),
            (Query(up_to=3), [1, 2, 3]),
            (Query(after=2, up_to=5, order=Order.TIMESTAMP_DESCENDING), [4, 3, 5]),
            (Query(topic="app/prod/api", event_id="4"), [4]),
            (Query(topic="app/prod/api", event_id="2"), []),
            (Query(topic="app/prod/api", event_id="4", order=Order.TIMESTAMP, since_ns=30, source="h2"), [4]),
            (Query(topic="app/prod/api", event_id="4", source="h1"), []),
            (Query(topic="app/prod/api", event_id="4", after=4), []),
            (Query(topic="app/**", source="h1", since_ns=20, until_ns=80, after=1), [3, 5, 9]),
        ],
        ids=repr,
    )
    def test_queries(self, filled: EventStore, query: Query, expected: list[int]) -> None:
        assert seqs(filled, query) == expected
        for limit in (1, 2, 3, 9):
            assert seqs(filled, replace(query, limit=limit)) == expected

    def test_a_page_that_ends_exactly_has_no_next_one_or_an_empty_one(self, filled: EventStore) -> None:
        page = filled.read(Query(limit=9))
        assert page.next is None
        assert filled.read(Query(limit=8)).next is not None

    def test_late_events_neither_repeat_nor_hide_others_on_later_pages(self, filled: EventStore) -> None:
        query = Query(order=Order.TIMESTAMP, limit=3)
        first = filled.read(query)
        late = batch(("other", "late"), ("other", "ahead"))
        late.timestamps_ns = [5, 60]
        commit(filled, late)
        assert first.next is not None
        rest = seqs(filled, replace(query, position=first.next))
        assert [event.seq for event in first.events] == [2, 5, 3]
        assert rest == [4, 6, 1, 11, 9, 8, 7]

    def test_a_page_ends_at_its_size_in_bytes(self, store: EventStore) -> None:
        payload = b'"%s"' % (b"x" * 1_000_000)
        for number in range(12):
            publish(store, ("a", str(number), payload))
        page = store.read(Query())
        assert 8 <= len(page.events) < 12
        assert page.next is not None
        assert seqs(store, Query()) == list(range(1, 13))

    def test_positions_need_not_exist(self, filled: EventStore) -> None:
        assert seqs(filled, Query(position=Position(100))) == []
        assert seqs(filled, Query(order=Order.TIMESTAMP, position=Position(0, 30))) == [3, 4, 6, 1, 9, 8, 7]
        assert seqs(filled, Query(order=Order.TIMESTAMP, position=Position(4, 30))) == [6, 1, 9, 8, 7]


READABLES: list[tuple[str, ...] | None] = [
    None,
    (),
    ("a",),
    ("a/**",),
    ("a/*",),
    ("*",),
    ("**",),
    ("**/c",),
    ("b", "a/b"),
    ("a/b", "a/*", "*"),
    ("nothing/**",),
]


class TestReadable:
    """For a reader that may read some topics, nothing else exists."""

    @pytest.fixture
    def full(self, store: EventStore, monkeypatch: pytest.MonkeyPatch) -> EventStore:
        monkeypatch.setattr(sqlite_read, "SCAN_ROWS_MAX", 3)  # so that windows without anything readable come
        names = ["a", "a/b", "a/c", "ab", "b"]
        assert len(names) == TOPICS_MAX
        for number in range(6):
            rows = [(name, str(number)) for name in names if (number + len(name)) % 3] + [("b", "same")]
            publish(store, *rows)
        publish(store, ("a/b", "0"), ("b", "1"), ("a", "0", b"1"), ("b", "same", b"2"), ("a/c", "1", b"3"))
        assert min(topic.stored for topic in store.topics("", 9)) > 2 and len(store.conflicts(0, 9)) == 3
        return store

    @pytest.mark.parametrize("readable", READABLES)
    def test_events(self, full: EventStore, readable: tuple[str, ...] | None) -> None:
        for order, topic in product(Order, [None, "a", "b", "a/*", "**", "*/c"]):
            everything = read_all(full, Query(topic=topic, order=order))
            expected = [event for event in everything if may_read(event.topic, readable)]
            for limit in (1, 4, 100):
                query = Query(topic=topic, order=order, limit=limit, readable=readable)
                assert read_all(full, query) == expected, query

    @pytest.mark.parametrize("readable", READABLES)
    def test_one_identity(self, full: EventStore, readable: tuple[str, ...] | None) -> None:
        for topic in ("a", "a/b", "b"):
            found = read_all(full, Query(topic=topic, event_id="1", readable=readable))
            assert len(found) == (may_read(topic, readable) and len(read_all(full, Query(topic=topic, event_id="1"))))

    @pytest.mark.parametrize("readable", READABLES)
    def test_topics_conflicts_and_figures(self, full: EventStore, readable: tuple[str, ...] | None) -> None:
        topics = [topic for topic in full.topics("", 9) if may_read(topic.topic, readable)]
        assert full.topics("", 9, readable) == topics
        assert full.topics("", 1, readable) == topics[:1] and full.topics("a/b", 9, readable) == [
            topic for topic in topics if topic.topic > "a/b"
        ]
        conflicts = [conflict for conflict in full.conflicts(0, 9) if may_read(conflict.topic, readable)]
        assert full.conflicts(0, 9, readable) == conflicts
        assert full.conflicts(0, 1, readable) == conflicts[:1] and full.conflicts(1, 9, readable) == [
            conflict for conflict in conflicts if conflict.number > 1
        ]
        summary = full.summary(readable)
        stored, duplicate, conflict = (
            sum(getattr(topic, name) for topic in topics) for name in ("stored", "duplicates", "conflicts")
        )
        assert summary.lifetime == Lifetime(stored + duplicate + conflict, stored, duplicate, conflict)
        assert summary.topics_count == len(topics) and summary.log_id == full.summary().log_id
        assert summary.head == max((topic.last_seq for topic in topics), default=0)

    def test_the_readable_are_worth_asking_for(self, full: EventStore) -> None:
        sizes = {len(read_all(full, Query(readable=readable))) for readable in READABLES}
        assert 0 in sizes and len(sizes) > 5, sizes

    def test_all_that_is_readable_is_all_there_is(self, full: EventStore) -> None:
        assert full.summary(("**",)) == full.summary()


def may_read(topic: str, readable: tuple[str, ...] | None) -> bool:
    return readable is None or any(matches(pattern, topic) for pattern in readable)
