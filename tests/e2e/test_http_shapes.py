"""Requests in every shape that HTTP has, and in some that it has not: one answer each, and nothing smuggled in."""

import json
from collections.abc import Callable
from itertools import count

import pytest

from e2e.conftest import Launch
from e2e.raw import (
    answers,
    ask,
    chunked,
    head,
    metric,
    one_event,
    post,
    receive_answers,
    receive_until_closed,
    statuses,
)
from e2e.server import NDJSON, Client, RawConnection, ServerProcess, event, wait_until

_numbers = count(1)
Shape = Callable[[bytes], bytes]
CHUNKED = "Transfer-Encoding: chunked"
ROUTES = [
    "/publish",
    "/exists",
    "/events",
    "/topics",
    "/sources",
    "/conflicts",
    "/stats",
    "/healthz",
    "/metrics",
    "/docs",
    "/openapi.json",
]
TAKES_POST = {"/publish", "/exists"}


@pytest.fixture
def topic() -> str:
    return f"shapes/{next(_numbers)}"


def stored(http: Client, topic: str) -> list[str]:
    return [one["event_id"] for one in http.events(topic=topic)]


# Shapes that are fine. Each holds one event, "1".


def good_shapes(body: bytes) -> dict[str, bytes]:
    length = f"Content-Length: {len(body)}"
    pieces = [body[start : start + 13] for start in range(0, len(body), 13)]
    upper = body.replace(b"\r", b"")
    return {
        "usual": post(body),
        "address with a query": post(body, path="/publish?a=b&c"),
        "absolute address": post(body, path="http://elsewhere.test/publish"),
        "absolute address with a query": post(body, path="HTTP://a:80/publish?x"),
        "line ends before it": b"\r\n\r\n" + post(body),
        "no Host": b"POST /publish HTTP/1.1\r\n" + length.encode() + b"\r\n\r\n" + body,
        "a hundred headers": post(body, *[f"X-{number}: {number}" for number in range(97)]),
        "31 KB of headers": post(body, "X: " + "x" * 31_000),
        "header names in capitals": b"POST /publish HTTP/1.1\r\nHOST: localhost\r\n"
        + length.upper().encode()
        + b"\r\n\r\n"
        + body,
        "empty headers and odd ones": post(body, "X:", "Y:   ", "Z: \x80\xff".encode("latin-1").decode("latin-1")),
        "white space around a value": post(body, "Content-Type: \t application/json \t "),
        "one chunk": head("POST", "/publish", CHUNKED) + chunked([body]),
        "small chunks": head("POST", "/publish", CHUNKED) + chunked(pieces),
        "chunks of one byte": head("POST", "/publish", CHUNKED)
        + chunked([body[at : at + 1] for at in range(len(body))]),
        "chunk sizes with zeros and capitals": head("POST", "/publish", "transfer-encoding: CHUNKED")
        + b"000%X\r\n%b\r\n0000\r\n\r\n" % (len(upper), upper),
        "chunk extensions": head("POST", "/publish", CHUNKED)
        + b'%x;a=b;c="d"\r\n%b\r\n0;e\r\n\r\n' % (len(body), body),
        "trailers": head("POST", "/publish", CHUNKED, "Trailer: X") + chunked([body], b"0\r\nX: 1\r\nY: 2\r\n\r\n"),
        "trailers that say what the head should": head("POST", "/publish", CHUNKED)
        + chunked([body], b"0\r\nContent-Encoding: gzip\r\nPrefer: respond-async\r\nContent-Type: a\r\n\r\n"),
        "upgrade to HTTP/2": post(
            body, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"
        ),
        "upgrade in chunks": head("POST", "/publish", CHUNKED, "Connection: upgrade", "Upgrade: websocket")
        + chunked(pieces),
        "expectation, and the body at once": post(body, "Expect: 100-continue"),
        "unknown expectation": post(body, "Expect: tea"),
    }


NAMES_OF_GOOD_SHAPES = list(good_shapes(b""))


