"""The feed and the streams of ``/subscribe``: once, in order, whatever happens in between; and nothing for nothing."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from followers import House
from sekali import blocks, feed
from sekali.api import subscribe
from sekali.api.problems import Problem
from sekali.api.read import StreamCut
from sekali.blocks import Groups
from sekali.errors import InvalidQuery, PositionGone
from sekali.keys import ANYBODY, Grant, Key, Keyring, secret_hash
from sekali.metrics import Ending
from sekali.ports import Query, StoredEvent
from sekali.topics import matches

TOPICS = ("a/1", "a/2", "b/1", "c")
KEY = Key("k1", "reader", secret_hash(b"s" * 43), ("read:**",), datetime(2026, 11, 23, tzinfo=UTC))
PATTERNS = (None, "**", "a/*", "a/1", "*/1", "nothing/*")
READABLES = (None, ("a/**",), ("a/1", "c"), ("b/1",))
Test = Callable[[House], Coroutine[Any, Any, None]]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and pages of few events, and no pauses."""
    monkeypatch.setattr(blocks, "BLOCK_EVENTS_MAX", 3)
    monkeypatch.setattr(blocks, "TOPICS_KNOWN_MAX", 3)
    monkeypatch.setattr(subscribe, "PAGE_EVENTS", 2)
    monkeypatch.setattr(feed, "PAUSE_PER_FOLLOWER_S", 0)


def in_house(test: Test, **options: Any) -> None:
    """Run a test on a loop, with a house of its own, and end the streams that it left."""

    async def run() -> None:
        house = House(**options)
        await test(house)
        house.stopping.set()
        await house.settle()

    asyncio.run(run())


def grant(readable: tuple[str, ...] | None) -> Grant:
    return ANYBODY if readable is None else Grant("reader", [f"read:{pattern}" for pattern in readable])


class Reader:
    """One who follows, with connections that come and go: each goes on where the last one ended."""

    def __init__(self, house: House, pattern: str | None, readable: tuple[str, ...] | None, after: str) -> None:
        self._house = house
        self._pattern = pattern
        self._readable = readable
        self.seqs: list[int] = []
        self.first_told: int | None = None
        self._last: int | None = None
        self._open(after)

    def _open(self, after: str) -> None:
        last_event_id = None if self._last is None else f"{self._house.log_id}-{self._last}"
        self.connection, self.task = self._house.subscribe(self._pattern, after, last_event_id, grant(self._readable))

    async def come_back(self) -> None:
        """Leave, and begin anew from the last place told."""
        self.connection.leave()
        self.collect()
        await self._house.spin()
        if self._last is None:  # nothing was told: it still stands at the beginning of what it asked for
            return
        self._open("latest")

    def collect(self) -> None:
        """Take over what the connection got."""
        ids, seqs = self.connection.ids, self.connection.seqs
        if ids:
            self.first_told = ids[0] if self.first_told is None else self.first_told
            self._last = ids[-1]
            assert ids == sorted(ids), "a place goes back"
        self.seqs += seqs
        self.connection.messages.clear()

    @property
    def expected(self) -> list[int]:
        """What it must have seen of the whole log."""
        stored = self._house.store.read(Query(limit=10_000)).events
        return [
            event.seq
            for event in stored
            if self.first_told is not None
            and event.seq > self.first_told
            and isinstance(event, StoredEvent)
            and (self._pattern is None or matches(self._pattern, event.topic))
            and (self._readable is None or any(matches(one, event.topic) for one in self._readable))
        ]


