"""The feed and the streams of ``/subscribe``: once, in order, whatever happens in between; and nothing for nothing."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from followers import Connection, House
from sekali import blocks, feed
from sekali.api import subscribe
from sekali.api.problems import Problem
from sekali.api.read import StreamCut
from sekali.blocks import Groups
from sekali.errors import InvalidQuery, PositionGone
from sekali.keys import ANYBODY, Grant, Key, Keyring, secret_hash
from sekali.metrics import Ending
from sekali.topics import matches

TOPICS = ("a/1", "a/2", "b/1", "c")
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
        stored = self._house.store.read(blocks.Query(limit=10_000)).events
        return [
            event.seq
            for event in stored
            if self.first_told is not None
            and event.seq > self.first_told
            and isinstance(event, blocks.StoredEvent)
            and (self._pattern is None or matches(self._pattern, event.topic))
            and (self._readable is None or any(matches(one, event.topic) for one in self._readable))
        ]


numbers = st.integers(0, 9)
steps = st.one_of(
    st.tuples(st.just("publish"), st.lists(st.sampled_from(TOPICS), min_size=1, max_size=7)),
    st.tuples(st.just("publish in silence"), st.lists(st.sampled_from(TOPICS), min_size=1, max_size=2)),
    st.tuples(st.just("repeat"), st.lists(st.sampled_from(TOPICS), min_size=1, max_size=2)),
    st.tuples(st.just("look again"), st.none()),
    st.tuples(
        st.just("follow"),
        st.tuples(st.sampled_from(PATTERNS), st.sampled_from(READABLES), st.sampled_from(("earliest", "latest", "2"))),
    ),
    st.tuples(st.sampled_from(("stall", "go", "come back", "leave", "nudge")), numbers),
    st.tuples(st.sampled_from(("feed reads", "reader reads", "feed fails", "feed finds damage")), st.none()),
    st.tuples(st.just("spin"), st.integers(1, 4)),
)


@settings(max_examples=300, deadline=None, print_blob=True)
@given(st.lists(steps, max_size=60), st.sampled_from((0, 150, 400, 1 << 20)))
def test_each_follower_sees_what_matches_once_and_in_order(script: list[tuple[str, Any]], ring_bytes_max: int) -> None:
    async def test(house: House) -> None:
        readers: list[Reader] = []
        for what, value in script:
            await _step(house, readers, what, value)
        house.store.fails = house.store.finds_damage = False
        for reader in readers:
            reader.connection.open.set()
        house.feed.look_again()
        await house.settle()
        for reader in readers:
            reader.collect()
            assert reader.seqs == reader.expected
            assert not reader.task.done() or reader.connection.left.is_set(), "a stream ended"

    note(f"{script!r}")
    in_house(test, ring_bytes_max=ring_bytes_max)


async def _step(house: House, readers: list[Reader], what: str, value: Any) -> None:
    match what:
        case "publish":
            house.publish(*value)
        case "publish in silence":
            house.publish(*value, told=False)
        case "repeat":
            house.publish(again=value)
        case "look again":
            house.feed.look_again()
        case "follow":
            pattern, readable, after = value
            is_readable = pattern != "a/1" or readable is None or any(matches(one, "a/1") for one in readable)
            own_head = house.store.summary(readable).head
            if is_readable and (after != "2" or own_head >= 2):
                readers.append(Reader(house, pattern, readable, after))
        case "feed reads":
            house.feeder.run_one()
        case "reader reads":
            house.readers.run_one()
        case "feed fails" | "feed finds damage":
            house.store.fails, house.store.finds_damage = what == "feed fails", what == "feed finds damage"
            house.feeder.run_one()
            house.store.fails = house.store.finds_damage = False
        case "spin":
            for _ in range(value):
                await asyncio.sleep(0)
        case _ if readers:
            reader = readers[value % len(readers)]
            match what:
                case "stall":
                    reader.connection.open.clear()
                case "go":
                    reader.connection.open.set()
                case "come back":
                    await reader.come_back()
                case "leave":
                    reader.connection.leave()
                    reader.collect()
                    readers.remove(reader)
                case "nudge":
                    for stream in house.subscribing._streams:
                        stream.wake()
