"""Compressed bodies: as good as plain ones, and no way around the limits."""

import gzip
import json
import threading
from itertools import count

import pytest

from e2e.conftest import Launch
from e2e.raw import answers, ask, chunked, head, metric, one_event, post, reset, wait_until_nothing_is_held
from e2e.server import NDJSON, Client, RawConnection, Response, ServerProcess, event, in_parallel, ndjson, wait_until

MIB = 1024 * 1024
_numbers = count(1)


@pytest.fixture
def topic() -> str:
    return f"gzip/{next(_numbers)}"


def send(http: Client, body: bytes, path: str = "/publish", **headers: str) -> Response:
    return http.request("POST", path, body=body, headers={"Content-Encoding": "gzip"} | headers)


def test_every_form_is_read(http: Client, server: ServerProcess, topic: str) -> None:
    events = [event(topic, f"{number}") for number in range(5)]
    assert send(http, gzip.compress(json.dumps(events[0]).encode())).outcomes == ["stored"]
    assert send(http, gzip.compress(json.dumps(events[:2]).encode())).outcomes == ["duplicate", "stored"]
    lines = send(http, gzip.compress(ndjson(events[:3])), **{"Content-Type": NDJSON})
    assert lines.outcomes == ["duplicate", "duplicate", "stored"]
    body = json.dumps(events[:4]).encode()
    members = gzip.compress(body[:50]) + gzip.compress(b"") + gzip.compress(body[50:])
    assert send(http, members, **{"Content-Encoding": "X-GZIP"}).outcomes == ["duplicate"] * 3 + ["stored"]
    compressed = gzip.compress(json.dumps(events).encode())
    pieces = [compressed[start : start + 7] for start in range(0, len(compressed), 7)]
    request = head("POST", "/publish", "Content-Encoding: gzip", "Transfer-Encoding: chunked", "Connection: close")
    [(status, answer)] = answers(ask(server.port, request + chunked(pieces)))
    assert status == 200 and json.loads(answer)["stored"] == 1
    assert [one["event_id"] for one in http.events(topic=topic)] == [f"{number}" for number in range(5)]


def test_bad_items_cost_their_neighbours_nothing(http: Client, topic: str) -> None:
    body = b"[%b, {}, %b]" % (one_event(topic, "1"), one_event(topic, "2"))
    assert send(http, gzip.compress(body)).outcomes == ["stored", "invalid", "stored"]
    assert send(http, gzip.compress(body), Prefer="handling=strict").status == 422
    later = send(http, gzip.compress(b"[%b]" % one_event(topic, "3")), Prefer="respond-async")
    assert later.status == 202
    wait_until(lambda: len(http.events(topic=topic)) == 3, "what was accepted is stored")


def test_large_body(http: Client, topic: str) -> None:
    events = [event(topic, f"{number}", payload="x" * 950) for number in range(9_000)]
    body = json.dumps(events).encode()
    compressed = gzip.compress(body)
    assert len(body) > 9 * MIB and len(compressed) < MIB
    assert send(http, compressed).json()["stored"] == 9_000
    assert send(http, gzip.compress(ndjson(events)), **{"Content-Type": NDJSON}).json()["duplicate"] == 9_000


def test_exists_reads_them_too(http: Client, topic: str) -> None:
    http.publish(event(topic, "1"))
    question = json.dumps({"topic": topic, "event_ids": ["1", "2"]}).encode()
    assert send(http, gzip.compress(question), "/exists").json() == {"missing": ["2"]}
    assert send(http, gzip.compress(question[:9]) + gzip.compress(question[9:]), "/exists").json() == {"missing": ["2"]}


GOOD = gzip.compress(b"[]" + b" " * 5_000)
BAD = {
    "plain": b"[]",
    "empty": b"",
    "cut": GOOD[:-1],
    "cut in its head": GOOD[:5],
    "wrong checksum": GOOD[:-8] + b"\0" + GOOD[-7:],
    "something behind it": GOOD + b"[]",
    "padded": GOOD + bytes(10),
    "gzip in gzip": gzip.compress(GOOD),
    "not JSON": gzip.compress(b"{"),
    "not UTF-8": gzip.compress(b'{"topic": "\xff"}'),
}


