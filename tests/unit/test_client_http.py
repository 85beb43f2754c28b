import math
from collections.abc import Iterator
from email.utils import formatdate

import pytest

from fake_server import HANG_UP, USUAL, FakeServer, Reply, fake_server, json_reply, problem
from sekali.client.backoff import LONGEST_BOUND_S
from sekali.client.errors import Gone, NotSekali, Refused, StreamCut, TooLarge, Unreachable
from sekali.client.events import encode_event
from sekali.client.http import Server

BUSY = problem(503, "The server has no room", "the queue is full", Retry_After="3")
EVENT = encode_event("alpha", "b-1", "2026-11-23T10:00:00Z", {"n": 1})


NO_COUNTS = dict.fromkeys(("received", "stored", "duplicate", "conflict", "invalid"), 0)


class FakeTime:
    """A clock that moves only when someone sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


def _server(fake: FakeServer, time: FakeTime, give_up_after_s: float = 60.0, path: str = "") -> Server:
    return Server(
        fake.url + path,
        give_up_after_s=give_up_after_s,
        clock=lambda: time.now_s,
        sleep=time.sleep,
        random_share=lambda: 0.5,
    )


def test_publishes_ndjson_and_returns_the_verdicts(fake: FakeServer) -> None:
    with _server(fake, FakeTime()) as server:
        answer = server.publish([EVENT, EVENT, b"no"])
    assert (answer.received, answer.stored, answer.duplicate, answer.conflict, answer.invalid) == (2, 1, 1, 0, 1)
    assert [verdict["outcome"] for verdict in answer.results] == ["stored", "duplicate", "invalid"]
    assert fake.requests[0].headers["Content-Type"] == "application/x-ndjson"


def test_nothing_valid_is_an_answer_too(fake: FakeServer) -> None:
    with _server(fake, FakeTime()) as server:
        assert server.publish([b"no"]).results == [{"outcome": "invalid", "error": "line: not JSON"}]


@pytest.mark.parametrize("trouble", [HANG_UP, *(problem(status, "t", "d") for status in (408, 429, 502, 503, 504))])
def test_sends_the_same_again_until_it_is_answered(fake: FakeServer, trouble: Reply | str) -> None:
    fake.script.extend([trouble] * 3)
    time = FakeTime()
    with _server(fake, time) as server:
        assert server.publish([EVENT]).stored == 1
    assert len({request.body for request in fake.requests}) == 1
    assert time.slept_s == pytest.approx([0.05, 0.1, 0.2])


def test_waits_at_least_as_long_as_the_server_asks(fake: FakeServer) -> None:
    fake.script.extend([BUSY, BUSY])
    time = FakeTime()
    with _server(fake, time) as server:
        server.publish([EVENT])
    assert time.slept_s == pytest.approx([3.05, 3.1])


def test_retry_after_may_be_a_date(fake: FakeServer) -> None:
    fake.script.append(problem(503, "t", "d", Retry_After=formatdate(usegmt=True, timeval=0)))
    time = FakeTime()
    with _server(fake, time) as server:
        assert server.publish([EVENT]).stored == 1
    assert time.slept_s == pytest.approx([0.05])


def test_gives_up_at_the_deadline_and_says_why(fake: FakeServer) -> None:
    fake.script.extend([BUSY] * 100)
    time = FakeTime()
    with _server(fake, time, give_up_after_s=10) as server, pytest.raises(Unreachable, match="the queue is full"):
        server.publish([EVENT])
    assert 7 <= sum(time.slept_s) <= 10


def test_each_request_has_the_whole_time(fake: FakeServer) -> None:
    time = FakeTime()
    with _server(fake, time, give_up_after_s=4) as server:
        for _ in range(3):
            fake.script.append(BUSY)
            server.publish([EVENT])
    assert sum(time.slept_s) > 9


def test_no_server_at_all() -> None:
    with fake_server() as fake:
        pass
    time = FakeTime()
    told: list[tuple[str, int]] = []
    server = Server(
        fake.url,
        give_up_after_s=2,
        on_wait=lambda reason, failures: told.append((reason, failures)),
        clock=lambda: time.now_s,
        sleep=time.sleep,
    )
    with server, pytest.raises(Unreachable, match="Connection refused"):
        server.publish([EVENT])
    assert told[:2] == [("Connection refused", 1), ("Connection refused", 2)]
    assert time.now_s == pytest.approx(102)


def test_infinite_patience_outlasts_any_outage(fake: FakeServer) -> None:
    fake.script.extend([HANG_UP] * 60)
    time = FakeTime()
    with _server(fake, time, give_up_after_s=math.inf) as server:
        assert server.publish([EVENT]).stored == 1
    assert max(time.slept_s) == LONGEST_BOUND_S / 2


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        (problem(413, "Over a limit", "the body has 5 bytes"), TooLarge, "Over a limit: the body has 5 bytes"),
        (problem(415, "Not known", "content type x"), Refused, "Not known: content type x"),
        (problem(422, "Not valid", "nothing was stored"), Refused, "Not valid"),
        (Reply(500, b"<h1>oh</h1>"), Refused, "answered 500"),
        (Reply(301, b"", {"Location": "/x"}), NotSekali, "Check the URL"),
        (Reply(200, b"<h1>It works!</h1>"), NotSekali, "Check the URL"),
        (json_reply({"received": 1}), NotSekali, "Check the URL"),
        (json_reply({**NO_COUNTS, "results": []}), NotSekali, "Check the URL"),
        (json_reply({**NO_COUNTS, "results": {"0": "stored"}}), NotSekali, "Check the URL"),
        (json_reply({"results": [{"outcome": "stored"}]}), NotSekali, "Check the URL"),
        (Reply(200, b"[" * 100_000), NotSekali, "Check the URL"),
    ],
)
def test_does_not_repeat_what_would_fail_again(
    fake: FakeServer, reply: Reply, error: type[Exception], says: str
) -> None:
    fake.script.append(reply)
    with _server(fake, FakeTime()) as server, pytest.raises(error, match=says):
        server.publish([EVENT])
    assert len(fake.requests) == 1


def test_gets_a_page_and_the_way_to_the_next(fake: FakeServer) -> None:
    link = '<http://elsewhere/events?a=1>; rel="prev", </events?topic=a%2Fb&cursor=x%3D>; rel="next"'
    fake.script.extend([json_reply([], Link=link), json_reply([])])
    with _server(fake, FakeTime(), path="/behind/a/proxy/") as server:
        page = server.get("/events", {"topic": "a/b", "source": None, "limit": 5})
        assert server.get("/events", page.next).next is None
    assert [request.path for request in fake.requests] == ["/behind/a/proxy/events"] * 2
    assert [request.params for request in fake.requests] == [
        {"topic": "a/b", "limit": "5"},
        {"topic": "a/b", "cursor": "x="},
    ]


def test_a_position_of_another_log(fake: FakeServer) -> None:
    fake.script.append(problem(410, "Not of this log", "seq 9"))
    with _server(fake, FakeTime()) as server, pytest.raises(Gone, match="seq 9"):
        server.get("/events")


@pytest.mark.parametrize("body", [b"[]", b"no", b'"\xff"'])
def test_an_object_that_is_none(fake: FakeServer, body: bytes) -> None:
    fake.script.append(Reply(200, body))
    with _server(fake, FakeTime()) as server, pytest.raises(NotSekali):
        server.get_object("/stats")


def test_streams_lines(fake: FakeServer) -> None:
    fake.script.extend([BUSY, Reply(200, b'{"seq":1}\n{"seq":2}\n'), Reply(200, b'{"seq":3}')])
    with _server(fake, FakeTime()) as server:
        assert list(server.stream("/events", {"topic": "t"})) == [b'{"seq":1}', b'{"seq":2}']
        assert list(server.stream("/events")) == [b'{"seq":3}']
    assert fake.requests[0].headers["Accept"] == "application/x-ndjson"


def test_a_stream_that_is_cut_gives_what_it_had_and_says_so(fake: FakeServer) -> None:
    fake.script.append(Reply(200, b'{"seq":1}\n{"seq":', cut=True))
    with _server(fake, FakeTime()) as server:
        stream = server.stream("/events")
        assert next(stream) == b'{"seq":1}'
        with pytest.raises(StreamCut, match="cut the stream short"):
            next(stream)


def test_a_stream_may_be_left_early_and_the_server_still_used(fake: FakeServer) -> None:
    fake.script.append(Reply(200, b"1\n2\n"))
    with _server(fake, FakeTime()) as server:
        stream = server.stream("/events")
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert server.publish([EVENT]).stored == 1


def test_a_stream_that_is_refused(fake: FakeServer) -> None:
    fake.script.append(problem(422, "A parameter is not valid", "since: not a time"))
    with _server(fake, FakeTime()) as server, pytest.raises(Refused, match="since: not a time"):
        next(server.stream("/events"))


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://x", "http://", "http://x/?a=1"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="not the URL of a server"):
        Server(url)


def test_the_key_goes_with_every_request_and_into_no_message(fake: FakeServer) -> None:
    fake.script.extend([json_reply([]), USUAL, Reply(200, b"", {"Content-Type": "application/x-ndjson"})])
    with Server(fake.url, api_key="k1.secret", give_up_after_s=0) as server:
        server.get("/events")
        server.publish([EVENT])
        list(server.stream("/events"))
        fake.script.append(problem(401, "The request has no valid key", "the key has expired"))
        with pytest.raises(Refused) as refused:
            server.get("/events")
    assert [request.headers["Authorization"] for request in fake.requests] == ["Bearer k1.secret"] * 4
    assert {request.headers["User-Agent"] for request in fake.requests} == {"sekali-client"}
    assert "secret" not in str(refused.value) + repr(server)


def test_without_a_key_none_is_shown(fake: FakeServer) -> None:
    with _server(fake, FakeTime()) as server:
        server.publish([EVENT])
    assert "Authorization" not in fake.requests[0].headers


def test_a_key_is_not_sent_on_to_where_an_answer_points(fake: FakeServer) -> None:
    fake.script.append(Reply(307, b"", {"Location": f"{fake.url}/elsewhere"}))
    with Server(fake.url, api_key="k1.secret", give_up_after_s=0) as server, pytest.raises(NotSekali):
        server.publish([EVENT])
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    "key", ["", "k1", "k1.", ".hunter22", "k1.secret\r\nX-Evil: 1", "k1.sec ret", "k1.secr\u00e9t"]
)
def test_what_is_no_key_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ValueError, match=r"id\.secret") as refused:
        Server("http://127.0.0.1:1", api_key=key)
    assert len(key) < 5 or key not in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (problem(401, "The request has no valid key", "send one"), "SEKALI_API_KEY"),
        (
            json_reply({"title": "t", "detail": "needs read:a", "missing_scopes": ["read:a"]}, 403),
            "needs read:a. Use a key with that scope; on the server, sekali keys create",
        ),
        (problem(403, "t", "by a page of another site"), "another site$"),
    ],
)
def test_a_refusal_for_want_of_a_key_says_what_to_do(fake: FakeServer, answer: Reply, advice: str) -> None:
    for ask in (lambda server: server.publish([EVENT]), lambda server: list(server.stream("/events"))):
        fake.script.append(answer)
        with _server(fake, FakeTime()) as server, pytest.raises(Refused, match=advice):
            ask(server)


def test_429_is_waited_for_as_long_as_it_says(fake: FakeServer) -> None:
    fake.script.extend([problem(429, "The key sends too much", "d", Retry_After="2")] * 2)
    time = FakeTime()
    with _server(fake, time) as server:
        assert server.publish([EVENT]).stored == 1
    assert time.slept_s == pytest.approx([2.05, 2.1])