@pytest.mark.parametrize("name", NAMES_OF_GOOD_SHAPES)
def test_good_shape_is_taken(http: Client, server: ServerProcess, topic: str, name: str) -> None:
    """In one packet with the next request, and byte by byte."""
    request = good_shapes(one_event(topic, "1"))[name]
    closing = head("GET", "/stats", "Connection: close")
    assert statuses(ask(server.port, request + closing)) == [200, 200]
    assert stored(http, topic) == ["1"]
    with RawConnection(server.port) as connection:
        for start in range(0, len(request), 1 if len(request) < 2_000 else 997):
            connection.send(request[start : start + (1 if len(request) < 2_000 else 997)])
        connection.send(closing)
        found = [status for status in statuses(receive_until_closed(connection)) if status != 100]
    assert found == [200, 200]
    [line] = http.events(topic=topic)
    assert line["duplicates"] == 1


@pytest.mark.parametrize("version", ["1.0", "0.9", "2.0"])
def test_other_versions_are_answered_and_closed(http: Client, server: ServerProcess, topic: str, version: str) -> None:
    request = post(one_event(topic, "1"), "Connection: keep-alive", version=version)
    assert statuses(ask(server.port, request)) == [200]
    assert statuses(ask(server.port, head("GET", "/stats", "Connection: keep-alive", version=version))) == [200]
    assert stored(http, topic) == ["1"]


def test_http_1_0_is_never_answered_in_chunks(http: Client, server: ServerProcess, topic: str) -> None:
    """Its clients take the sizes of chunks for lines of events: they get pages, whatever they ask for."""
    http.publish([event(topic, f"{number}") for number in range(3)])
    data = ask(server.port, head("GET", f"/events?topic={topic}", f"Accept: {NDJSON}", version="1.0"))
    top, _, body = data.partition(b"\r\n\r\n")
    assert b"chunked" not in top.lower() and b"content-type: application/json" in top.lower()
    assert len(json.loads(body)) == 3
    assert b"chunked" in ask(server.port, head("GET", "/events", f"Accept: {NDJSON}", "Connection: close")).lower()


# Shapes that are not HTTP, or ambiguous: 400, and the connection is closed. SMUGGLED would publish an event.


