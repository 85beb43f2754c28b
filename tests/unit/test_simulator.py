import json
import uuid
from itertools import islice, pairwise

from hypothesis import given
from hypothesis import strategies as st

from sekali.simulator import RECENT_EVENTS_MAX, simulate

TOPICS = ["kano1", "kano2", "kano3", "kano4"]


@given(st.integers(0, 400), st.floats(0, 1, exclude_max=True), st.none() | st.integers())
def test_exactly_the_share_of_events_repeats_an_earlier_one(count: int, dup_ratio: float, seed: int | None) -> None:
    events = [item.event for item in simulate(count, dup_ratio, TOPICS, seed)]
    assert len(events) == count
    assert len(events) - len(set(events)) == min(round(count * dup_ratio), max(count - 1, 0))
    identities = [(event["topic"], event["event_id"]) for event in map(json.loads, events)]
    assert len(set(identities)) == len(set(events))  # never two contents under one identity


@given(st.integers(), st.integers(2, 200))
def test_a_seed_repeats_everything(seed: int, count: int) -> None:
    first = list(simulate(count, 0.2, TOPICS, seed))
    assert first == list(simulate(count, 0.2, TOPICS, seed))
    assert {item.event for item in first}.isdisjoint(item.event for item in simulate(count, 0.2, TOPICS, seed + 1))


def test_without_a_seed_every_run_is_new_and_ids_are_uuid7() -> None:
    first, second = ({item.event for item in simulate(100, 0, TOPICS)} for _ in "12")
    assert not first & second
    assert {uuid.UUID(json.loads(event)["event_id"]).version for event in first} == {7}


def test_repeats_are_spread_over_the_run_within_and_across_batches() -> None:
    seen: dict[bytes, int] = {}
    repeats: list[tuple[int, int]] = []
    for number, item in enumerate(simulate(6000, 0.2, TOPICS, 1)):
        if item.event in seen:
            repeats.append((number, seen[item.event]))
        seen.setdefault(item.event, number)
    batches = [number // 500 for number, _ in repeats]
    assert min(batches.count(batch) for batch in range(12)) > 50
    same_batch = sum(number // 500 == first // 500 for number, first in repeats)
    assert 100 < same_batch < 1000
    assert max(number - first for number, first in repeats) < 2 * RECENT_EVENTS_MAX


def test_all_topics_are_used_and_times_rise() -> None:
    events = [json.loads(item.event) for item in simulate(200, 0, TOPICS, 5)]
    assert {event["topic"] for event in events} == set(TOPICS)
    assert all(first["timestamp"] < second["timestamp"] for first, second in pairwise(events))


def test_a_huge_load_begins_at_once() -> None:
    assert len(list(islice(simulate(10**12, 0.2, TOPICS), 5))) == 5