@pytest.mark.parametrize("path", ["/publish", "/exists"])
@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_what_is_not_gzip_is_400(http: Client, server: ServerProcess, path: str, body: bytes) -> None:
    answer = send(http, body, path)
    assert answer.status == 400 and answer.json()["type"].endswith(":not-json"), answer
    assert http.get("/healthz").status == 200


@pytest.mark.parametrize("path", ["/publish", "/exists"])
@pytest.mark.parametrize("encoding", ["deflate", "zstd", "br", "gzip, gzip"])
def test_unknown_encoding_is_415_on_every_route(http: Client, path: str, encoding: str) -> None:
    answer = send(http, GOOD, path, **{"Content-Encoding": encoding})
    assert answer.status == 415 and answer.headers["Accept-Encoding"] == "gzip, identity"


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A body of 100 KB that stands for 100 MiB, of one JSON string."""
    return gzip.compress(b'["' + b"x" * (100 * MIB) + b'"]')


@pytest.mark.parametrize("path", ["/publish", "/exists"])
def test_bomb_is_413(http: Client, bomb: bytes, path: str) -> None:
    assert len(bomb) < MIB // 4
    answer = send(http, bomb, path)
    assert answer.status == 413 and "BODY_BYTES_MAX" in answer.json()["detail"]


def test_bombs_take_no_more_than_the_budget(launch: Launch, bomb: bytes) -> None:
    """Twenty at once, again and again, beside a usual publisher: memory grows by the budget and no more."""
    budget = 16 * MIB
    server = launch(QUEUE_BYTES_MAX=budget)
    send(server.http, bomb)
    before = server.resident_bytes
    statuses: set[int] = set()
    stop = threading.Event()
    http = Client(server.url)

    def explode(_: int) -> None:
        for _ in range(5):
            statuses.add(send(http, bomb).status)

    def publish_all() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            assert server.http.publish(event("usual", f"{number}")).status in {200, 503}

    usual = threading.Thread(target=publish_all)
    usual.start()
    try:
        in_parallel(20, explode)
    finally:
        stop.set()
        usual.join()
        http.close()
    assert statuses == {413, 503}, "some were undone as far as the limit, for others there was no room"
    growth = server.resident_bytes_peak - before
    # The budget twice: what is undone, and memory that was given back and is not used again yet.
    assert growth < 2 * budget, f"{growth:,} bytes; undone they are {2_000 * MIB:,}"
    assert len(server.http.events(topic="usual")) > 0
    wait_until_nothing_is_held(server)


def test_nested_bomb_is_refused_and_small(launch: Launch) -> None:
    """Ten thousand times more brackets than may be nested, in a few kilobytes."""
    server = launch()
    text = one_event("nested", "1", payload=0).replace(b": 0", b": " + b"[" * 5_000_000 + b"]" * 5_000_000)
    assert send(server.http, gzip.compress(text)).status == 422
    before = server.resident_bytes
    for _ in range(5):
        answer = send(server.http, gzip.compress(b"[%b,%b]" % (text, one_event("nested", "2"))))
        assert answer.outcomes[0] == "invalid" and answer.outcomes[1] != "invalid"
    growth = server.resident_bytes_peak - before
    assert growth < 64 * MIB, f"{growth:,} bytes"


def test_client_that_leaves_while_its_body_is_undone(launch: Launch, bomb: bytes) -> None:
    server = launch()
    request = post(bomb, "Content-Encoding: gzip")
    for end in (len(request) // 2, len(request) - 1, len(request)):
        for leave in (reset, lambda connection: connection.socket.close()):
            connection = RawConnection(server.port)
            connection.send(request[:end])
            leave(connection)
    wait_until_nothing_is_held(server)
    assert server.http.publish(event("after", "1")).status == 200
    assert metric(server.http, "sekali_log_events") == 1
