"""What falls into a pause of the machine does not count, and a connection that it cost is made anew."""

import json
import socket
import threading
import time
from contextlib import suppress

import pytest

from sekali.bench.children import BenchFailed, run_load
from sekali.bench.job import Job
from sekali.bench.pauses import PAUSE_S, Clock, PauseWatch


def test_a_clock_that_is_looked_at_leaves_out_pauses() -> None:
    raw_s = 100.0
    clock = Clock(lambda: raw_s)
    raw_s += 0.5
    assert clock.now_s() == pytest.approx(100.5)
    raw_s += 20
    assert clock.now_s() == pytest.approx(100.5) and clock.paused_s == pytest.approx(20)
    raw_s += 0.25
    assert clock.now_s() == pytest.approx(100.75)
    raw_s += 5
    clock.skip()
    assert clock.now_s() == pytest.approx(105.75), "time spent on purpose is no pause"


def test_a_span_is_measured_without_the_pauses_in_it() -> None:
    watch = PauseWatch()
    now_s = time.perf_counter()
    watch.pauses = [(now_s - 200, now_s - 150), (now_s - 90, now_s - 60), (now_s - 20, now_s - 10)]
    assert watch.since_s(now_s - 100) == pytest.approx(60, abs=0.5)
    assert watch.since_s(now_s - 70) == pytest.approx(50, abs=0.5)
    assert watch.since_s(now_s - PAUSE_S / 2) >= PAUSE_S / 2


def serve(listener: socket.socket, closings: int) -> None:
    """Close so many connections unanswered, then answer one request a connection, and close it after that."""
    body = json.dumps(
        {"received": 1, "stored": 1, "duplicate": 0, "conflict": 0, "invalid": 0, "results": [{"seq": 1}]}
    )
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body.replace(' ', ''))}\r\n\r\n"
    while True:
        try:
            peer = listener.accept()[0]
        except OSError:
            return
        if closings:
            closings -= 1
            peer.close()
            continue
        with peer, suppress(ConnectionError):
            if peer.recv(65536):
                peer.sendall((head + body.replace(" ", "")).encode())


@pytest.mark.parametrize(("closings", "fails"), [(3, False), (1000, True)])
def test_a_connection_that_was_closed_is_made_anew_but_not_for_ever(closings: int, fails: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener, closings), daemon=True)
        thread.start()
        job = Job(port=listener.getsockname()[1], batch=1, connections=1, events_max=5, seconds=20, dup_ratio=0)
        if fails:
            with pytest.raises(BenchFailed, match="closed a connection"):
                run_load(job)
        else:
            result = run_load(job)
            assert (result.stored, result.events) == (5, 5) and result.reconnects >= 5
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
