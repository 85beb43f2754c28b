import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_server import FakeServer, fake_server
from sekali.client.batches import Pace, batches, publish_batch
from sekali.client.errors import TooLarge
from sekali.client.events import encode_event
from sekali.client.http import Server
from sekali.client.lines import Item


def _items(*sizes: int) -> list[Item]:
    return [Item(f"x:{number}", b"x" * size) for number, size in enumerate(sizes, 1)]


@given(st.lists(st.one_of(st.none(), st.integers(1, 30))), st.integers(1, 5), st.integers(5, 60))
def test_batches_keep_the_order_and_the_limits(sizes: list[int | None], events_max: int, bytes_max: int) -> None:
    items = [None if size is None else Item("x", b"x" * size) for size in sizes]
    made = list(batches(items, events_max, bytes_max=bytes_max, flush_after_s=1, clock=lambda: 0.0))
    assert [item for batch in made for item in batch] == [item for item in items if item]
    for batch in made:
        assert 1 <= len(batch) <= events_max
        assert len(batch) == 1 or sum(len(item.event) for item in batch) <= bytes_max


@pytest.mark.parametrize("between", [None, Item("x:2", b"2")])
def test_a_batch_does_not_wait_long_for_company(between: Item | None) -> None:
    now_s = 0.0

    def slow() -> Iterator[Item | None]:
        nonlocal now_s
        yield Item("x:1", b"1")
        now_s = 0.3
        yield between
        pytest.fail("the batch was held back")

    made = batches(slow(), 500, flush_after_s=0.2, clock=lambda: now_s)
    assert [item.event for item in next(made)] == ([b"1", b"2"] if between else [b"1"])


def test_waiting_for_nothing_makes_no_batch() -> None:
    assert list(batches([None, None], 5, flush_after_s=0)) == []


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


def _event(number: int) -> Item:
    return Item(f"x:{number}", encode_event("t", str(number), "2026-11-23T10:00:00Z", number))


def test_a_batch_that_is_too_large_is_split_in_order(fake: FakeServer) -> None:
    fake.batch_events_max = 2
    with Server(fake.url) as server:
        parts = list(publish_batch(server, [_event(number) for number in range(7)]))
    assert [item.place for batch, _ in parts for item in batch] == [f"x:{number}" for number in range(7)]
    assert sum(answer.stored for _, answer in parts) == 7
    assert [event["payload"] for event in fake.events.values()] == list(range(7))


def test_one_event_that_is_too_large_is_invalid_and_the_others_go_on(fake: FakeServer) -> None:
    with Server(fake.url) as server:
        publish = server.publish

        def picky(events: list[bytes]) -> object:
            if any(json.loads(event)["payload"] == 1 for event in events):
                raise TooLarge(413, "over a limit")
            return publish(events)

        server.publish = picky  # type: ignore[assignment, method-assign]
        parts = list(publish_batch(server, [_event(number) for number in range(4)]))
    invalid = [batch[0].place for batch, answer in parts if answer.invalid]
    assert invalid == ["x:1"]
    assert sum(answer.stored for _, answer in parts) == 3


def test_pace_keeps_to_the_rate_and_does_not_catch_up() -> None:
    now_s = 50.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    pace = Pace(100, clock=lambda: now_s, sleep=sleep)
    for _ in range(11):
        pace.wait_for(10)
    assert now_s == pytest.approx(51)
    now_s += 1000  # nothing to send for a while
    for _ in range(11):
        pace.wait_for(10)
    assert now_s == pytest.approx(1052)
