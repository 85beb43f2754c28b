"""Connections that are slow, silent, too many, or never read: each is ended in its time, and the others are served."""

import json
import resource
import socket
import threading
from collections.abc import Iterator

import pytest

from e2e.conftest import Launch
from e2e.raw import (
    answers,
    ask,
    chunked,
    connections,
    ended,
    head,
    metric,
    one_event,
    post,
    receive_until_closed,
    statuses,
    wait_until_nothing_is_held,
)
from e2e.server import DEADLINE_S, NDJSON, Client, RawConnection, ServerProcess, event, run_sekali, wait_until

MIB = 1024 * 1024
STREAM = head("GET", "/events", f"Accept: {NDJSON}")


ANSWER_TIMEOUT_S = 1.0  # a machine that stands still for less cuts nobody who takes his answer


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose time-outs are short, with 32 MB of events."""
    with ServerProcess(
        tmp_path_factory.mktemp("hasty") / "store.db",
        HEADER_TIMEOUT_S=0.4,
        BODY_TIMEOUT_S=0.4,
        ANSWER_TIMEOUT_S=ANSWER_TIMEOUT_S,
        IDLE_TIMEOUT_S=0.4,
    ) as process:
        for part in range(4):
            events = [event("filled", f"{part}-{number}", payload="x" * 4_000) for number in range(2_000)]
            assert process.http.publish(events).json()["stored"] == 2_000
        yield process
        assert process.running


# Too slow. What is sent at once, what is dripped after it byte by byte, the answers, and the reason counted.

BODY = one_event("slow", "1")
GZIP_NAME = b"\x1f\x8b\x08\x08" + bytes(6)  # a file name without an end follows
SLOW = {
    "nothing": (b"", b"", [408], "headers-late"),
    "half a header": (b"POST /publish HTTP/1.1\r\nHost:", b"", [408], "headers-late"),
    "a header in drips": (b"GET /stats HTTP/1.1\r\nX: ", b"x", [408], "headers-late"),
    "line ends in drips": (b"", b"\r\n", [408], "headers-late"),
    "half a header after a request": (head("GET", "/stats") + b"GET /", b"", [200, 408], "headers-late"),
    "half a body": (post(BODY, length=1_000), b"", [408], "body-late"),
    "a body in drips": (post(BODY, length=9_000), b" ", [408], "body-late"),
    "a body in chunks in drips": (
        head("POST", "/publish", "Transfer-Encoding: chunked"),
        b"1\r\n \r\n",
        [408],
        "body-late",
    ),
    "trailers in drips": (
        head("POST", "/publish", "Transfer-Encoding: chunked") + b"0\r\nX: ",
        b"x",
        [408],
        "body-late",
    ),
    "a compressed body in drips": (post(GZIP_NAME, "Content-Encoding: gzip", length=9_000), b"x", [408], "body-late"),
    "half a question": (post(b'{"topic"', path="/exists", length=900), b"", [408], "body-late"),
    "a question in drips": (post(b'{"topic"', path="/exists", length=9_000), b" ", [408], "body-late"),
    "a body nobody asked for": (head("GET", "/stats", "Content-Length: 900"), b"", [200], "body-late"),
    "a body nobody asked for in drips": (head("GET", "/stats", "Content-Length: 9000"), b" ", [200], "body-late"),
    "a body already refused": (post(b"", length=10**12), b" ", [413], "body-late"),
    "a body in the wrong encoding": (post(b"", "Content-Encoding: br", length=900), b"", [415], "body-late"),
    "a body told to come": (post(b"", "Expect: 100-continue", length=900), b"", [100, 408], "body-late"),
    "half a body after a request": (post(BODY) + post(BODY, length=900), b"", [200, 408], "body-late"),
}


@pytest.mark.parametrize(("sent", "drip", "expected", "reason"), SLOW.values(), ids=SLOW)
def test_slow_request_is_ended(
    hasty: ServerProcess, sent: bytes, drip: bytes, expected: list[int], reason: str
) -> None:
    before = ended(hasty.http, reason)
    with RawConnection(hasty.port) as connection:
        connection.send(sent)
        data = _drip(connection, drip) if drip else receive_until_closed(connection)
    assert statuses(data) == expected, data
    assert ended(hasty.http, reason) == before + 1
    if expected[-1] == 408:
        assert b"connection: close" in data.rpartition(b"HTTP/1.1 408")[2].lower()


def _drip(connection: RawConnection, drip: bytes) -> bytes:
    """Send a little again and again until the server ends the connection, and return what it said."""
    data = b""
    connection.socket.settimeout(0.01)
    for _ in range(10_000):
        try:
            connection.send(drip)
            chunk = connection.socket.recv(65536)
        except TimeoutError:
            continue
        except OSError:
            return data
        if not chunk:
            return data
        data += chunk
    raise AssertionError("it drips for ever")


def test_idle_connection_is_closed(hasty: ServerProcess) -> None:
    assert statuses(ask(hasty.port, head("GET", "/healthz"))) == [200], "and then the end"
    assert statuses(ask(hasty.port, head("GET", "/healthz") + b"\r\n")) == [200], "line ends are no request"
    assert statuses(ask(hasty.port, post(BODY) + b"\r\n\r\n")) == [200]


def test_connection_in_use_is_not_idle(hasty: ServerProcess) -> None:
    """Each request starts the time anew."""
    with RawConnection(hasty.port) as connection:
        for _ in range(5):
            connection.send(head("GET", "/healthz"))
            assert connection.receive_answer().startswith(b"HTTP/1.1 200 ")
            threading.Event().wait(0.2)  # half of the time that a connection may be idle
        assert statuses(receive_until_closed(connection)) == []


def test_slow_client_is_no_burden_to_the_others(hasty: ServerProcess) -> None:
    with connections(hasty.port, 50) as slow:
        for number, connection in enumerate(slow):
            connection.send([b"GET /", post(BODY, length=1_000), STREAM][number % 3])
        for number in range(20):
            assert hasty.http.publish(event("others", f"{number}")).outcomes[0] in {"stored", "duplicate"}
    wait_until_nothing_is_held(hasty)


# Answers that are not taken.


@pytest.mark.parametrize(
    "request_bytes",
    [STREAM, head("GET", "/events?limit=10000"), head("GET", "/events?limit=10000", "Connection: close"), STREAM * 8],
    ids=["stream", "page", "last page", "pipelined"],
)
def test_client_that_never_reads_is_cut(hasty: ServerProcess, request_bytes: bytes) -> None:
    before = ended(hasty.http, "answer-not-taken")
    with RawConnection(hasty.port, receive_buffer_bytes=4096) as connection:
        connection.send(request_bytes)
        wait_until(lambda: ended(hasty.http, "answer-not-taken") == before + 1, "it is cut")
        data = receive_until_closed(connection)
    assert not data.endswith((b"]", b"\r\n0\r\n\r\n")), "a reader takes this for everything"
    wait_until_nothing_is_held(hasty)


def test_client_that_reads_slowly_gets_everything(hasty: ServerProcess) -> None:
    """It takes longer than ANSWER_TIMEOUT_S in all, but takes something within each of it."""
    before = ended(hasty.http, "answer-not-taken")
    with RawConnection(hasty.port, receive_buffer_bytes=64 * 1024) as connection:
        connection.send(head("GET", "/events?limit=10000", "Connection: close"))
        pause = threading.Event()
        size, waited_s = 0, 0.0
        while chunk := connection.socket.recv(256 * 1024):
            size += len(chunk)
            if waited_s < 3 * ANSWER_TIMEOUT_S:
                pause.wait(ANSWER_TIMEOUT_S / 20)
                waited_s += ANSWER_TIMEOUT_S / 20
    assert size > 8 * MIB and waited_s >= 3 * ANSWER_TIMEOUT_S
    assert ended(hasty.http, "answer-not-taken") == before


def test_bytes_that_wait_are_bounded_over_all_connections(launch: Launch) -> None:
    """Thirty clients ask for 8 MiB each and read nothing: who has waited longest is cut, the newest one served."""
    limit = 16 * MIB
    server = launch(CONNECTION_BYTES_MAX=limit)
    for part in range(2):
        server.http.publish([event("filled", f"{part}-{number}", payload="x" * 4_000) for number in range(2_000)])
    server.http.export()
    before = server.resident_bytes
    for ask_for in (STREAM, head("GET", "/events?limit=10000")):
        cut_before = ended(server.http, "waited-longest")
        with connections(server.port, 30, receive_buffer_bytes=4096) as mute:
            for connection in mute:
                connection.send(ask_for)
            wait_until(lambda: ended(server.http, "waited-longest") >= cut_before + 20, "most are cut")  # noqa: B023
            assert 0 < metric(server.http, "sekali_connection_bytes") <= limit
            assert len(server.http.export().splitlines()) == 4_000, "who reads gets everything"
        wait_until_nothing_is_held(server)
    growth = server.resident_bytes_peak - before
    assert growth < 10 * limit, f"{growth:,} bytes, and 30 times 8 MiB wait to be read twice"


def test_pipelined_answers_wait_for_their_turn_within_the_bound(launch: Launch) -> None:
    """Small requests with large answers, behind one that is not answered yet."""
    limit = 16 * MIB
    server = launch(faults="held", CONNECTION_BYTES_MAX=limit)
    invalid = b"[" + b"1," * 4_000 + b"1]"  # 8 KB, whose answer is 260 KB
    behind = [post(invalid)] * 7 + [post(invalid, "Connection: close")]
    server.fault_file.touch()
    with connections(server.port, 12) as senders:
        for number, connection in enumerate(senders):
            connection.send(b"".join([post(one_event("held", f"{number}")), *behind]))
        wait_until(lambda: ended(server.http, "waited-longest") >= 3, "some are cut")
        assert 0 < metric(server.http, "sekali_connection_bytes") <= limit
        server.fault_file.unlink()
        cut = 0
        for connection in senders:
            data = receive_until_closed(connection)
            if data.count(b"HTTP/1.1 ") < 9:
                cut += 1
            else:
                assert statuses(data) == [200] + [422] * 8
    assert 3 <= cut < 12
    wait_until_nothing_is_held(server)
    assert metric(server.http, "sekali_log_events") == 12, "what was accepted is committed, cut or not"


# How many there are.


def test_too_many_connections_get_503(launch: Launch) -> None:
    server = launch(CONNECTIONS_MAX=10, HEADER_TIMEOUT_S=30)
    server.http.close()
    with connections(server.port, 10) as busy:
        for connection in busy:
            connection.send(b"GET /healthz HTTP/1.1\r\nX:")
        for _ in range(3):
            [(status, body)] = answers(ask(server.port, head("GET", "/healthz")))
            assert status == 503 and "CONNECTIONS_MAX" in json.loads(body)["detail"]
        refusal = ask(server.port, b"")
        assert b"\r\nretry-after: " in refusal.lower() and b"\r\nconnection: close" in refusal.lower()
        busy[0].send(b" \r\n\r\n")
        assert busy[0].receive_answer().startswith(b"HTTP/1.1 200 "), "who was there first goes on"
        busy[1].socket.close()
        wait_until(lambda: statuses(ask(server.port, head("GET", "/healthz", "Connection: close"))) == [200], "room")
    http = Client(server.url)
    assert ended(http, "refused") >= 4
    http.close()


def test_idle_connections_give_way_to_new_ones(launch: Launch) -> None:
    server = launch(CONNECTIONS_MAX=10)
    server.http.close()
    healthz = head("GET", "/healthz")

    def is_served(connection: RawConnection, request: bytes = healthz) -> bool:
        connection.send(request)
        return connection.receive_answer().startswith(b"HTTP/1.1 200 ")

    with connections(server.port, 10) as pooled:
        assert all(map(is_served, pooled))
        for _ in range(30):  # so that the second has been idle longest, by more than a tick of the loop's clock
            assert is_served(pooled[0])
        pooled[9].send(b"GET /")  # and this is not idle
        with connections(server.port, 8) as late:
            assert all(map(is_served, late))
            for connection in pooled[1:9]:
                assert receive_until_closed(connection) == b""
            assert is_served(pooled[0]) and is_served(pooled[9], b"healthz HTTP/1.1\r\n\r\n")
            late[0].send(head("GET", "/metrics"))
            assert b'{reason="gave-way"} 8.0' in late[0].receive_answer()


def test_many_half_open_connections_take_little_memory(launch: Launch) -> None:
    """Three hundred of each kind, as large as they may be while they wait."""
    server = launch(HEADER_TIMEOUT_S=60, BODY_TIMEOUT_S=60)
    count = 300
    lines = "\r\n".join(f"a{number:02}: {'x' * 300}" for number in range(95)).encode()
    kinds = {
        "silent": b"",
        "half a header": b"GET / HTTP/1.1\r\n" + lines,
        "half a body": post(b" " * 60_000, length=64_000),
        "half a question": post(b" " * 60_000, path="/exists", length=64_000),
        "a body nobody asked for": head("GET", "/stats", "Content-Length: 300000") + b" " * 250_000,
    }
    for name, sent in kinds.items():
        before = server.resident_bytes
        with connections(server.port, count) as half_open:
            for connection in half_open:
                connection.send(sent)
            wait_until(lambda: metric(server.http, "sekali_connections") == count + 1, f"all are open: {name}")
            each = (server.resident_bytes - before) / count
            assert each < 150_000, f"{name}: {each:,.0f} bytes each"
        wait_until_nothing_is_held(server)
    assert server.http.publish(event("after", "1")).status == 200


# File descriptors.


def test_more_connections_than_files_are_refused_at_start(tmp_path: object) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    result = run_sekali("serve", "--db-path", f"{tmp_path}/store.db", "--connections-max", hard + 1)
    assert result.returncode == 3 and "CONNECTIONS_MAX" in result.stderr and "ulimit -n" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_low_limit_on_files_is_raised(launch: Launch) -> None:
    server = launch(CONNECTIONS_MAX=300, wrapper=("prlimit", "--nofile=128:"))
    assert resource.prlimit(server.pid, resource.RLIMIT_NOFILE)[0] >= 300
    with connections(server.port, 250):
        wait_until(lambda: metric(server.http, "sekali_connections") == 251, "more than 128 are open")


def test_without_file_descriptors_it_waits_and_recovers(launch: Launch) -> None:
    """Somebody takes the process's descriptors away: open connections go on, new ones wait, and it recovers."""
    server = launch()
    server.http.publish(event("files", "1"))
    _, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    with RawConnection(server.port) as early:
        early.send(head("GET", "/healthz"))
        early.receive_answer()
        soft = resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, hard))[0]
        with connections(server.port, 20) as late:
            for connection in late:
                connection.send(head("GET", "/healthz"))
            early.send(post(one_event("files", "2")))
            assert b'"stored":1' in early.receive_answer()
            with pytest.raises(TimeoutError):
                late[0].socket.settimeout(0.3)
                late[0].receive_answer()
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (soft, hard))
    with RawConnection(server.port) as again:
        again.socket.settimeout(DEADLINE_S)
        again.send(head("GET", "/healthz"))
        assert again.receive_answer().startswith(b"HTTP/1.1 200 ")
    assert [one["event_id"] for one in server.http.events(topic="files")] == ["1", "2"]
    assert server.terminate() == 0


