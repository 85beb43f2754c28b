"""What readers are sent, against an event written field by field."""

import json
from typing import Any

import hypothesis.strategies as st
import msgspec
from hypothesis import given

from sekali.api.wire import events_json, events_ndjson
from sekali.ports import StoredEvent, Unreadable
from sekali.timestamps import format_timestamp

times_ns = st.integers(-9_214_560_000_000_000_000, 9_214_646_399_999_999_999)
texts = st.text(st.characters(codec="utf-8"), max_size=6)
stored = st.builds(
    StoredEvent,
    seq=st.integers(1, 2**63 - 1),
    topic=st.sampled_from(["a", "a/b"]),
    event_id=texts,
    timestamp_ns=times_ns,
    processed_at_ns=times_ns,
    source=texts,
    source_seq=st.none() | st.integers(-(2**63), 2**63 - 1),
    payload=st.sampled_from([b"null", b"1.50", b'{"b":1e2,"a":[]}', '"é"'.encode()]),
)
sent_again = st.builds(
    lambda event, count, last_ns: msgspec.structs.replace(event, duplicates=count, last_duplicate_at_ns=last_ns),
    stored,
    st.integers(1, 9),
    times_ns,
)
unreadable = st.builds(Unreadable, st.integers(1, 2**63 - 1), texts)


def _written(event: StoredEvent | Unreadable) -> str:
    if isinstance(event, Unreadable):
        return json.dumps({"seq": event.seq, "error": event.error})
    before: dict[str, Any] = {
        "topic": event.topic,
        "event_id": event.event_id,
        "timestamp": format_timestamp(event.timestamp_ns),
        "source": event.source,
    }
    if event.source_seq is not None:
        before["source_seq"] = event.source_seq
    after: dict[str, Any] = {"processed_at": format_timestamp(event.processed_at_ns), "seq": event.seq}
    if event.duplicates:
        after["duplicates"] = event.duplicates
    if event.last_duplicate_at_ns is not None:
        after["last_duplicate_at"] = format_timestamp(event.last_duplicate_at_ns)
    return f'{json.dumps(before)[:-1]}, "payload": {event.payload.decode()}, {json.dumps(after)[1:]}'


def _pairs(line: str | bytes) -> Any:
    """Members in order and numbers as spelled."""
    return json.loads(line, object_pairs_hook=tuple, parse_float=str, parse_int=str)


@given(st.lists(stored | sent_again | unreadable, max_size=5), st.sampled_from([1, 40]))
def test_a_page_is_each_event_written_field_by_field(some: list[StoredEvent | Unreadable], copies: int) -> None:
    events = some * copies
    lines = events_ndjson(events).split(b"\n")
    assert lines.pop() == b""
    assert [_pairs(line) for line in lines] == [_pairs(_written(event)) for event in events]
    assert events_json(events) == b"[%b]" % b",".join(lines)
