"""More than the server can take: it says 503, keeps what it acknowledged, stays small, and recovers by itself."""

import json
import threading
from collections import Counter

import pytest
import urllib3

from e2e.conftest import Launch
from e2e.server import Client, RawConnection, ServerProcess, event, in_parallel, verify, wait_until

MIB = 1024 * 1024
# Before any load the process takes about 65 MiB, and with this load about 80. The rest leaves room for the byte budget
# of the test (4 MiB) with what is decoded from it, and for the buffers of 60 connections.
MEMORY_BYTES_MAX = 128 * MIB


class Flood:
    """Publishers that do not wait: each sends again at once, whatever the answer was."""

    def __init__(self, http: Client, connections: int, events: int, payload_bytes: int) -> None:
        self.acknowledged: set[str] = set()
        self.statuses: Counter[int] = Counter()
        self.sent_bytes = 0
        self._http = http
        self._events, self._payload = events, "x" * payload_bytes
        self._stop = threading.Event()
        self._adding = threading.Lock()
        self._failures: list[str] = []
        self._threads = [threading.Thread(target=self._publish, args=(number,)) for number in range(connections)]
        for thread in self._threads:
            thread.start()

    def _publish(self, connection: int) -> None:
        request = 0
        while not self._stop.is_set():
            ids = [f"{connection}-{request}-{item}" for item in range(self._events)]
            request += 1
            body = json.dumps([event("flood", event_id, payload=self._payload) for event_id in ids]).encode()
            try:
                answer = self._http.publish(body)
            except urllib3.exceptions.HTTPError as error:
                with self._adding:
                    self._failures.append(repr(error))
                return
            with self._adding:
                self.statuses[answer.status] += 1
                self.sent_bytes += len(body)
                if answer.status == 200:
                    self.acknowledged.update(ids)
                    if set(answer.outcomes) != {"stored"}:
                        self._failures.append(f"{answer}")
                elif not 1 <= int(answer.headers.get("Retry-After", 0)) <= 5:
                    self._failures.append(f"without a good Retry-After: {answer}")

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert self._failures == []


def _stored(http: Client) -> set[str]:
    ids = [json.loads(line)["event_id"] for line in http.export().splitlines()]
    assert len(ids) == len(set(ids))
    return set(ids)


@pytest.mark.parametrize(
    ("limit", "settings"),
    [
        ("QUEUE_EVENTS_MAX", {"QUEUE_EVENTS_MAX": 200, "BATCH_EVENTS_MAX": 100}),
        ("QUEUE_BYTES_MAX", {"QUEUE_BYTES_MAX": 4 * MIB, "BODY_BYTES_MAX": 2 * MIB}),
    ],
)
def test_flood_over_a_slow_disk(launch: Launch, limit: str, settings: dict[str, int]) -> None:
    server = launch(faults="slow", **settings)
    http = Client(server.url, connections=60)  # one each: a pool has no queue
    server.fault_file.touch()
    flood = Flood(http, connections=60, events=20, payload_bytes=10_000)

    def enough() -> bool:
        return flood.statuses[503] >= 300 and flood.statuses[200] >= 50 and flood.sent_bytes > MEMORY_BYTES_MAX

    try:
        wait_until(enough, f"answers of both kinds: {flood.statuses}", timeout_s=60)
        assert server.http.get("/events", limit=1).status == server.http.get("/stats").status == 200, "reads go on"
    finally:
        flood.end()
    http.close()
    peak = server.resident_bytes_peak
    assert set(flood.statuses) == {200, 503}
    assert flood.sent_bytes > MEMORY_BYTES_MAX, "too little was sent to fill a memory that is not bounded"
    assert peak < MEMORY_BYTES_MAX, f"{peak:,} bytes"
    server.fault_file.unlink()
    wait_until(lambda: server.http.stats()["queue_depth"] == 0, "what was accepted is committed")
    for number in range(20):
        assert server.http.publish(event("after", f"{number}")).status == 200
    assert server.http.get("/healthz").status == 200
    assert flood.acknowledged <= _stored(server.http), "something acknowledged is missing"
    answer = _refusal(server, limit)
    assert limit in answer, "the limit is named"
    assert server.terminate() == 0
    verify(server.db_path)


def _refusal(server: ServerProcess, limit: str) -> str:
    """Fill the queue while commits are slow, and return what the next publisher is told."""
    server.fault_file.touch()
    details: list[str] = []

    def publish(number: int) -> None:
        events = [
            event(f"full/{number}", f"{n}", payload="x" * (15_000 if "BYTES" in limit else 10)) for n in range(100)
        ]
        answer = server.http.publish(events)
        assert answer.status in {200, 503}
        if answer.status == 503:
            details.append(answer.json()["detail"])

    in_parallel(8, publish)
    server.fault_file.unlink()
    assert details, "nobody was refused"
    return details[0]


