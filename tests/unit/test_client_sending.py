"""The line by itself: times are numbers that the tests hand in."""

import math
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sekali.client import BufferFull, Event, Limits, WhenFull
from sekali.client.sending import EVENT_OVERHEAD_BYTES, Entry, Line, Place


def _entry(name: str = "e", size_bytes: int = 10) -> Entry:
    return Entry(Event("t", name, b"x" * size_bytes))


def _line(when_full: WhenFull | str = WhenFull.BLOCK, **limits: Any) -> Line:
    return Line(Limits(**({"linger_s": 1.0} | limits)), WhenFull(when_full))


def _names(entries: list[Entry]) -> list[str]:
    return [entry.of.event_id for entry in entries]


def _offer(line: Line, *names: str, now_s: float = 0.0) -> list[str]:
    """Offer events of these names, and return the names of what was dropped."""
    return [dropped for name in names for dropped in _names(line.offer(_entry(name), now_s))]


def test_a_batch_waits_for_company_and_no_longer() -> None:
    line = _line(batch_events_max=3)
    _offer(line, "a", now_s=10.0)
    _offer(line, "b", now_s=10.5)
    assert line.take(10.9) == [] and line.due_in_s(10.9) == pytest.approx(0.1)
    assert _names(line.take(11.0)) == ["a", "b"]


def test_a_full_batch_goes_at_once() -> None:
    line = _line(batch_events_max=2)
    _offer(line, "a", "b", "c")
    assert line.due_in_s(0.0) == 0.0
    assert _names(line.take(0.0)) == ["a", "b"]
    assert line.take(0.0) == [] and line.due_in_s(0.0) == 1.0


def test_a_batch_is_limited_in_bytes_and_a_larger_event_goes_alone() -> None:
    line = _line(batch_bytes_max=100, linger_s=0)
    for name, size_bytes in (("a", 60), ("b", 39), ("c", 300), ("d", 100), ("e", 1)):
        line.offer(_entry(name, size_bytes), 0.0)
    assert [_names(line.take(0.0)) for _ in range(4)] == [["a"], ["b"], ["c"], ["d"]]


def test_hurry_is_for_what_is_there_and_not_for_what_comes() -> None:
    line = _line()
    _offer(line, "a")
    line.hurry()
    assert _names(line.take(0.0)) == ["a"]
    _offer(line, "b")
    assert line.take(0.0) == []


def test_an_empty_line_has_nothing_to_do() -> None:
    assert _line().due_in_s(5.0) == math.inf
    assert _line().take(5.0) == [] and _line().is_empty


def test_what_finds_no_room_waits_outside_and_comes_in_by_turns() -> None:
    line = _line(buffer_events_max=2, batch_events_max=1)
    assert _offer(line, "a", "b", "c", "d") == []
    first = line.take(0.0)
    assert line.admit() == [], "what is under way takes room"
    line.settle(first)
    late = _entry("late")
    line.offer(late, 0.0)
    assert late.place is Place.OUTSIDE, "it went ahead of those who wait"
    assert _names(line.admit()) == ["c"]
    assert late.accepted is not None


def test_what_need_not_wait_has_nothing_to_wait_for() -> None:
    line, entry = _line(), _entry()
    line.offer(entry, 0.0)
    assert entry.accepted is None and entry.place is Place.WAITING


def test_the_buffer_is_limited_in_bytes() -> None:
    line = _line("raise", buffer_bytes_max=3 * (EVENT_OVERHEAD_BYTES + 10))
    _offer(line, "a", "b", "c")
    with pytest.raises(BufferFull):
        line.offer(_entry("d", 0), 0.0)


def test_raise_takes_nothing() -> None:
    line = _line("raise", buffer_events_max=1)
    _offer(line, "a")
    with pytest.raises(BufferFull, match="1 events"):
        _offer(line, "b")
    line.hurry()
    assert _names(line.take(0.0)) == ["a"] and line.held_events == 1


def test_who_may_not_wait_is_refused_instead() -> None:
    line = _line(buffer_events_max=1)
    _offer(line, "a")
    with pytest.raises(BufferFull):
        line.offer(_entry("b"), 0.0, may_wait=False)
    assert line.held_events == 1


def test_drop_newest() -> None:
    line = _line("drop_newest", buffer_events_max=1)
    assert _offer(line, "a", "b") == ["b"]
    line.hurry()
    assert _names(line.take(0.0)) == ["a"]


