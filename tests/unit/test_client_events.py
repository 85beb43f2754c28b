import json
import os
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekali.client import new_event

WHEN = "2026-11-23T10:00:00Z"


def test_an_event_is_json_on_one_line_with_the_identity_it_says() -> None:
    event = new_event("orders", {"text": "one\ntwo é"}, event_id="o-1", timestamp=WHEN, source="shop", source_seq=7)
    assert (event.topic, event.event_id) == ("orders", "o-1")
    assert b"\n" not in event.json
    assert json.loads(event.json) == {
        "topic": "orders",
        "event_id": "o-1",
        "timestamp": WHEN,
        "source": "shop",
        "payload": {"text": "one\ntwo é"},
        "source_seq": 7,
    }


def test_without_a_counter_there_is_none() -> None:
    assert "source_seq" not in json.loads(new_event("t", 1).json)


def test_a_time_is_made_where_none_is_given() -> None:
    before = datetime.now(UTC)
    made = datetime.fromisoformat(json.loads(new_event("t", 1).json)["timestamp"])
    assert before - timedelta(milliseconds=1) <= made <= datetime.now(UTC)


def test_a_datetime_is_written_in_utc() -> None:
    moment = datetime(2026, 11, 23, 12, 0, 0, 5, tzinfo=timezone(timedelta(hours=2)))
    assert json.loads(new_event("t", 1, timestamp=moment).json)["timestamp"] == "2026-11-23T10:00:00.000005Z"


def test_a_datetime_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="no zone"):
        new_event("t", 1, timestamp=datetime(2026, 11, 23))


@pytest.mark.parametrize(("ids", "version"), [("uuid7", 7), ("uuid4", 4)])
def test_uuids_are_of_their_version_and_never_the_same(ids: Any, version: int) -> None:
    made = [new_event("t", 1, ids=ids).event_id for _ in range(100)]
    assert {uuid.UUID(one).version for one in made} == {version}
    assert len(set(made)) == 100


def test_uuid7_is_the_default_and_rises() -> None:
    made = [new_event("t", 1).event_id for _ in range(100)]
    assert made == sorted(made) and uuid.UUID(made[0]).version == 7


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("aé\n"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=8,
)


def _content_id(payload: Any, timestamp: str = WHEN, source: str = "s", topic: str = "t") -> str:
    return new_event(topic, payload, timestamp=timestamp, source=source, ids="content").event_id


@given(json_values, json_values)
def test_a_content_id_is_that_of_source_time_and_payload(one: Any, other: Any) -> None:
    again = json.loads(json.dumps(one))
    assert _content_id(one) == _content_id(again) == _content_id(one, topic="another")
    assert _content_id(one) != _content_id(one, source="another")
    assert _content_id(one) != _content_id(one, timestamp="2026-11-23T10:00:01Z")
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (_content_id(one) == _content_id(other)) == same


def test_a_content_id_stays_what_it_is_from_version_to_version() -> None:
    event = new_event("t", {"b": [1, "é"], "a": 1.5}, timestamp=WHEN, source="s", ids="content")
    assert event.event_id == _content_id({"a": 1.5, "b": [1, "é"]})
    assert event.event_id == "e8f41e2e8b30166088a1d3168b4141212cf85d16e5a619b74f732269425d127f"


def test_a_content_id_needs_the_time_of_the_event() -> None:
    with pytest.raises(ValueError, match="timestamp"):
        new_event("t", 1, ids="content")


def test_an_id_that_is_given_is_taken_whatever_else_would_make_one() -> None:
    assert new_event("t", 1, event_id="mine", ids="content").event_id == "mine"


@pytest.mark.parametrize("payload", [float("nan"), float("inf"), "\ud800", object(), {1, 2}])
def test_what_is_no_json_is_refused_at_once(payload: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        new_event("t", payload)


@pytest.mark.parametrize("ids", ["uuid7", "content"])
def test_what_is_nested_too_deeply_is_refused_at_once(ids: Any) -> None:
    payload: list[Any] = []
    for _ in range(100_000):
        payload = [payload]
    with pytest.raises(ValueError, match="nested"):
        new_event("t", payload, timestamp=WHEN, ids=ids)


def test_a_way_to_make_ids_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="uuid9"):
        new_event("t", 1, ids="uuid9")  # type: ignore[arg-type]


def test_a_child_does_not_go_on_with_the_ids_of_its_parent() -> None:
    from sekali.client import events  # noqa: PLC0415

    before = events._MAKERS["uuid7"]
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, b"new" if events._MAKERS["uuid7"] is not before else b"old")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 3) == b"new"
    os.close(reading)
    os.close(writing)