def test_refused_request_takes_nothing(launch: Launch) -> None:
    """What is refused because the queue is full is not stored, not in part, not later."""
    server = launch(faults="held", QUEUE_EVENTS_MAX=10, BATCH_EVENTS_MAX=10)
    server.fault_file.touch()
    assert server.http.publish([event("full", f"{n}") for n in range(8)], prefer="respond-async").status == 202
    for prefer in (None, "respond-async", "handling=strict"):
        answer = server.http.publish([event("full", f"refused-{n}") for n in range(3)], prefer=prefer)
        assert answer.status == 503 and "QUEUE_EVENTS_MAX" in answer.json()["detail"]
        assert 1 <= int(answer.headers["Retry-After"]) <= 5
    assert server.http.publish([event("full", f"fits-{n}") for n in range(2)], prefer="respond-async").status == 202
    server.fault_file.unlink()
    wait_until(lambda: server.http.stats()["queue_depth"] == 0, "everything is committed")
    assert _stored(server.http) == {f"{n}" for n in range(8)} | {"fits-0", "fits-1"}


def test_body_over_the_byte_budget_is_refused_before_it_is_read(launch: Launch) -> None:
    """The answer comes while not one byte of the body has been sent, and the bytes come back to the budget."""
    server = launch(QUEUE_BYTES_MAX=10_000, BODY_BYTES_MAX=10_000, EVENT_BYTES_MAX=10_000)

    def head(length: int) -> bytes:
        return f"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()

    text = json.dumps([event("budget", "1")]).encode()
    first = text + b" " * (9_000 - len(text))
    with RawConnection(server.port) as holder:
        holder.send(head(len(first)) + first[:10])  # 9,000 bytes are reserved
        wait_until(lambda: b"sekali_queue_bytes 9000.0" in server.http.get("/metrics").data, "the bytes are reserved")
        with RawConnection(server.port) as refused:
            refused.send(head(1_001))
            answer = refused.receive_answer()
        assert answer.startswith(b"HTTP/1.1 503 ") and b"QUEUE_BYTES_MAX" in answer
        assert b"retry-after: " in answer.lower()
        small = json.dumps(event("budget", "2")).encode()
        assert server.http.publish(small).status == 200, "what fits is taken"
        with RawConnection(server.port) as chunked:  # a body that does not say its length is refused while it comes
            chunked.send(b"POST /publish HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            chunked.send(b"7d0\r\n" + b" " * 2_000 + b"\r\n")
            assert chunked.receive_answer().startswith(b"HTTP/1.1 503 ")
        holder.send(first[10:])
        assert b'"stored":1' in holder.receive_answer()
    wait_until(lambda: b"sekali_queue_bytes 0.0" in server.http.get("/metrics").data, "all bytes are given back")
    assert server.http.publish(first).outcomes == ["duplicate"]


def test_bytes_of_publishers_that_leave_are_given_back(launch: Launch) -> None:
    server = launch(QUEUE_BYTES_MAX=10_000, BODY_BYTES_MAX=10_000, EVENT_BYTES_MAX=10_000)
    for _ in range(5):
        with RawConnection(server.port) as connection:
            connection.send(b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n[")
            wait_until(lambda: b"sekali_queue_bytes 9000.0" in server.http.get("/metrics").data, "it is read")
        wait_until(lambda: b"sekali_queue_bytes 0.0" in server.http.get("/metrics").data, "the bytes are given back")
    assert server.http.publish(event("left", "1")).status == 200


def test_answers_that_are_not_read_do_not_stop_the_others(launch: Launch) -> None:
    """One that pipelines requests and reads nothing back: memory stays bounded, and others are served."""
    server = launch()
    body = json.dumps([event("mute", f"{n}") for n in range(1000)]).encode()
    request = b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with RawConnection(server.port, receive_buffer_bytes=4096) as mute:
        mute.socket.settimeout(1)
        sent = 0
        try:
            while sent < 400 * MIB:
                mute.socket.sendall(request)
                sent += len(request)
        except TimeoutError:
            pass
        assert sent < 400 * MIB, "the server reads on while its answers are not taken"
        assert server.http.publish(event("mute", "other")).status == 200
        peak = server.resident_bytes_peak
        assert peak < MEMORY_BYTES_MAX, f"{peak:,} bytes"
