import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekali.client.lines import Item, Line, PlaceIds, line_events, ndjson_events, read_chunks, split_lines
from sekali.client.timepattern import TimePattern

NOW_NS = 1_795_428_000_123_456_789
endings = st.sampled_from([b"\n", b"\r\n"])
contents = st.binary(max_size=12).map(lambda text: text.replace(b"\n", b"").rstrip(b"\r"))
texts = st.lists(contents.filter(bool), min_size=1, max_size=10)
LOGS = Path(__file__).parents[3] / "shared" / "data" / "logs"


def _chunks(data: bytes, size: int = 5) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _ids(data: bytes) -> list[str]:
    make_id = PlaceIds()
    return [make_id(line) for line in split_lines(_chunks(data)) if line and line.content]


def _events(data: bytes, **options: Any) -> list[dict[str, Any]]:
    items = line_events(
        split_lines(_chunks(data, 4096)),
        PlaceIds(),
        "app/log",
        "app.log",
        name="app.log",
        on_fault=lambda place, fault: None,
        clock_ns=lambda: NOW_NS,
        **options,
    )
    return [json.loads(item.event) for item in items if item]


@given(st.lists(st.tuples(contents, endings), max_size=10), contents, st.integers(1, 40))
def test_lines_and_offsets_do_not_depend_on_the_chunks(
    pairs: list[tuple[bytes, bytes]], last: bytes, chunk_bytes: int
) -> None:
    data = b"".join(content + ending for content, ending in pairs) + last
    lines = list(split_lines(_chunks(data, chunk_bytes)))
    assert [line.content for line in lines if line] == [content for content, _ in pairs] + [last] * bool(last)
    for line in filter(None, lines):
        assert data[line.offset :].startswith(line.content)
    assert [line.number for line in lines if line] == list(range(1, len(lines) + 1))


@given(texts)
def test_the_same_bytes_have_the_same_ids_and_each_line_its_own(lines: list[bytes]) -> None:
    data = b"\n".join(lines)
    assert _ids(data) == _ids(data)
    assert len(set(_ids(data))) == len(lines)


@given(texts, texts, endings, st.booleans())
def test_growth_adds_only_what_is_new(old: list[bytes], new: list[bytes], ending: bytes, ended: bool) -> None:
    before = ending.join(old) + (ending if ended else b"")
    after = ending.join(old) + ending + ending.join(new) + ending
    assert _ids(after)[: len(old)] == _ids(before)
    assert len(set(_ids(after)) - set(_ids(before))) == len(new)


@given(texts, texts)
def test_a_rotated_file_shares_no_id_with_the_old_one(old: list[bytes], new: list[bytes]) -> None:
    if old[0] != new[0]:
        assert not set(_ids(b"\n".join(old))) & set(_ids(b"\n".join(new)))


@given(texts, st.data())
def test_a_changed_line_is_another_one(lines: list[bytes], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(lines) - 1))
    changed = [*lines]
    changed[position] += data.draw(contents.filter(bool))
    assert _ids(b"\n".join(lines))[position] != _ids(b"\n".join(changed))[position]


def test_a_carriage_return_before_its_line_feed_came_changes_nothing() -> None:
    assert _ids(b"one\r\ntwo\r") == _ids(b"one\r\ntwo\r\n") == _ids(b"one\r\ntwo")


def test_an_id_is_fingerprint_offset_and_hash_and_stays_so_in_every_version() -> None:
    assert _ids(b"one\ntwo\n") == [
        "34f2ddaa8b7615c9-0-c88d4df74262143a08e9d190e3bd67f1",
        "34f2ddaa8b7615c9-4-d681734f8c454b90df4d5feea7487445",
    ]


def test_empty_lines_are_skipped_and_keep_their_place() -> None:
    assert [event["payload"]["line"] for event in _events(b"\n\r\none\n\n two\n \n")] == ["one", " two", " "]
    assert _events(b"\n\none\n")[0]["event_id"].split("-")[1] == "2"


@given(st.binary(max_size=60), st.integers(1, 20), st.integers(1, 9))
def test_no_more_than_the_maximum_of_a_line_is_kept(data: bytes, line_bytes_max: int, chunk_bytes: int) -> None:
    lines = [line for line in split_lines(_chunks(data, chunk_bytes), line_bytes_max) if line]
    whole = [line for line in split_lines([data] if data else []) if line]
    assert len(lines) == len(whole)
    for line, full in zip(lines, whole, strict=True):
        assert line.too_long == (len(full.content) > line_bytes_max)
        assert line == Line(full.number, full.offset, full.content[:line_bytes_max], line.too_long)


def test_a_line_that_is_too_long_is_reported_and_the_others_go_on() -> None:
    faults: list[str] = []
    lines = split_lines([b"one\n", b"x" * 30, b"y\nthree"], 20)
    items = line_events(lines, PlaceIds(), "t", "s", name="app.log", on_fault=lambda place, fault: faults.append(place))
    assert [item.place for item in items if item] == ["app.log:1", "app.log:3"]
    assert faults == ["app.log:2"]


def test_an_event_of_a_line() -> None:
    (event,) = _events("grün \udcff\x00".encode(errors="surrogateescape"))
    assert event == {
        "topic": "app/log",
        "event_id": event["event_id"],
        "timestamp": "2026-11-23T10:00:00.123456Z",
        "source": "app.log",
        "payload": {"line": "grün \\xff\x00"},
    }


def test_the_time_of_a_line_where_the_pattern_finds_one() -> None:
    events = _events(
        b"2015-07-29 17:41:44,747 - INFO\n  at frame 3\n", time_pattern=TimePattern("%Y-%m-%d %H:%M:%S,%f")
    )
    assert [event["timestamp"] for event in events] == ["2015-07-29T17:41:44.747Z", "2026-11-23T10:00:00.123456Z"]


def test_ndjson_goes_through_unchanged() -> None:
    faults: list[str] = []
    data = b'{"a": 1e0}\r\n\n \t\nnot json\n' + b"x" * 30
    items = list(ndjson_events(split_lines([data], 20), name="in", on_fault=lambda place, fault: faults.append(place)))
    assert items == [Item("in:1", b'{"a": 1e0}'), Item("in:4", b"not json")]
    assert faults == ["in:5"]


def test_a_pipe_that_pauses_is_told_from_one_that_ended() -> None:
    reading, writing = os.pipe()
    chunks = read_chunks(reading, idle_s=0.001)
    try:
        assert next(chunks) == b""
        os.write(writing, b"one\ntw")
        assert [line.content if line else None for line, _ in zip(split_lines(chunks), "12", strict=False)] == [
            b"one",
            None,
        ]
    finally:
        os.close(writing)
        os.close(reading)


@pytest.mark.skipif(not LOGS.is_dir(), reason=f"THE REAL LOGS ARE NOT THERE: {LOGS}")
@pytest.mark.parametrize("name", ["Apache", "HDFS", "OpenSSH", "Zookeeper"])
def test_every_line_of_a_real_log_has_an_identity_of_its_own(name: str) -> None:
    data = (LOGS / f"{name}.log").read_bytes()
    ids = _ids(data)
    assert len(ids) == len(set(ids)) == 2000
    *whole_lines, _cut_line = _ids(data[: len(data) // 2])
    assert whole_lines == ids[: len(whole_lines)]
