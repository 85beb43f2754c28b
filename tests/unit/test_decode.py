"""Bodies to batches. The table of bad input goes through the real server, in tests/e2e/test_schema.py."""

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from sekali.decode import Decoded, Limits, NeedsCare, decode_json, decode_ndjson
from sekali.errors import NotJson, TooManyItems

LIMITS = Limits(items_max=20, event_bytes_max=2000)
GOOD = {"topic": "a", "event_id": "1", "timestamp": "2026-01-01T00:00:00Z", "payload": 1}

good_items = st.fixed_dictionaries(
    {
        "topic": st.sampled_from(["a", "a/b"]),
        "event_id": st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1).filter(str.strip),
        "timestamp": st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-01 00:00:00.5+01:00"]),
        "payload": st.sampled_from([1, "x:y", {"a": [1, {"b": 2}]}, None, "é"]),
    },
    optional={"source": st.sampled_from(["", "host", None]), "source_seq": st.none() | st.integers(-5, 5)},
)
bad_items: st.SearchStrategy[Any] = st.sampled_from(
    [
        1,
        None,
        "x",
        [],
        {},
        {**GOOD, "topic": "a b"},
        {**GOOD, "event_id": ""},
        {**GOOD, "extra": 1},
        {**GOOD, "timestamp": "x"},
        {**GOOD, "payload": "y" * 3000},
        {**GOOD, "source": 5},
    ]
)


def decode(body: bytes) -> Decoded:
    try:
        return decode_json(body, LIMITS, careful=False)
    except NeedsCare:
        return decode_json(body, LIMITS, careful=True)


@given(st.lists(good_items | bad_items, max_size=8), st.data())
def test_bad_items_cost_their_neighbours_nothing(items: list[Any], data: st.DataObject) -> None:
    expected = {position for position, item in enumerate(items) if not _is_good(item)}
    body = json.dumps(items, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.none() | st.integers(0, 2)))
    found = decode(body.encode())
    assert set(found.faults) == expected
    good = [item for position, item in enumerate(items) if position not in expected]
    assert found.batch.event_ids == [item["event_id"] for item in good]
    assert [json.loads(payload) for payload in found.batch.payloads] == [item["payload"] for item in good]
    assert found.batch.sources == [item.get("source") or "" for item in good]
    lines = "\n".join(json.dumps(item) for item in items)
    as_lines = decode_ndjson(lines.encode(), LIMITS, careful=True)
    assert set(as_lines.faults) == expected
    assert as_lines.batch.event_ids == found.batch.event_ids


def _is_good(item: Any) -> bool:
    return isinstance(item, dict) and decode(json.dumps(item).encode()).faults == {}


@given(st.lists(good_items, max_size=8))
def test_the_short_way_and_the_careful_way_agree(items: list[Any]) -> None:
    body = json.dumps(items).encode()
    try:
        short = decode_json(body, LIMITS, careful=False)
    except NeedsCare:
        return
    assert short == decode_json(body, LIMITS, careful=True)


@pytest.mark.parametrize("payload", [1, "x", None, {"a": "b:c", "d": {"e": [1.5, {"f": "é"}]}}, [], ["y" * 300]])
def test_usual_events_take_the_short_way(payload: Any) -> None:
    item = {**GOOD, "payload": payload, "source": "host", "source_seq": 7}
    for body in (json.dumps(item), json.dumps([item] * 5), json.dumps([item], ensure_ascii=False)):
        assert decode_json(body.encode(), LIMITS, careful=False).faults == {}
    assert len(decode_ndjson((json.dumps(item) + "\n").encode() * 5, LIMITS, careful=False).batch) == 5


@given(st.binary(max_size=60) | st.text('[]{}",:\\ux1e9', max_size=60).map(str.encode))
def test_any_bytes_give_an_answer(body: bytes) -> None:
    for wrapped in (body, b"[" + body, b"[" + body + b"]", b'[{"topic":"a","payload":' + body + b"}]"):
        try:
            found = decode(wrapped)
        except NotJson:
            continue
        json.loads(wrapped, parse_constant=_refuse)  # only JSON is taken for JSON
        assert found.batch.topics == []
    decode_ndjson(body, LIMITS, careful=True)


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_too_many_items() -> None:
    good = json.dumps(GOOD).encode()
    for body in (b"[" + b",".join([good] * 21) + b"]", b"[" + b"1," * 20 + b"1]"):
        with pytest.raises(TooManyItems, match="20 items"):
            decode(body)
    assert len(decode(b"[" + b",".join([good] * 20) + b"]").batch) == 20
    with pytest.raises(TooManyItems):
        decode_ndjson(b"\n".join([good] * 21), LIMITS, careful=True)
    with pytest.raises(TooManyItems):
        decode_ndjson(b"\n" * 41, LIMITS, careful=True)


def test_lines_with_two_values_or_half_a_value_are_that_lines_fault() -> None:
    good = json.dumps(GOOD)
    body = f"{good}\r\n\n{good}{good}\n{good[:20]}\n{good[20:]}\n  {good}  "
    found = decode_ndjson(body.encode(), LIMITS, careful=True)
    assert sorted(found.faults) == [1, 2, 3] and len(found.batch) == 2