def bad_shapes(body: bytes, smuggled: bytes) -> dict[str, bytes]:
    length = f"Content-Length: {len(body)}"
    in_chunks = chunked([body])
    tail = in_chunks + smuggled

    def with_headers(*lines: str) -> bytes:
        return head("POST", "/publish", *lines)

    return {
        "length and chunks": with_headers(length, CHUNKED) + tail,
        "chunks and length": with_headers(CHUNKED, length) + tail,
        "length 0 and chunks": with_headers("Content-Length: 0", CHUNKED) + tail,
        "two lengths": with_headers(length, "Content-Length: 0") + body + smuggled,
        "the same length twice": with_headers(length, length) + body + smuggled,
        "a list of lengths": with_headers(f"{length}, {len(body)}") + body + smuggled,
        "length with a sign": with_headers(f"Content-Length: +{len(body)}") + body + smuggled,
        "negative length": with_headers("Content-Length: -1") + body + smuggled,
        "length in hexadecimal": with_headers(f"Content-Length: {len(body):#x}") + body + smuggled,
        "length beyond 64 bits": with_headers("Content-Length: 18446744073709551617") + body + smuggled,
        "empty length": with_headers("Content-Length:") + body + smuggled,
        "length with a space before the colon": with_headers(f"Content-Length : {len(body)}") + body + smuggled,
        "length in a folded line": with_headers("X: a", f" {length}") + body + smuggled,
        "other encoding": with_headers("Transfer-Encoding: gzip") + tail,
        "identity": with_headers("Transfer-Encoding: identity") + tail,
        "chunked twice": with_headers("Transfer-Encoding: chunked, chunked") + tail,
        "chunked not last": with_headers("Transfer-Encoding: chunked, gzip") + tail,
        "almost chunked": with_headers("Transfer-Encoding: xchunked") + tail,
        "chunked with a parameter": with_headers("Transfer-Encoding: chunked;q=1") + tail,
        "chunked behind a control": with_headers("Transfer-Encoding: \x0bchunked") + tail,
        "chunk size with a sign": with_headers(CHUNKED) + b"+" + tail,
        "chunk size with 0x": with_headers(CHUNKED) + b"0x" + tail,
        "chunk size beyond 64 bits": with_headers(CHUNKED) + b"1" + b"0" * 16 + b"\r\n" + tail,
        "chunk size that is none": with_headers(CHUNKED) + b"\r\n" + tail,
        "chunk longer than it says": with_headers(CHUNKED) + b"1\r\n" + body + b"\r\n" + smuggled,
        "chunk ended by a line feed": with_headers(CHUNKED) + b"1\r\n \n" + tail,
        "chunk size ended by a line feed": with_headers(CHUNKED) + b"1\n \r\n" + tail,
        "chunk without an end": with_headers(CHUNKED) + b"1\r\n X" + tail,
        "lines ended by line feeds": post(body).replace(b"\r\n", b"\n", 4) + smuggled,
        "carriage return in a value": with_headers("X: a\rContent-Length: 5") + smuggled,
        "NUL in a value": with_headers("X: a\0b", length) + body + smuggled,
        "NUL in a name": with_headers("X\0: a", length) + body + smuggled,
        "no name": with_headers(": a", length) + body + smuggled,
        "no colon": with_headers("X a", length) + body + smuggled,
        "space before the first header": b"POST /publish HTTP/1.1\r\n X: a\r\n\r\n" + smuggled,
        "method in small letters": post(body).replace(b"POST", b"post") + smuggled,
        "no such method": post(body).replace(b"POST", b"BREW") + smuggled,
        "NUL in the address": post(body, path="/publish\0") + smuggled,
        "space in the address": post(body, path="/publish x") + smuggled,
        "no ASCII in the address": post(body, path="/é") + smuggled,
        "no address": b"POST  HTTP/1.1\r\n\r\n" + smuggled,
        "address without a path": post(body, path="http://a") + smuggled,
        "version 1.2": post(body, version="1.2") + smuggled,
        "version of two figures": post(body, version="11") + smuggled,
        "other protocol": post(body).replace(b"HTTP/1.1", b"ICY/1.1") + smuggled,
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + smuggled,
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + smuggled,
        "length in a trailer": with_headers(CHUNKED) + chunked([b" "], b"0\r\nContent-Length: 3\r\n\r\n") + smuggled,
        "a tunnel": head("CONNECT", "127.0.0.1:8080") + smuggled,
    }


NAMES_OF_BAD_SHAPES = list(bad_shapes(b"", b""))


@pytest.mark.parametrize("name", NAMES_OF_BAD_SHAPES)
def test_bad_shape_is_400_and_nothing_behind_it_is_read(
    http: Client, server: ServerProcess, topic: str, name: str
) -> None:
    smuggled = post(one_event(topic, "smuggled"))
    request = bad_shapes(one_event(topic, "1"), smuggled)[name]
    before = metric(http, "sekali_log_events")
    data = ask(server.port, request)
    [(status, body)] = answers(data)
    assert status == 400 and json.loads(body)["type"].endswith(":not-http"), data
    assert b"\r\nconnection: close\r\n" in data
    # Behind requests that are answered, it does not take the place of their answers.
    first = post(one_event(topic, "first"))
    found = answers(ask(server.port, first + first + request))
    assert [status for status, _ in found] == [200, 200, 400]
    assert [json.loads(body)["results"][0]["outcome"] for _, body in found[:2]] == ["stored", "duplicate"]
    assert stored(http, topic) == ["first"] and metric(http, "sekali_log_events") == before + 1


