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
# One field of any text, and at the limits, to find where the quick check and the careful one differ.
texts = st.text(st.characters(codec="utf-8"), max_size=4)
almost_good_items = st.builds(lambda name, text: {**GOOD, name: text}, st.sampled_from(list(GOOD)), texts)
EDGES: list[dict[str, Any]] = [
    *(
        {"event_id": text}
        for text in (" ", "a b", " a", "\x7f", "a\x1f", "\u0085", "é", "e\u0301", "i" * 512, "i" * 513)
    ),
    *({"source": text} for text in (None, " ", "\t", "\u0085", "é", "s" * 255, "s" * 256, "é" * 128)),
    *({"topic": text} for text in ("t" * 255, "t" * 256, "é", "..", "**")),
    *({"source_seq": seq} for seq in (-(2**63) - 1, -(2**63), 2**63 - 1, 2**63, 2**64)),
    *({"payload": "y" * size} for size in (899, 900, 1970, 1973, 1974, 1975, 2000)),
    {"timestamp": "2026-01-01T00:00:60Z"},
]
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


def require_that_both_ways_agree(items: list[Any]) -> None:
    limits = Limits(items_max=100, event_bytes_max=2000)
    as_array, as_lines = json.dumps(items).encode(), "\n".join(map(json.dumps, items)).encode()
    for decode_any, body in ((decode_json, as_array), (decode_ndjson, as_lines)):
        try:
            short = decode_any(body, limits, careful=False)
        except NeedsCare:
            continue
        assert short == decode_any(body, limits, careful=True)


@given(st.lists(good_items | bad_items | almost_good_items, max_size=4), st.sampled_from([0, 40]))
def test_the_short_way_and_the_careful_way_agree(items: list[Any], others: int) -> None:
    require_that_both_ways_agree(items + [GOOD] * others)


@pytest.mark.parametrize("others", [0, 1, 40])
@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: repr(edge)[:40])
def test_the_short_way_and_the_careful_way_agree_at_the_limits(edge: dict[str, Any], others: int) -> None:
    require_that_both_ways_agree([{**GOOD, **edge}] + [GOOD] * others)


@pytest.mark.parametrize(
    "payload", [1, "x", None, {"a": "b:c", "d": {"e": [1.5, {"f": "é"}]}}, [], ["y" * 300], ['\\":\t']]
)
def test_usual_events_take_the_short_way(payload: Any) -> None:
    item = {**GOOD, "payload": payload, "source": "host", "source_seq": 7}
    for body in (json.dumps(item), json.dumps([item] * 5), json.dumps([item], ensure_ascii=False)):
        assert decode_json(body.encode(), LIMITS, careful=False).faults == {}
    many = decode_json(json.dumps([item] * 500).encode(), Limits(500, 2000), careful=False)
    assert many.batch.timestamps_ns == [1_767_225_600_000_000_000] * 500
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
