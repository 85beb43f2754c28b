"""Every line of the table of limits: what is at the limit passes, one more gets the answer that the table says."""

import gzip
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.raw import ask, chunked, connections, ended, head, metric, one_event, post, receive_until_closed, statuses
from e2e.server import Client, RawConnection, Response, ServerProcess, event, ndjson, wait_until
from sekali.settings import ServerSettings

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from limits import LIMITS, Limit

MIB = 1024 * 1024
TIGHT: dict[str, Any] = {
    "header_timeout_s": 0.4,
    "body_timeout_s": 0.5,
    "answer_timeout_s": 0.6,
    "idle_timeout_s": 0.3,
    "connections_max": 12,
    "connection_bytes_max": 16 * MIB,
    "body_bytes_max": 3_000_000,
    "batch_events_max": 400,
    "queue_bytes_max": 3_000_000,
    "queue_events_max": 500,
    "event_bytes_max": 1_000_000,
    "topics_max": 5,
    "subscriptions_max": 3,
}
Check = Callable[[ServerProcess, float], None]


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose every setting with a limit is low enough to be reached, and a store to read 20 MB from."""
    settings = {name.upper(): value for name, value in TIGHT.items()}
    with ServerProcess(tmp_path_factory.mktemp("tight") / "store.db", faults="held", **settings) as process:
        for part in range(60):
            events = [event("limit", f"filled-{part}-{number}", payload="x" * 900) for number in range(400)]
            assert process.http.publish(events).status == 200
        yield process
        assert process.running


def assert_within(answer: Response) -> None:
    assert answer.status == 200 and set(answer.outcomes) <= {"stored", "duplicate"}, answer


def assert_problem(answer: Response, status: int, naming: str = "") -> None:
    assert answer.status == status and naming in answer.json()["detail"], answer


def assert_invalid(http: Client, field: str, bad: dict[str, Any] | bytes, *good: dict[str, Any] | bytes) -> None:
    for one in good:
        assert_within(http.publish(one))
    text = bad if isinstance(bad, bytes) else json.dumps(bad).encode()
    [place] = http.publish(text).json()["errors"]
    assert place["pointer"].removeprefix("#").removeprefix("/") == field, place
    around = http.publish(b"[%b,%b,%b]" % (one_event("limit", "before"), text, one_event("limit", "after")))
    assert [outcome == "invalid" for outcome in around.outcomes] == [False, True, False]


def is_ended(server: ServerProcess, sent: bytes, reason: str, expected: list[int]) -> None:
    before = ended(server.http, reason)
    assert statuses(ask(server.port, sent)) == expected
    assert ended(server.http, reason) == before + 1


def check_headers_late(server: ServerProcess, _: float) -> None:
    is_ended(server, b"", "headers-late", [408])
    is_ended(server, b"GET / HTTP/1.1\r\nX: ", "headers-late", [408])


def check_body_late(server: ServerProcess, _: float) -> None:
    is_ended(server, post(b"[", length=2), "body-late", [408])


def check_answer_late(server: ServerProcess, _: float) -> None:
    before = ended(server.http, "answer-not-taken")
    with RawConnection(server.port, receive_buffer_bytes=4096) as connection:
        connection.send(head("GET", "/events?limit=10000"))
        wait_until(lambda: ended(server.http, "answer-not-taken") == before + 1, "it is cut")
        assert not receive_until_closed(connection).endswith(b"]")


def check_idle(server: ServerProcess, _: float) -> None:
    assert statuses(ask(server.port, head("GET", "/healthz"))) == [200]


def check_connections(server: ServerProcess, value: float) -> None:
    before = ended(server.http, "refused")
    server.http.close()
    with connections(server.port, int(value)) as busy:
        for connection in busy:
            connection.send(b"G")
        assert b"CONNECTIONS_MAX" in ask(server.port, b"")
    server.http = Client(server.url)
    wait_until(lambda: ended(server.http, "refused") > before, "it was refused")


def check_connection_bytes(server: ServerProcess, value: float) -> None:
    before = ended(server.http, "waited-longest")
    with connections(server.port, 8, receive_buffer_bytes=4096) as mute:
        for connection in mute:
            connection.send(head("GET", "/events?limit=10000"))
        wait_until(lambda: ended(server.http, "waited-longest") > before, "one is cut")
        assert metric(server.http, "sekali_connection_bytes") <= value


def check_pipelined(server: ServerProcess, value: float) -> None:
    request = head("GET", "/nowhere")
    count = int(value) + 1  # one is under way
    assert len(statuses(ask(server.port, request * count))) == count
    assert len(statuses(ask(server.port, request * 100))) == count


def check_header_bytes(server: ServerProcess, value: float) -> None:
    fixed = len("/healthz?" + "host" + "127.0.0.1" + "connection" + "close")
    address = "/healthz?" + "x" * (int(value) - fixed)
    assert statuses(ask(server.port, head("GET", address, "Connection: close"))) == [200]
    assert statuses(ask(server.port, head("GET", address + "x", "Connection: close"))) == [431]
    header = "X: " + "x" * (int(value) - fixed - 1 + len("?"))
    assert statuses(ask(server.port, head("GET", "/healthz", header, "Connection: close"))) == [200]
    assert statuses(ask(server.port, head("GET", "/healthz", header + "x", "Connection: close"))) == [431]


def check_header_count(server: ServerProcess, value: float) -> None:
    more = [f"X{number}: 1" for number in range(int(value) - 1)]
    assert statuses(ask(server.port, head("GET", "/healthz", *more[:-1], "Connection: close"))) == [200]
    assert statuses(ask(server.port, head("GET", "/healthz", *more, "Connection: close"))) == [431]


def padded(value: float) -> bytes:
    text = one_event("limit", "padded")
    return text + b" " * (int(value) - len(text))


def check_body(server: ServerProcess, value: float) -> None:
    assert_within(server.http.publish(padded(value)))
    assert_problem(server.http.publish(padded(value + 1)), 413, "BODY_BYTES_MAX")
    request = head("POST", "/publish", "Transfer-Encoding: chunked", "Connection: close")
    assert statuses(ask(server.port, request + chunked([padded(value)]))) == [200]
    assert statuses(ask(server.port, request + chunked([padded(value), b" "]))) == [413]


def check_undone_body(server: ServerProcess, value: float) -> None:
    for path in ("/publish", "/exists"):
        for size, expected in ((value - 10_000, {200, 422}), (value + 1, {413})):
            body = gzip.compress(padded(size))
            answer = server.http.request("POST", path, body=body, headers={"Content-Encoding": "gzip"})
            assert answer.status in expected, answer
    assert "BODY_BYTES_MAX" in answer.json()["detail"]


def check_members(server: ServerProcess, value: float) -> None:
    body = gzip.compress(padded(1_000)) + gzip.compress(b"") * (int(value) - 1)
    headers = {"Content-Encoding": "gzip"}
    assert_within(server.http.request("POST", "/publish", body=body, headers=headers))
    answer = server.http.request("POST", "/publish", body=body + gzip.compress(b""), headers=headers)
    assert_problem(answer, 413, str(int(value)))


def check_items(server: ServerProcess, value: float) -> None:
    events = [event("limit", f"{number}") for number in range(int(value) + 1)]
    assert_within(server.http.publish(events[:-1]))
    assert_within(server.http.publish_ndjson(b"\n" + ndjson(events[:-1])))
    assert_problem(server.http.publish(events), 413, "BATCH_EVENTS_MAX")
    assert_problem(server.http.publish_ndjson(ndjson(events)), 413, "BATCH_EVENTS_MAX")
    assert_problem(server.http.publish(b"[" + b"0," * int(value) + b"0]"), 413, "BATCH_EVENTS_MAX")


def check_ids(server: ServerProcess, value: float) -> None:
    ids = [f"{number}" for number in range(int(value) + 1)]

    def ask_for(ids: list[str]) -> Response:
        return server.http.request("POST", "/exists", body=json.dumps({"topic": "limit", "event_ids": ids}).encode())

    assert ask_for(ids[:-1]).status == 200
    assert_problem(ask_for(ids), 413, "BATCH_EVENTS_MAX")


def check_queue_bytes(server: ServerProcess, value: float) -> None:
    with RawConnection(server.port) as holder:
        holder.send(post(b"[", length=int(value) - 1_000))
        wait_until(lambda: metric(server.http, "sekali_queue_bytes") == value - 1_000, "they are reserved")
        assert_within(server.http.publish(padded(1_000)))
        assert_problem(server.http.publish(padded(1_001)), 503, "QUEUE_BYTES_MAX")
        body = gzip.compress(padded(950))  # and what it takes as sent: more than 50 bytes
        answer = server.http.request("POST", "/publish", body=body, headers={"Content-Encoding": "gzip"})
        assert_problem(answer, 503, "QUEUE_BYTES_MAX")


def check_queue_events(server: ServerProcess, value: float) -> None:
    server.fault_file.touch()
    try:
        first = server.http.publish([event("limit", f"{n}") for n in range(400)], prefer="respond-async")
        assert first.status == 202
        more = [event("limit", f"more-{n}") for n in range(int(value) - 400 + 1)]
        assert_problem(server.http.publish(more), 503, "QUEUE_EVENTS_MAX")
        assert server.http.publish(more[:-1], prefer="respond-async").status == 202
    finally:
        server.fault_file.unlink()
    wait_until(lambda: metric(server.http, "sekali_queue_events") == 0, "they are committed")


def check_event(server: ServerProcess, value: float) -> None:
    fixed = len("limit" + "event" + event("", "")["timestamp"] + "test") + len('""')
    good = event("limit", "event", payload="x" * (int(value) - fixed))
    assert_invalid(server.http, "", good | {"payload": good["payload"] + "x"}, good)


def check_topic(server: ServerProcess, value: float) -> None:
    assert_invalid(server.http, "topic", event("t" * (int(value) + 1), "1"), event("t" * int(value), "1"))


def check_event_id(server: ServerProcess, value: float) -> None:
    good = [event("limit", "é" * (int(value) // 2)), event("limit", "i" * int(value))]
    assert_invalid(server.http, "event_id", event("limit", "é" * (int(value) // 2) + "i"), *good)


def check_source(server: ServerProcess, value: float) -> None:
    good = event("limit", "source", source="s" * int(value))
    assert_invalid(server.http, "source", good | {"source": "s" * (int(value) + 1)}, good)


def check_source_seq(server: ServerProcess, value: float) -> None:
    largest, smallest = int(value), -int(value) - 1
    assert_invalid(
        server.http,
        "source_seq",
        event("limit", "seq", source_seq=largest + 1),
        event("limit", "seq", source_seq=largest),
    )
    assert_invalid(
        server.http,
        "source_seq",
        event("limit", "seq", source_seq=smallest - 1),
        event("limit", "seq", source_seq=smallest),
    )


def check_timestamp(server: ServerProcess, value: float) -> None:
    good = event("limit", "time", timestamp=f"2026-11-23T00:00:00.{'1' * int(value)}Z")
    assert_invalid(server.http, "timestamp", good | {"timestamp": good["timestamp"].replace("Z", "1Z")}, good)


def check_depth(server: ServerProcess, value: float) -> None:
    def nested(levels: int) -> bytes:
        return one_event("limit", "depth", payload=0).replace(b": 0", b": " + b"[" * levels + b"]" * levels)

    assert_invalid(server.http, "payload", nested(int(value) + 1), nested(int(value)))


def check_number(server: ServerProcess, value: float) -> None:
    good = event("limit", "number", payload=10 ** (int(value) - 1))
    assert_invalid(server.http, "payload", good | {"payload": good["payload"] * 10}, good)


def check_topics(server: ServerProcess, value: float) -> None:
    names = [f"many/{number}" for number in range(int(value))]
    answer = server.http.publish([event(name, "1") for name in names])
    assert "TOPICS_MAX" in answer.json()["results"][-1]["error"]
    assert server.http.stats()["topics_count"] == value
    assert_invalid(server.http, "topic", event("one/more", "1"))


def check_page_events(server: ServerProcess, value: float) -> None:
    for path in ("/events", "/topics", "/sources", "/conflicts"):
        assert server.http.get(path, limit=int(value)).status == 200
        assert_problem(server.http.get(path, limit=int(value) + 1), 422, "limit")


def check_page_bytes(server: ServerProcess, value: float) -> None:
    page = server.http.get("/events", limit=10_000)
    assert value < len(page.data) < value * 1.5 and page.next is not None  # it is counted before it is written as JSON
    assert len(page.json()) < 10_000


def check_errors(server: ServerProcess, value: float) -> None:
    problem = server.http.publish(b"[" + b"0," * 200 + b"0]").json()
    assert len(problem["errors"]) == value and len(problem["results"]) == 201


def put(server: ServerProcess, name: str, **definition: object) -> int:
    body = json.dumps({"topic": "nothing/here"} | definition).encode()
    return server.http.request("PUT", f"/subscriptions/{name}", body=body).status


def check_subscriptions(server: ServerProcess, value: float) -> None:
    names = [f"n{number}" for number in range(int(value) + 1)]
    assert [put(server, name) for name in names] == [201] * int(value) + [409]
    for name in names[:-1]:
        assert server.http.request("DELETE", f"/subscriptions/{name}").status == 204


def form(rest: str, field: str, make: Callable[[float], object] = lambda value: value, **others: object) -> Check:
    """Return the check of a field of a form: as much as may be is taken, and one more is 422 and names it."""

    def check(server: ServerProcess, value: float) -> None:
        assert put(server, "limits", paused=True) in {200, 201}
        try:
            for size, status in ((value, {200, 410}), (value + 1, {422})):
                body = json.dumps(others | {field: make(size)}).encode()
                method = "POST" if rest else "PUT"
                answer = server.http.request(method, f"/subscriptions/limits{rest}", body=body)
                assert answer.status in status, answer
            assert answer.json()["errors"][0]["pointer"] == f"#/{field}"
        finally:
            assert server.http.request("DELETE", "/subscriptions/limits").status == 204

    return check


def check_wait(server: ServerProcess, value: float) -> None:
    """The longest wait is not waited for to its end: there is something to give."""
    assert put(server, "limits", topic="limit", start="earliest") == 201
    for wait, status in ((value, 200), (value + 1, 422)):
        body = json.dumps({"wait": wait}).encode()
        assert server.http.request("POST", "/subscriptions/limits/pull", body=body).status == status
    assert server.http.request("DELETE", "/subscriptions/limits").status == 204


# The store's own rules: tests/contract has the one, for 64 MiB of variants take a while to send, and
# tests/unit/test_sqlite_file.py the other, for a query of ten seconds takes as long. Those of streams are in
# tests/unit/test_feed.py and tests/e2e/test_subscribe.py; what many events or subscriptions come to is in
# tests/unit/test_subscriptions.py, with smaller numbers, and those of webhooks in tests/unit/test_push_*.py.
CHECKED_ELSEWHERE = {
    "requests under way to one endpoint",
    "requests under way to all",
    "`lease_seconds`, the time an endpoint has",
    "the headers of an answer",
    "the body of an answer, which is not looked at",
    "what `Retry-After` may ask for",
    "variants kept for `/conflicts`",
    "the reading of one page",
    "without anything sent on it",
    "what was committed last, for all streams together",
    "what a stream reads by itself at a time",
    "the events of a pull",
    "events of one topic that are given out or to be given again",
    "events of one subscription that are given out or to be given again",
    "dead letters replayed by one request",
    "events counted for `lag`",
    "subscriptions in `/metrics`",
}

CHECKS: dict[str, Check] = {
    "the headers of a request, and the first byte of a new connection": check_headers_late,
    "the body of a request, however it trickles": check_body_late,
    "an answer to be taken, or 64 KiB of it": check_answer_late,
    "a connection without a request": check_idle,
    "connections": check_connections,
    "what waits on all connections: answers not taken, pipelined requests": check_connection_bytes,
    "requests waiting behind one on a connection": check_pipelined,
    "the address and the headers": check_header_bytes,
    "headers": check_header_count,
    "the body, as sent": check_body,
    "the body, without its compression": check_undone_body,
    "members of a gzip body": check_members,
    "items, or lines of NDJSON that are not blank": check_items,
    "ids in one question to `/exists`": check_ids,
    "bytes of bodies held, as sent and without their compression": check_queue_bytes,
    "events accepted and not answered": check_queue_events,
    "the values of an event": check_event,
    "`topic`": check_topic,
    "`event_id`": check_event_id,
    "`source`": check_source,
    "`source_seq`, and its negative less one": check_source_seq,
    "digits of a fraction in `timestamp`": check_timestamp,
    "levels of arrays and objects in `payload`": check_depth,
    "characters of a number in `payload`": check_number,
    "topics in the store": check_topics,
    "events, topics or variants in a page": check_page_events,
    "a page, or a part of a stream": check_page_bytes,
    "places in `errors`": check_errors,
    "subscriptions": check_subscriptions,
    "`max` of a pull, in events": form("/pull", "max"),
    "`wait` of a pull": check_wait,
    "`topics` of a pull": form("/pull", "topics"),
    "`lease_seconds`": form("/pull", "lease_seconds"),
    "`delay` of a nack": form("/nack", "delay", lease="x", seqs=[]),
    "`error` of a nack": form("/nack", "error", lambda size: "x" * int(size), lease="x", seqs=[]),
    "`max_attempts`": form("", "max_attempts", topic="nothing/here"),
    "`seqs` in one request": form("/ack", "seqs", lambda size: [1] * int(size), lease="x"),
}
ALL = [limit for limits in LIMITS.values() for limit in limits]


def test_every_limit_is_checked() -> None:
    assert {limit.what for limit in ALL} == CHECKS.keys() | CHECKED_ELSEWHERE
    limited = {name for name in ServerSettings.model_fields if name.endswith(("_max", "_timeout_s"))}
    of_the_server_alone = {"commit_events_max", "commit_wait_ms_max", "stop_timeout_s"}
    assert {limit.setting for limit in ALL if limit.setting} == limited - of_the_server_alone
    assert {limit.setting for limit in ALL if limit.setting and limit.what in CHECKS} == TIGHT.keys()


@pytest.mark.parametrize("limit", [limit for limit in ALL if limit.what in CHECKS], ids=lambda limit: limit.what)
def test_limit_is_enforced(tight: ServerProcess, limit: Limit) -> None:
    CHECKS[limit.what](tight, limit.value if limit.setting is None else TIGHT[limit.setting])
    assert tight.http.get("/healthz").status == 200