# Two requests where a proxy might see one: what belongs to a body is never read as a request.


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (lambda hidden: head("GET", "/stats", f"Content-Length: {len(hidden)}") + hidden, [200]),
        (lambda hidden: head("GET", "/stats", CHUNKED) + chunked([hidden]), [200]),
        (lambda hidden: head("HEAD", "/publish", f"Content-Length: {len(hidden)}") + hidden, [405]),
        (lambda hidden: head("OPTIONS", "*", f"Content-Length: {len(hidden)}") + hidden, [404]),
        (lambda hidden: head("TRACE", "/", f"Content-Length: {len(hidden)}") + hidden, [404]),
        (lambda hidden: post(hidden, path="/nowhere"), [404]),
        (lambda hidden: post(hidden, "Content-Encoding: br"), [415]),
        (lambda hidden: post(hidden, "Content-Type: text/plain"), [415]),
        (lambda hidden: post(hidden, "Connection: Upgrade", "Upgrade: h2c", path="/nowhere"), [404]),
        (
            lambda hidden: (
                head("GET", "/stats", "Connection: Upgrade", "Upgrade: websocket", f"Content-Length: {len(hidden)}")
                + hidden
            ),
            [200],
        ),
        (lambda hidden: post(hidden, "Connection: Content-Length"), [400]),
        (lambda hidden: post(hidden, "Transfer_Encoding: chunked", "X-Transfer-Encoding: chunked"), [400]),
    ],
)
def test_a_request_inside_a_body_is_not_one(
    http: Client, server: ServerProcess, topic: str, shape: Shape, expected: list[int]
) -> None:
    request = shape(post(one_event(topic, "hidden")))
    after = post(one_event(topic, "after"), "Connection: close")
    if expected == [405]:  # an answer to HEAD has no body, whatever length it names
        assert ask(server.port, request + after).count(b"HTTP/1.1 ") == 2
    else:
        assert statuses(ask(server.port, request + after)) == [*expected, 200]
    assert stored(http, topic) == ["after"]


@pytest.mark.parametrize(
    "closing",
    [
        post(b"[]", "Connection: close"),
        post(b"[]", version="1.0"),
        head("GET", "/stats", "Connection: close"),
        head("GET", "/stats", version="1.0"),
    ],
    ids=["publish", "publish 1.0", "stats", "stats 1.0"],
)
def test_nothing_is_read_behind_a_request_that_closes(
    http: Client, server: ServerProcess, topic: str, closing: bytes
) -> None:
    late = post(one_event(topic, "late"))
    assert statuses(ask(server.port, closing + late + late)) == [200]
    assert statuses(ask(server.port, post(one_event(topic, "1")) + closing + late)) == [200, 200]
    assert stored(http, topic) == ["1"]


# Expectations.


@pytest.mark.parametrize("path", ["/publish", "/exists"])
def test_client_that_waits_to_be_told_is_told(http: Client, server: ServerProcess, topic: str, path: str) -> None:
    body = one_event(topic, "1") if path == "/publish" else json.dumps({"topic": topic, "event_ids": ["a"]}).encode()
    with RawConnection(server.port) as connection:
        connection.send(post(b"", "Expect: 100-Continue", path=path, length=len(body)))
        assert connection.socket.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.send(body)
        assert connection.receive_answer().startswith(b"HTTP/1.1 200 ")


def test_second_of_two_pipelined_is_told_when_it_is_its_turn(launch: Launch) -> None:
    server = launch(faults="held")
    server.fault_file.touch()
    body = one_event("turn", "2")
    with RawConnection(server.port) as connection:
        connection.send(post(one_event("turn", "1")) + post(b"", "Expect: 100-continue", length=len(body)))
        wait_until(lambda: metric(server.http, "sekali_queue_events") == 1, "the first is accepted")
        connection.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.socket.recv(1000)
        connection.socket.setblocking(True)
        server.fault_file.unlink()
        assert [status for status, _ in receive_answers(connection, 2)] == [200, 100]
        connection.send(body)
        assert b'"stored":1' in connection.receive_answer()


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (post(b"", "Expect: 100-continue", length=10**9), 413),
        (post(b"", "Expect: 100-continue", "Content-Encoding: br", length=100), 415),
        (post(b"", "Expect: 100-continue", path="/nowhere", length=100), 404),
        (post(b"", "Expect: 100-continue", "Content-Encoding: br", path="/exists", length=100), 415),
        (head("GET", "/stats", "Expect: 100-continue", "Content-Length: 100"), 200),
    ],
)
def test_refused_before_the_body_came_the_connection_ends(
    http: Client, server: ServerProcess, topic: str, request_bytes: bytes, expected: int
) -> None:
    """The client may leave the body away now: its next request must not be taken for it."""
    data = ask(server.port, request_bytes)
    assert statuses(data) == [expected] and b"\r\nconnection: close\r\n" in data.lower()
    assert statuses(ask(server.port, request_bytes + post(one_event(topic, "next")))) == [expected]
    assert stored(http, topic) == []


