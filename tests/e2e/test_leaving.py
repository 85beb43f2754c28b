"""Clients that leave at any byte, in order or by a reset: whole batches or nothing, and nothing is left of them."""

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from e2e.conftest import Launch
from e2e.raw import chunked, head, metric, one_event, post, reset, sockets, wait_until_nothing_is_held
from e2e.server import NDJSON, Client, RawConnection, ServerProcess, event, ndjson, verify, wait_until

ITEMS = 3
Leave = Callable[[RawConnection], None]


def finish(connection: RawConnection) -> None:
    connection.socket.close()


LEAVES: dict[str, Leave] = {"close": finish, "reset": reset}


def batch(topic: str, items: int = ITEMS) -> list[dict[str, object]]:
    return [event(topic, f"{number}") for number in range(items)]


def array(topic: str) -> bytes:
    return post(json.dumps(batch(topic)).encode())


def lines(topic: str) -> bytes:
    return post(ndjson(batch(topic)), f"Content-Type: {NDJSON}")


def in_chunks(topic: str) -> bytes:
    body = json.dumps(batch(topic)).encode()
    pieces = [body[start : start + 50] for start in range(0, len(body), 50)]
    return head("POST", "/publish", "Transfer-Encoding: chunked") + chunked(pieces, b"0\r\nX: y\r\n\r\n")


def compressed(topic: str) -> bytes:
    return post(gzip.compress(json.dumps(batch(topic)).encode(), mtime=0), "Content-Encoding: gzip")


def later(topic: str) -> bytes:
    return post(json.dumps(batch(topic)).encode(), "Prefer: respond-async")


FORMS = {"array": array, "lines": lines, "chunks": in_chunks, "gzip": compressed, "later": later}


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("left") / "store.db") as process:
        process.http.publish(event("first", "1"))
        yield process
        assert process.terminate() == 0, process.log[-5:]
        verify(process.db_path)


def stored_by_topic(http: Client, under: str) -> Counter[str]:
    found = [json.loads(line) for line in http.export(topic=f"{under}/**").splitlines()]
    assert len({(one["topic"], one["event_id"]) for one in found}) == len(found)
    return Counter(one["topic"] for one in found)


@pytest.mark.parametrize("leave", LEAVES.values(), ids=LEAVES)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_client_that_leaves_at_any_byte(left: ServerProcess, form: Callable[[str], bytes], leave: Leave) -> None:
    under = f"leave/{form.__name__}/{leave.__name__}"
    wait_until_nothing_is_held(left)
    open_before = sockets(left)
    whole = len(form(f"{under}/0000"))
    for offset in range(whole + 1):
        request = form(f"{under}/{offset:04}")  # gzip may take a few bytes more or fewer
        connection = RawConnection(left.port)
        connection.send(request if offset == whole else request[: min(offset, len(request) - 1)])
        leave(connection)
    wait_until_nothing_is_held(left)
    wait_until(lambda: sockets(left) <= open_before, "no socket is left open")
    found = stored_by_topic(left.http, under)
    taken = found.pop(f"{under}/{whole:04}", 0)
    # The system may throw away what was sent before a reset.
    assert taken == ITEMS or (leave is reset and taken == 0), "a whole request is taken, whoever waits for its answer"
    assert found == {}, "stored before the last byte"
    assert left.http.publish(batch(under)).json()["stored"] == ITEMS


@pytest.mark.parametrize("leave", LEAVES.values(), ids=LEAVES)
def test_client_that_leaves_in_a_large_request(left: ServerProcess, leave: Leave) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    under = f"large/{leave.__name__}"
    items = 2_000
    for number in range(30):
        request = post(json.dumps(batch(f"{under}/{number}", items)).encode())
        connection = RawConnection(left.port)
        connection.send(request[: chance.randrange(len(request))])
        leave(connection)
    connection = RawConnection(left.port)
    connection.send(post(json.dumps(batch(f"{under}/whole", items)).encode()))
    finish(connection)
    wait_until_nothing_is_held(left)
    assert stored_by_topic(left.http, under) == {f"{under}/whole": items}


@pytest.mark.parametrize("leave", LEAVES.values(), ids=LEAVES)
def test_client_that_leaves_before_its_answer(launch: Launch, leave: Leave) -> None:
    """The commit waits, the client does not: what was accepted is stored, and its answer goes nowhere."""
    server = launch(faults="held")
    server.http.publish(event("first", "1"))
    open_before = sockets(server)
    server.fault_file.touch()
    for number in range(20):
        connection = RawConnection(server.port)
        requests = [post(one_event("waits", f"{number}-{part}")) for part in range(3)]
        connection.send(b"".join(requests) + requests[0][:40])
        wait_until(lambda: metric(server.http, "sekali_queue_events") == 3 * (number + 1), "accepted")  # noqa: B023
        leave(connection)
    server.fault_file.unlink()
    wait_until_nothing_is_held(server)
    assert len(server.http.events(topic="waits")) == 60
    wait_until(lambda: sockets(server) <= open_before, "no socket is left open")
    assert server.http.publish(event("after", "1")).status == 200


@pytest.mark.parametrize("leave", LEAVES.values(), ids=LEAVES)
@pytest.mark.parametrize(
    "path", ["/events", "/stats", "/topics", "/sources", "/conflicts", "/metrics", "/exists", "/docs"]
)
def test_reader_that_leaves_at_any_time(left: ServerProcess, path: str, leave: Leave) -> None:
    wait_until_nothing_is_held(left)
    open_before = sockets(left)
    question = json.dumps({"topic": "first", "event_ids": ["1", "2"]}).encode()
    request = post(question, path=path) if path == "/exists" else head("GET", path, f"Accept: {NDJSON}")
    for offset in [*range(0, len(request), 9), len(request)]:
        for read in (False, True):
            connection = RawConnection(left.port, receive_buffer_bytes=4096)
            connection.send(request[:offset])
            if read and offset == len(request):
                assert connection.socket.recv(100).startswith(b"HTTP/1.1 200 ")
            leave(connection)
    wait_until_nothing_is_held(left)
    wait_until(lambda: sockets(left) <= open_before, "no socket is left open")
    assert not [line for line in left.log if line.get("level") == "error"], left.log


def test_sender_of_what_needs_care_leaves(left: ServerProcess) -> None:
    """While its items are looked at one by one, on another thread."""
    body = b"[" + b"[0]," * 5_000 + one_event("care", "1") + b"]"
    for leave in LEAVES.values():
        for _ in range(5):
            connection = RawConnection(left.port)
            connection.send(post(body))
            leave(connection)
    wait_until_nothing_is_held(left)
    assert left.http.publish(event("care", "1")).outcomes == ["duplicate"]