# Half-closed: the client has said everything and waits.


@pytest.mark.parametrize(
    "request_bytes", [post(BODY), head("GET", "/stats"), STREAM], ids=["publish", "page", "stream"]
)
def test_client_that_has_closed_its_side_gets_its_answer(hasty: ServerProcess, request_bytes: bytes) -> None:
    data = ask(hasty.port, request_bytes, half_close=True)
    assert data.startswith(b"HTTP/1.1 200 ") and data.endswith((b"}", b"\r\n0\r\n\r\n"))


def test_client_that_closes_its_side_in_a_request_is_let_go(hasty: ServerProcess) -> None:
    for part in (
        b"",
        b"GET /",
        post(BODY, length=1_000),
        head("POST", "/publish", "Transfer-Encoding: chunked") + chunked([b"["], b""),
    ):
        assert ask(hasty.port, part, half_close=True) == b""
    wait_until_nothing_is_held(hasty)


def test_answer_after_the_side_was_closed_waits_for_the_commit(launch: Launch) -> None:
    server = launch(faults="held")
    server.fault_file.touch()
    with RawConnection(server.port) as connection:
        connection.send(post(one_event("half-closed", "1")) + post(one_event("half-closed", "2")))
        wait_until(lambda: metric(server.http, "sekali_queue_events") == 2, "both are accepted")
        connection.socket.shutdown(socket.SHUT_WR)
        server.fault_file.unlink()
        assert statuses(receive_until_closed(connection)) == [200, 200]