# Methods on every route.


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "POST"])
def test_every_method_on_every_route(http: Client, server: ServerProcess, path: str, method: str) -> None:
    data = ask(server.port, head(method, path, "Connection: close"))
    top, _, body = data.partition(b"\r\n\r\n")
    status = int(top.split()[1])
    allowed = {"POST"} if path in TAKES_POST else {"GET", "HEAD"} if path == "/openapi.json" else {"GET"}
    if method in allowed:
        assert status == (400 if method == "POST" else 200)
    else:
        assert status == 405 and b"application/problem+json" in top.lower()
        allow = top.lower().partition(b"\r\nallow: ")[2].partition(b"\r\n")[0].decode().upper()
        assert set(allow.split(", ")) == allowed
    assert (body == b"") == (method == "HEAD")
    assert http.get("/healthz").status == 200


# Pipelining.


def test_pipelined_requests_are_answered_in_order(http: Client, server: ServerProcess, topic: str) -> None:
    requests = [
        post(one_event(topic, "1")),
        head("GET", f"/events?topic={topic}"),
        post(b"{"),
        post(one_event(topic, "2"), "Prefer: return=minimal"),
        post(json.dumps({"topic": topic, "event_ids": ["2", "3"]}).encode(), path="/exists"),
        post(one_event(topic, "2"), path="/nowhere"),
        post(b"", "Content-Encoding: br"),
        head("GET", f"/events?topic={topic}", "Connection: close"),
    ]
    whole = b"".join(requests)
    for sizes in (len(whole), 1, 50):
        with RawConnection(server.port) as connection:
            for start in range(0, len(whole), sizes):
                connection.send(whole[start : start + sizes])
            found = answers(receive_until_closed(connection))
        assert [status for status, _ in found] == [200, 200, 400, 200, 200, 404, 415, 200]
        assert json.loads(found[4][1]) == {"missing": ["3"]}
        assert [one["event_id"] for one in json.loads(found[7][1])] == ["1", "2"]


def test_too_many_pipelined_requests_are_answered_as_far_as_they_are_read(http: Client, server: ServerProcess) -> None:
    """What is behind is not looked at, and the connection is closed: the client asks again."""
    for request in (head("GET", "/nowhere"), post(b"{")):
        found = statuses(ask(server.port, request * 200))
        assert 16 <= len(found) <= 18 and len(set(found)) == 1


def test_sixteen_pipelined_requests_again_and_again(http: Client, server: ServerProcess) -> None:
    with RawConnection(server.port) as connection:
        for _ in range(10):
            connection.send(head("GET", "/healthz") * 16)
            assert [status for status, _ in receive_answers(connection, 16)] == [200] * 16


def test_stream_ends_when_its_reader_leaves_although_more_was_asked(launch: Launch) -> None:
    """With a request waiting behind it, a stream that nobody reads any more must not go on to its end."""
    server = launch()
    for part in range(5):
        server.http.publish([event("long", f"{part}-{number}", payload="x" * 4_000) for number in range(2_000)])
    pages = [head("GET", "/events", f"Accept: {NDJSON}"), head("GET", "/stats"), post(b"[]")]
    with RawConnection(server.port, receive_buffer_bytes=4096) as connection:
        connection.send(b"".join(pages))
        assert connection.socket.recv(10)
    wait_until(lambda: metric(server.http, "sekali_connections") == 1, "it is gone")
    wait_until(lambda: metric(server.http, "sekali_connection_bytes") == 0, "and so is what it held")