def test_drop_oldest_drops_as_many_as_it_takes_but_nothing_under_way() -> None:
    line = _line("drop_oldest", buffer_bytes_max=4 * (EVENT_OVERHEAD_BYTES + 10), batch_events_max=1)
    _offer(line, "a")
    under_way = line.take(0.0)
    assert _offer(line, "b", "c", "d") == []
    large = _entry("e", EVENT_OVERHEAD_BYTES)
    assert _names(line.offer(large, 0.0)) == ["b", "c"]
    assert _names(under_way) == ["a"] and line.held_events == 3
    larger = _entry("f", 3 * EVENT_OVERHEAD_BYTES)
    assert _names(line.offer(larger, 0.0)) == ["d", "e", "f"], "there is no room for it beside what is under way"
    assert line.held_events == 1


def test_an_event_larger_than_the_buffer_is_an_error_whatever_the_policy() -> None:
    for when_full in WhenFull:
        line = _line(when_full, buffer_bytes_max=EVENT_OVERHEAD_BYTES + 5)
        with pytest.raises(ValueError, match="buffer"):
            line.offer(_entry("a", 6), 0.0)
        line.offer(_entry("b", 5), 0.0)


def test_what_is_too_old_is_given_up_wherever_it_is() -> None:
    line = _line(buffer_events_max=2, batch_events_max=1, give_up_after_s=10)
    _offer(line, "a", "b", "c", now_s=0.0)
    _offer(line, "d", now_s=5.0)
    batch = line.take(0.0)
    assert line.due_in_s(3.0) == 0.0 and line.expire(9.9, batch) == []
    assert _names(line.expire(10.0)) == ["b", "c"], "what is under way may yet be answered"
    assert _names(line.expire(10.0, batch)) == ["a"]
    assert _names(line.admit()) == ["d"] and line.held_events == 1
    assert line.settle(batch) == []


def test_time_is_up_for_those_outside_too() -> None:
    line = _line(buffer_events_max=1, batch_events_max=1, give_up_after_s=10)
    _offer(line, "a", "b")
    line.take(0.0)
    assert line.due_in_s(4.0) == pytest.approx(6.0)


def test_what_is_taken_back_is_gone_unless_it_is_under_way() -> None:
    line = _line(buffer_events_max=2, batch_events_max=1)
    entries = [_entry(name) for name in "abc"]
    for entry in entries:
        line.offer(entry, 0.0)
    line.take(0.0)
    assert [line.withdraw(entry) for entry in entries] == [False, True, True]
    assert [line.withdraw(entry) for entry in entries] == [False, False, False]
    assert line.held_events == 1 and line.admit() == []
    stranger = _entry()
    assert not line.withdraw(stranger)


def test_abandon_gives_up_everything_in_order() -> None:
    line = _line(buffer_events_max=2, batch_events_max=1)
    _offer(line, "a", "b", "c")
    batch = line.take(0.0)
    assert _names(line.abandon()) == ["a", "b", "c"]
    assert line.is_empty and line.held_bytes == 0 and line.settle(batch) == []


def test_it_knows_the_oldest_that_is_not_settled() -> None:
    line = _line(buffer_events_max=2, batch_events_max=1)
    assert line.oldest_number() == math.inf
    _offer(line, "a", "b", "c")
    first, second = line.take(0.0), line.take(0.0)
    line.settle(second)
    assert line.oldest_number() == first[0].number
    line.settle(first)
    assert line.oldest_number() == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"buffer_events_max": 0},
        {"buffer_bytes_max": 0},
        {"batch_events_max": 0},
        {"batch_bytes_max": 0},
        {"linger_s": -1},
        {"give_up_after_s": math.nan},
    ],
)
def test_limits_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


