import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_server import HANG_UP, FakeServer, Reply, fake_server, problem
from sekali.client.errors import Gone, NotSekali, Refused, Unreachable
from sekali.client.follow import follow, rows
from sekali.client.http import Page, Server
from sekali.client.sse import Message, Parser

STREAM = {"Content-Type": "text/event-stream"}
OPENING = b"retry: 2000\nid: log-0\n\n"


def block(seq: int, **fields: Any) -> bytes:
    return f"id: log-{seq}\ndata: {json.dumps({'seq': seq} | fields)}\n\n".encode()


def stream(*blocks: bytes, cut: bool = False) -> Reply:
    """Answer with a stream; after it the server closes in order, or with ``cut`` without the final chunk."""
    return Reply(200, OPENING + b"".join(blocks), STREAM, cut=cut)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


class Ended(Exception):
    """The test has seen enough."""


def followed(fake: FakeServer, sleeps: int, **options: Any) -> tuple[list[int], list[float]]:
    """Return the seqs seen until the follower has waited so often to connect again, and those waits."""
    slept_s: list[float] = []
    seqs: list[int] = []

    def sleep(seconds: float) -> None:
        slept_s.append(seconds)
        if len(slept_s) == sleeps:
            raise Ended

    with Server(fake.url, sleep=lambda seconds: None) as server, pytest.raises(Ended):
        for found in follow(server, **options, sleep=sleep, random_share=lambda: 0.5):
            seqs += [row.event["seq"] for row in found]
    return seqs, slept_s


def test_goes_on_behind_the_last_event_that_came_whole(fake: FakeServer) -> None:
    half = block(6)[:-1]
    fake.script.extend(
        [
            stream(block(4), block(5), half, cut=True),
            HANG_UP,
            problem(503, "Not now", "starting", Retry_After="0"),
            stream(block(6), b":\nid: log-9\n\n"),
            stream(cut=True),
            stream(block(10)),
        ]
    )
    seqs, _ = followed(fake, 4, topic="app/**", after="3")
    assert seqs == [4, 5, 6, 10]
    assert {request.path for request in fake.requests} == {"/subscribe"}
    assert all(request.params == {"topic": "app/**", "after": "3"} for request in fake.requests)
    assert all(request.headers["Accept"] == "text/event-stream" for request in fake.requests)
    places = [request.headers.get("Last-Event-ID") for request in fake.requests]
    assert places == [None, "log-5", "log-5", "log-5", "log-9", "log-0"]


def test_what_comes_first_is_a_place_to_go_on_from(fake: FakeServer) -> None:
    fake.script.extend([stream(cut=True), stream(block(1))])
    followed(fake, 2)
    assert [request.params for request in fake.requests] == [{"after": "latest"}] * 2
    assert fake.requests[1].headers["Last-Event-ID"] == "log-0"


def test_begins_where_it_is_told(fake: FakeServer) -> None:
    fake.script.append(stream(block(8)))
    followed(fake, 1, last_event_id="log-7")
    assert fake.requests[0].headers["Last-Event-ID"] == "log-7"


def test_waits_longer_and_longer_while_streams_end_at_once(fake: FakeServer) -> None:
    fake.script.extend([stream(cut=number % 2 == 0) for number in range(9)])
    _, slept_s = followed(fake, 9)
    assert slept_s == sorted(slept_s) and slept_s[0] < 0.1 and slept_s[-1] == 2.5, "half of the longest, by the share"