class Story:
    """What may happen, one step at a time. Each step is named after its method."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.readers: list[Reader] = []

    async def publish(self, topics: list[str]) -> None:
        self._house.publish(*topics)

    async def publish_in_silence(self, topics: list[str]) -> None:
        self._house.publish(*topics, told=False)

    async def repeat(self, topics: list[str]) -> None:
        self._house.publish(again=topics)

    async def look_again(self, _: object) -> None:
        self._house.feed.look_again()

    async def follow(self, wish: tuple[str | None, tuple[str, ...] | None, str]) -> None:
        pattern, readable, after = wish
        may_read = pattern != "a/1" or readable is None or any(matches(one, "a/1") for one in readable)
        if may_read and (after != "2" or self._house.store.summary(readable).head >= 2):
            self.readers.append(Reader(self._house, pattern, readable, after))

    async def feed_reads(self, _: object) -> None:
        self._house.feeder.run_one()

    async def reader_reads(self, _: object) -> None:
        self._house.readers.run_one()

    async def feed_fails(self, _: object) -> None:
        self._house.store.fails = True
        self._house.feeder.run_one()
        self._house.store.fails = False

    async def feed_finds_damage(self, _: object) -> None:
        self._house.store.finds_damage = True
        self._house.feeder.run_one()
        self._house.store.finds_damage = False

    async def spin(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def settle(self, _: object) -> None:
        await self._house.settle()

    async def nudge(self, _: object) -> None:
        for stream in self._house.subscribing._streams:
            stream.wake()

    async def stall(self, number: int) -> None:
        for reader in self._one(number):
            reader.connection.open.clear()

    async def go(self, number: int) -> None:
        for reader in self._one(number):
            reader.connection.open.set()

    async def come_back(self, number: int) -> None:
        for reader in self._one(number):
            await reader.come_back()

    async def leave(self, number: int) -> None:
        for reader in self._one(number):
            reader.connection.leave()
            self.readers.remove(reader)

    def _one(self, number: int) -> list[Reader]:
        return [self.readers[number % len(self.readers)]] if self.readers else []


topics = st.lists(st.sampled_from(TOPICS), min_size=1, max_size=7)
wishes = st.tuples(st.sampled_from(PATTERNS), st.sampled_from(READABLES), st.sampled_from(("earliest", "latest", "2")))
of_readers = st.sampled_from((Story.stall, Story.go, Story.come_back, Story.leave))
of_the_house = st.sampled_from(
    (Story.look_again, Story.feed_reads, Story.reader_reads, Story.feed_fails, Story.feed_finds_damage, Story.nudge)
)
steps = st.one_of(
    st.tuples(st.sampled_from((Story.publish, Story.publish_in_silence, Story.repeat)), topics),
    st.tuples(st.just(Story.follow), wishes),
    st.tuples(of_readers, st.integers(0, 9)),
    st.tuples(of_the_house, st.none()),
    st.tuples(st.just(Story.spin), st.integers(1, 4)),
    st.tuples(st.just(Story.settle), st.none()),
)


@settings(max_examples=100, deadline=None, print_blob=True)
@given(st.lists(steps, min_size=20, max_size=80), st.sampled_from((0, 150, 400, 1 << 20)))
def test_each_follower_sees_what_matches_once_and_in_order(script: list[Any], ring_bytes_max: int) -> None:
    async def test(house: House) -> None:
        story = Story(house)
        for step, value in script:
            await step(story, value)
        for reader in story.readers:
            reader.connection.open.set()
        house.feed.look_again()
        await house.settle()
        for reader in story.readers:
            reader.collect()
            assert reader.seqs == reader.expected
            assert not reader.task.done() or reader.connection.left.is_set(), "a stream ended"

    note(f"{[(step.__name__, value) for step, value in script]}")
    in_house(test, ring_bytes_max=ring_bytes_max)


# The same by hand, one thing at a time.


def test_history_first_then_live_without_a_gap_or_a_repeat_at_the_seam() -> None:
    async def test(house: House) -> None:
        house.publish("a/1", "b/1", "a/2", "c", "a/1")
        connection, _ = house.subscribe("a/*")
        await house.spin()
        assert house.readers.run_one()  # how far the log is
        await house.spin()
        assert house.readers.run_one()  # the first page
        house.publish("a/1", "c")  # while it is at its history
        await house.settle()
        house.publish("c", "a/2")
        await house.settle()
        assert connection.seqs == [1, 3, 5, 6, 9]
        assert connection.bodies[0] == f"retry: 2000\nid: {house.log_id}-0\n\n".encode()
        assert connection.messages[0]["status"] == 200
        assert (b"content-type", b"text/event-stream") in connection.messages[0]["headers"]

    in_house(test)


def test_who_comes_while_something_is_read_misses_nothing_of_what_only_he_wants() -> None:
    async def test(house: House) -> None:
        there, _ = house.subscribe("a/*")
        await house.settle()
        house.publish("a/1")
        await house.spin()  # the feed reads that, and lets nobody in meanwhile
        comes, _ = house.subscribe("b/1")
        await house.spin()
        assert house.readers.run_one()
        await house.spin()
        assert comes.messages == []
        house.publish("a/1", "b/1")  # told while nobody wants b/1
        await house.settle()
        assert (there.seqs, comes.seqs) == ([1, 2], [3])

    in_house(test)


def test_a_commit_of_more_than_a_block_comes_in_several() -> None:
    async def test(house: House) -> None:
        everything, _ = house.subscribe()
        await house.settle()
        house.publish(*["a/1"] * 7)
        await house.settle()
        assert everything.seqs == list(range(1, 8))
        assert len(everything.bodies) == 1 + 3
        some, _ = house.subscribe("a/*", "latest")
        everything.leave()
        await house.settle()
        house.publish(*["a/1", "c"] * 7)  # only some is wanted, and that is more than a block
        await house.settle()
        assert some.seqs == list(range(8, 22, 2))

    in_house(test)


def test_who_is_left_behind_in_the_middle_goes_on_behind_what_it_took() -> None:
    async def test(house: House) -> None:
        slow, _ = house.subscribe()
        await house.settle()
        slow.takes_one = True
        for _ in range(10):
            house.publish("a/1", "a/1")
            await house.settle()
            assert len(slow.seqs) == 2, "it took a block of the ring, and no more"
        slow.takes_one = False
        slow.open.set()
        await house.settle()
        assert slow.seqs == list(range(1, 21))

    in_house(test, ring_bytes_max=1000)


def test_who_waits_for_something_else_reads_nothing_however_far_the_ring_has_gone() -> None:
    async def test(house: House) -> None:
        house.subscribe()
        idle, _ = house.subscribe("c")
        await house.settle()
        for _ in range(50):
            house.publish("a/1")
            await house.settle()
        house.store.reads.clear()
        for stream in house.subscribing._streams:
            stream.wake()
        await house.settle()
        assert house.store.reads == [] and house.feed.first_number > 0
        house.publish("c")
        await house.settle()
        assert idle.seqs == [51]

    in_house(test, ring_bytes_max=1000)


def test_a_place_above_what_the_feed_was_told_is_waited_for() -> None:
    async def test(house: House) -> None:
        house.subscribe()
        await house.settle()
        house.publish("a/1", "a/1", told=False)
        by_seq, _ = house.subscribe(after="2")
        latest, _ = house.subscribe(after="latest")
        await house.settle()
        assert (by_seq.ids, latest.ids) == ([2], [2])
        house.publish("a/1")
        await house.settle()
        assert by_seq.seqs == latest.seqs == [3]

    in_house(test)


def test_an_event_is_read_once_and_encoded_once_however_many_take_it() -> None:
    async def test(house: House) -> None:
        followers = [house.subscribe(pattern)[0] for pattern in (None, "**", "a/*", "a/1", "b/1", "nothing/*") * 5]
        await house.settle()
        house.store.reads.clear()
        house.publish("a/1", "b/1")
        await house.settle()
        assert len(house.store.reads) == 1 and house.encoded == 2
        seqs = {(): 0, (1,): 0, (2,): 0, (1, 2): 0}
        for connection in followers:
            seqs[tuple(connection.seqs)] += 1
        assert seqs == {(1, 2): 10, (1,): 10, (2,): 5, (): 5}
        shared = {id(connection.bodies[-1]) for connection in followers if len(connection.seqs) == 2}
        assert len(shared) == 1, "everybody who gets the same gets the same bytes"

    in_house(test)


def test_what_nobody_wants_is_not_read_and_wakes_nobody() -> None:
    async def test(house: House) -> None:
        connection, _ = house.subscribe("a/*")
        await house.settle()
        house.store.reads.clear()
        for _ in range(100):
            house.publish("b/1", "c")
        await house.settle()
        assert house.store.reads == [] and len(connection.messages) == 2
        house.publish("c", "a/1")
        await house.settle()
        (query,) = house.store.reads
        assert (query.after, query.up_to, query.readable) == (200, 202, ("a/1",))
        assert connection.seqs == [202]

    in_house(test)


def test_where_everything_is_wanted_the_log_is_read_as_it_is() -> None:
    async def test(house: House) -> None:
        house.subscribe("a/*")
        house.subscribe("c")
        await house.settle()
        house.store.reads.clear()
        house.publish("c", "a/1")
        await house.settle()
        assert [query.readable for query in house.store.reads] == [None]

    in_house(test)


def test_events_of_which_nobody_told_come_with_the_next_ones_or_after_a_look() -> None:
    async def test(house: House) -> None:
        connection, _ = house.subscribe("a/*")
        await house.settle()
        house.publish("a/1", told=False)
        await house.settle()
        assert connection.seqs == []
        house.publish("c")
        await house.settle()
        assert connection.seqs == [1]
        house.publish("a/2", told=False)
        house.feed.look_again()
        await house.settle()
        assert connection.seqs == [1, 3]

    in_house(test)


def test_who_does_not_take_anything_is_left_behind_by_a_bounded_ring_and_catches_up() -> None:
    async def test(house: House) -> None:
        slow, _ = house.subscribe()
        fast, _ = house.subscribe()
        await house.settle()
        slow.open.clear()
        for number in range(50):
            house.publish("a/1", "b/1")
            await house.settle()
            assert sum(block.size for block in house.feed._blocks) <= 1000
            assert len(fast.seqs) == 2 * (number + 1)
        assert len(slow.seqs) <= 2, "what it has not taken is not sent on"
        house.store.reads.clear()
        slow.open.set()
        await house.settle()
        assert slow.seqs == fast.seqs == list(range(1, 101))
        assert len(house.store.reads) > 1, "it reads by itself what the ring has no more"
        house.store.reads.clear()
        house.publish("c")
        await house.settle()
        assert slow.seqs == fast.seqs and len(house.store.reads) == 1, "and then it is among the others again"

    in_house(test, ring_bytes_max=1000)


@pytest.mark.parametrize("damage", [False, True])
def test_what_cannot_be_read_for_all_is_read_by_each(damage: bool) -> None:
    async def test(house: House) -> None:
        followers = [house.subscribe(pattern)[0] for pattern in (None, "a/*", "c")]
        await house.settle()
        house.publish("a/1", "b/1")
        await house.spin()
        house.store.fails, house.store.finds_damage = not damage, damage
        assert house.feeder.run_one()
        house.store.fails = house.store.finds_damage = False
        await house.settle()
        assert [connection.seqs for connection in followers] == [[1, 2], [1], []]

    in_house(test)


def test_a_stream_that_cannot_read_is_cut() -> None:
    async def test(house: House) -> None:
        house.publish("a/1")
        _, task = house.subscribe()
        await house.spin()
        house.readers.run_one()
        house.store.fails = True
        await house.settle()
        with pytest.raises(StreamCut, match="injected"):
            task.result()
        assert house.metrics.followers == 0

    in_house(test)


def test_who_leaves_is_forgotten() -> None:
    async def test(house: House) -> None:
        connections = [house.subscribe(pattern) for pattern in ("a/*", "a/*", None)]
        await house.settle()
        house.publish("a/1")
        await house.settle()
        assert house.metrics.followers == 3 and house.feed._blocks
        for connection, task in connections:
            assert connection.is_endless
            connection.leave()
            await house.settle()
            assert task.done() and not connection.is_endless
        assert house.metrics.followers == 0
        assert not house.feed._blocks and not house.feed.waiting and not house.feed._groups
        house.store.reads.clear()
        house.publish("a/1")
        await house.settle()
        assert house.store.reads == []

    in_house(test)


def test_the_end_of_the_server_ends_every_stream_also_one_that_is_not_taken() -> None:
    async def test(house: House) -> None:
        idle, stalled = house.subscribe(), house.subscribe()
        await house.settle()
        stalled[0].open.clear()
        house.publish("a/1")
        await house.settle()
        house.stopping.set()
        await house.settle()
        assert idle[1].done() and stalled[1].done()
        assert idle[0].messages[-1] == {"type": "http.response.body", "body": b""} and idle[0].cuts == []
        assert stalled[0].cuts == [Ending.ANSWER_NOT_TAKEN]

    in_house(test)


async def until(condition: Callable[[], bool], house: House) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)
            await house.settle()


def test_a_key_that_is_revoked_ends_its_streams() -> None:
    async def test(house: House) -> None:
        ring = Keyring([KEY])
        granted = ring.grant(b"Bearer k1." + b"s" * 43)
        assert granted is not None
        house.access.replace(ring)
        connection, task = house.subscribe(grant=granted)
        await house.settle()
        house.publish("a/1")
        await house.settle()
        assert not task.done()
        house.access.replace(Keyring([]))
        house.publish("a/1")
        await until(task.done, house)
        assert connection.seqs == [1], "nothing is shown to it any more"

    in_house(test, look_interval_s=0.01)


def test_who_waits_is_told_how_far_it_has_come() -> None:
    async def test(house: House) -> None:
        everything, _ = house.subscribe("nothing/*", "latest")
        some, _ = house.subscribe("a/2", "latest", grant=grant(("a/*",)))
        await house.settle()
        house.publish("a/1", "b/1", "c")
        await until(lambda: everything.ids[-1] == 3 and some.bodies[-1] == b":\n\n", house)
        assert everything.bodies[-1] == f":\nid: {house.log_id}-3\n\n".encode()
        assert some.ids == [0], "for who may not read everything there is nothing else"
        assert everything.seqs == some.seqs == []
        again, _ = house.subscribe("nothing/*", last_event_id=f"{house.log_id}-{everything.ids[-1]}")
        await house.settle()
        assert again.ids[0] == 3

    in_house(test, heartbeat_s=0.02, look_interval_s=0.01)


def test_latest_begins_with_what_comes_and_says_where() -> None:
    async def test(house: House) -> None:
        house.publish("a/1", "c")
        everything, _ = house.subscribe(after="latest")
        some, _ = house.subscribe(after="latest", grant=grant(("a/*",)))
        await house.settle()
        assert (everything.ids, some.ids) == ([2], [1]), "a reader is told of nothing that it may not read"
        house.publish("c", "a/1")
        await house.settle()
        assert (everything.seqs, some.seqs) == ([3, 4], [4])

    in_house(test)


def test_a_place_above_what_the_feed_has_come_to_is_waited_for() -> None:
    async def test(house: House) -> None:
        house.subscribe()
        await house.settle()
        house.publish("a/1", "a/1")
        await house.spin()  # the feed was told and has not read it yet
        connection, _ = house.subscribe(after="1")
        await house.spin()
        house.readers.run_one()
        await house.spin()
        assert connection.messages == []
        await house.settle()
        assert connection.seqs == [2] and connection.ids == [1, 2]

    in_house(test)


def test_places_that_are_none_of_this_log() -> None:
    async def test(house: House) -> None:
        house.publish("a/1", "c")
        own = house.log_id
        for after, last_event_id, error, message in (
            ("3", None, PositionGone, "above the newest event, 2"),
            ("latest", f"{own}-3", PositionGone, "above the newest event, 2"),
            ("latest", "0" * 32 + "-1", PositionGone, "a backup was restored"),
            ("latest", "1", InvalidQuery, "Last-Event-ID"),
            ("latest", f"{own}-", InvalidQuery, "Last-Event-ID"),
            ("latest", f"{own}--1", PositionGone, "a backup was restored"),
            ("latest", f"{own}-\u0661", InvalidQuery, "Last-Event-ID"),
            ("newest", None, InvalidQuery, "after"),
            ("-1", None, InvalidQuery, "after"),
            ("9" * 5000, None, InvalidQuery, "after"),
        ):
            _, task = house.subscribe(None, after, last_event_id)
            await house.settle()
            with pytest.raises(error, match=message):
                task.result()
        _, task = house.subscribe(after="2", grant=grant(("a/*",)))
        await house.settle()
        with pytest.raises(PositionGone, match="above the newest event, 1,"):
            task.result()
        _, task = house.subscribe("c", grant=grant(("a/*",)))
        await house.settle()
        with pytest.raises(Problem, match="read:c"):
            task.result()
        _, task = house.subscribe(grant=Grant("publisher", ["publish:**"]))
        await house.settle()
        with pytest.raises(Problem, match="read:<topic or pattern>"):
            task.result()

    in_house(test)


def test_last_event_id_counts_before_after_unless_it_is_empty() -> None:
    async def test(house: House) -> None:
        house.publish("a/1", "c")
        resumed, _ = house.subscribe(after="0", last_event_id=f"{house.log_id}-1")
        anew, _ = house.subscribe(after="0", last_event_id="")
        await house.settle()
        assert (resumed.seqs, anew.seqs) == ([2], [1, 2])

    in_house(test)


def test_groups_know_who_wants_a_topic_while_they_come_and_go() -> None:
    groups = Groups()
    joined = {pattern: groups.join(pattern, None) for pattern in PATTERNS}
    assert joined[None] is joined["**"], "to ask for everything is to ask for nothing in particular"
    for _ in range(2):
        for topic in TOPICS:
            wanting = {group for pattern, group in joined.items() if pattern is None or matches(pattern, topic)}
            assert set(groups.wanting(topic)) == wanting and len(groups.wanting(topic)) == len(wanting)
        if "a/*" in joined:
            groups.leave(joined.pop("a/*"))
        joined["b/*"] = groups.join("b/*", None)
    assert groups.join("a/1", ("b/*",)) not in groups.wanting("a/1")
    assert groups.join("a/1", ("a/*", "c")) in groups.wanting("a/1")