class LineMachine(RuleBasedStateMachine):
    """Any sequence of calls: every event is in one place, in order, within the limits, and ends once."""

    @initialize(
        when_full=st.sampled_from(WhenFull),
        buffer_events=st.integers(1, 6),
        buffer_bytes=st.integers(100, 5_000),
        batch_events=st.integers(1, 4),
        batch_bytes=st.integers(1, 2_000),
        give_up_after_s=st.sampled_from([math.inf, 5.0]),
    )
    def start(
        self,
        when_full: WhenFull,
        buffer_events: int,
        buffer_bytes: int,
        batch_events: int,
        batch_bytes: int,
        give_up_after_s: float,
    ) -> None:
        self.limits = Limits(
            buffer_events_max=buffer_events,
            buffer_bytes_max=buffer_bytes + EVENT_OVERHEAD_BYTES,
            batch_events_max=batch_events,
            batch_bytes_max=batch_bytes,
            linger_s=1.0,
            give_up_after_s=give_up_after_s,
        )
        self.when_full = when_full
        self.line = Line(self.limits, when_full)
        self.now_s = 0.0
        self.count = 0
        self.open: dict[str, Entry] = {}  # offered, and neither settled nor dropped, in order
        self.batches: list[list[Entry]] = []
        self.taken: list[int] = []

    def _end(self, entries: list[Entry]) -> None:
        for entry in entries:
            assert self.open.pop(entry.of.event_id) is entry, "it ended twice"
            assert entry.place is Place.GONE

    @rule(size_bytes=st.integers(0, 3_000), may_wait=st.booleans())
    def offer(self, size_bytes: int, may_wait: bool) -> None:
        self.count += 1
        entry = _entry(str(self.count), size_bytes)
        if entry.size_bytes > self.limits.buffer_bytes_max:
            with pytest.raises(ValueError, match="buffer"):
                self.line.offer(entry, self.now_s, may_wait=may_wait)
            return
        try:
            dropped = self.line.offer(entry, self.now_s, may_wait=may_wait)
        except BufferFull:
            assert self.when_full is WhenFull.RAISE or (self.when_full is WhenFull.BLOCK and not may_wait)
            return
        assert not dropped or self.when_full in {WhenFull.DROP_NEWEST, WhenFull.DROP_OLDEST}
        if entry in dropped:
            assert dropped.pop() is entry
        else:
            self.open[entry.of.event_id] = entry
        self._end(dropped)

    @rule()
    def take(self) -> None:
        due_in_s = self.line.due_in_s(self.now_s)
        batch = self.line.take(self.now_s)
        if not batch:
            return
        assert due_in_s == 0.0
        assert len(batch) <= self.limits.batch_events_max
        assert len(batch) == 1 or sum(len(entry.event) + 1 for entry in batch) <= self.limits.batch_bytes_max
        self.taken += [entry.number for entry in batch]
        self.batches.append(batch)

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def settle(self, data: Any) -> None:
        batch = self.batches.pop(data.draw(st.integers(0, len(self.batches) - 1)))
        cut = data.draw(st.integers(0, len(batch)))
        self._end(self.line.settle(batch[:cut]))
        assert self.line.settle(batch[:cut]) == []
        if batch[cut:]:
            self.batches.append(batch[cut:])

    @rule()
    def admit(self) -> None:
        for entry in self.line.admit():
            assert entry.place is Place.WAITING and entry.accepted is not None

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.now_s += seconds
        expired = self.line.expire(self.now_s, self.batches[0] if self.batches else ())
        assert all(entry.deadline_s <= self.now_s for entry in expired)
        self._end(expired)
        for entry in self.open.values():
            assert entry.deadline_s > self.now_s or entry.place is Place.UNDER_WAY

    @rule()
    def hurry(self) -> None:
        self.line.hurry()
        assert self.line.due_in_s(self.now_s) == 0.0 or not self._at(Place.WAITING)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def withdraw(self, data: Any) -> None:
        entry = data.draw(st.sampled_from(list(self.open.values())))
        was_under_way = entry.place is Place.UNDER_WAY
        assert self.line.withdraw(entry) is not was_under_way
        if not was_under_way:
            self._end([entry])

    def _at(self, place: Place) -> list[Entry]:
        return [entry for entry in self.open.values() if entry.place is place]

    @invariant()
    def everything_is_held_and_counted_in_order(self) -> None:
        if not hasattr(self, "line"):
            return
        held = self._at(Place.WAITING) + self._at(Place.UNDER_WAY)
        assert self.line.held_events == len(held) <= self.limits.buffer_events_max
        assert self.line.held_bytes == sum(entry.size_bytes for entry in held) <= self.limits.buffer_bytes_max
        assert self.line.is_empty is (not self.open)
        assert self.line.oldest_number() == min((entry.number for entry in self.open.values()), default=math.inf)
        assert self.taken == sorted(self.taken), "out of order"

    def teardown(self) -> None:
        if hasattr(self, "line"):
            self._end(self.line.abandon())
            assert not self.open and self.line.is_empty and self.line.held_bytes == 0


TestLineMachine = LineMachine.TestCase
TestLineMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
