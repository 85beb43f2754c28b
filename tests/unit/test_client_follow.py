import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_server import HANG_UP, FakeServer, Reply, fake_server, json_reply, problem
from sekali.client.errors import Gone, NotSekali
from sekali.client.follow import IDLE_LONGEST_S, follow, newest_seq, rows
from sekali.client.http import Page, Server

STATS = json_reply({"log_id": "log-1"})


def _page(*seqs: int, more: bool = False) -> Reply:
    link: dict[str, Any] = {"Link": '</events?cursor=c>; rel="next"'} if more else {}
    return json_reply([{"seq": seq} for seq in seqs], **link)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


class Ended(Exception):
    """The test has seen enough."""


def _followed(fake: FakeServer, sleeps: int, after: int = 0, topic: str | None = None) -> tuple[list[int], list[float]]:
    """Return the seqs seen until the follower has slept so often, and those sleeps."""
    slept_s: list[float] = []
    seqs: list[int] = []

    def sleep(seconds: float) -> None:
        slept_s.append(seconds)
        if len(slept_s) == sleeps:
            raise Ended

    with Server(fake.url, sleep=lambda seconds: None) as server, pytest.raises(Ended):
        for found in follow(server, after, topic=topic, log_id="log-1", sleep=sleep):
            seqs += [row.event["seq"] for row in found]
    return seqs, slept_s


def test_goes_on_behind_the_last_event_over_pages_pauses_and_outages(fake: FakeServer) -> None:
    fake.script.extend(
        [_page(4, 5, more=True), STATS, _page(more=True), _page(8), _page(), HANG_UP, _page(9), STATS, _page()]
    )
    seqs, _ = _followed(fake, sleeps=4, after=3, topic="app/**")
    assert seqs == [4, 5, 8, 9]
    assert [request.params for request in fake.requests if request.path == "/events"] == [
        {"after": "3", "topic": "app/**"},
        {"cursor": "c"},
        {"cursor": "c"},
        {"after": "8", "topic": "app/**"},
        {"after": "8", "topic": "app/**"},
        {"after": "8", "topic": "app/**"},
        {"after": "9", "topic": "app/**"},
    ]


def test_waits_longer_while_nothing_comes_and_short_again_after_an_event(fake: FakeServer) -> None:
    fake.script.extend([*[_page()] * 8, _page(1), STATS])
    _, slept_s = _followed(fake, sleeps=9)
    assert slept_s[:8] == sorted(slept_s[:8])
    assert slept_s[7] == IDLE_LONGEST_S
    assert slept_s[8] < 0.1


def test_events_of_another_log_are_not_shown(fake: FakeServer) -> None:
    fake.script.extend([_page(1), STATS, _page(2), json_reply({"log_id": "log-2"})])
    with Server(fake.url) as server:
        found = follow(server, 0, log_id="log-1", sleep=lambda seconds: None)
        assert [row.event for row in next(found)] == [{"seq": 1}]
        with pytest.raises(Gone, match="log-2"):
            next(found)


def test_a_position_above_the_head_is_an_error(fake: FakeServer) -> None:
    fake.script.append(problem(410, "Not of this log", "seq 9 is above the newest event"))
    with Server(fake.url) as server, pytest.raises(Gone):
        next(follow(server, 9, log_id="log-1"))


def test_the_newest_seq(fake: FakeServer) -> None:
    fake.script.extend([_page(42), _page()])
    with Server(fake.url) as server:
        assert (newest_seq(server), newest_seq(server)) == (42, 0)
    assert fake.requests[0].params == {"order": "-seq", "limit": "1"}


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