def test_rows_keep_the_text_of_numbers_and_know_their_place(fake: FakeServer) -> None:
    text = '{"seq":1,"payload":[1e0,1.00,12345678901234567890.0]}'
    fake.script.append(Reply(200, f"id: log-1\ndata: {text}\n\n".encode(), STREAM))
    with Server(fake.url) as server:
        (row,) = next(follow(server))
    assert (row.text, row.id, row.event["seq"]) == (text, "log-1", 1)


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (problem(410, "Not of this log", "seq 9 is above the newest event"), Gone, "seq 9"),
        (problem(422, "Not valid", "topic"), Refused, "topic"),
        (Reply(200, b"<h1>It works!</h1>", {"Content-Type": "text/html"}), NotSekali, "Check the URL"),
        (Reply(200, b"data: [1]\n\n", STREAM), NotSekali, "not an object"),
        (Reply(200, b"data: {\n\n", STREAM), NotSekali, "not JSON"),
        (Reply(200, b"data: " + b"[" * 100_000 + b"\n\n", STREAM), NotSekali, "not JSON"),
        (Reply(200, b"data: \xff\n\n", STREAM), NotSekali, "no stream of events"),
        (Reply(302, b"", {"Location": "http://localhost"}), NotSekali, "status 302"),
    ],
)
def test_what_will_not_get_better_is_an_error(
    fake: FakeServer, reply: Reply, error: type[Exception], message: str
) -> None:
    fake.script.append(reply)
    with Server(fake.url) as server, pytest.raises(error, match=message):
        next(follow(server))
    assert len(fake.requests) == 1


def test_a_server_that_does_not_come_back_is_given_up(fake: FakeServer) -> None:
    fake.script.extend([stream(block(1)), HANG_UP])
    with Server(fake.url, give_up_after_s=0) as server:
        found = follow(server, sleep=lambda seconds: None)
        assert [row.event["seq"] for row in next(found)] == [1]
        with pytest.raises(Unreachable):
            next(found)


# Streams taken apart.

texts = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1)
messages = st.one_of(
    st.tuples(texts, texts), st.tuples(texts, st.none()), st.tuples(st.none(), texts), st.just((None, None))
)


@given(st.lists(messages), st.lists(st.integers(0, 200)), st.sampled_from(["\n", "\r\n"]), st.sampled_from(["", " "]))
def test_messages_come_out_however_the_stream_is_cut(
    given_messages: list[tuple[str | None, str | None]], cuts: list[int], end: str, space: str
) -> None:
    text = ""
    expected: list[Message] = []
    place: str | None = None
    for data, place_told in given_messages:
        place = place if place_told is None else place_told.removeprefix(" " if space == "" else "")
        lines = [f"id:{space}{place_told}"] if place_told is not None else []
        lines += [f"data:{space}{data}"] if data is not None else []
        text += end.join([": a comment", "retry: 5", "event: message", *lines, "", ""])
        if lines:
            told = None if data is None else data.removeprefix(" " if space == "" else "")
            expected.append(Message(told, place))
    raw = text.encode()
    parser = Parser()
    found: list[Message] = []
    begin = 0
    for cut in [*cuts, len(raw)]:
        found += parser.feed(raw[begin : begin + cut])
        begin += cut
    assert found == expected


def test_data_on_several_lines_is_one_text_and_an_id_with_a_null_is_none() -> None:
    assert Parser().feed(b"data: a\ndata:\ndata: b\nid: 1\n\nid: 2\0\ndata\n\n") == [
        Message("a\n\nb", "1"),
        Message("", "1"),
    ]


def test_a_line_without_an_end_is_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekali.client.sse.BUFFER_BYTES_MAX", 100)
    parser = Parser()
    parser.feed(b"x" * 100)
    with pytest.raises(ValueError, match="without an end"):
        parser.feed(b"x")


# Pages taken apart.

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(), values, max_size=3), max_size=5), st.sampled_from([None, 1]))
def test_rows_are_the_elements_each_on_one_line(events: list[dict[str, object]], indent: int | None) -> None:
    found = rows(Page(json.dumps(events, indent=indent, ensure_ascii=False), None))
    assert [row.event for row in found] == events
    assert [json.loads(row.text) for row in found] == events
    assert all("\n" not in row.text for row in found)


def test_numbers_stay_as_they_were_written() -> None:
    text = '{"seq":1,"payload":[1e0,1.00,12345678901234567890.0]}'
    assert next(islice(rows(Page(f"[{text}]", None)), 1)).text == text


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"a":]', "[{}", "[" * 100_000 + "]"])
def test_a_page_that_is_none(text: str) -> None:
    with pytest.raises(NotSekali, match="Check the URL"):
        rows(Page(text, None))
