"""The load generator's events, streams and checks: what a benchmark says rests on them."""

import json
import socket
import threading
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import pytest

from sekali.bench.arrivals import Arrivals, summarize
from sekali.bench.children import BenchFailed, canned_server, run_load
from sekali.bench.events import EVENT_BYTES, EventMaker, IdKind
from sekali.bench.job import Job, Latency, LoadResult
from sekali.bench.loaded import require_right
from sekali.bench.stream import Requests, Stream


@pytest.mark.parametrize("id_kind", IdKind)
def test_an_event_is_a_function_of_seed_and_number(id_kind: IdKind) -> None:
    numbers = np.array([7, 3, 1_000_000, 3])
    one, same, other = EventMaker(1, id_kind), EventMaker(1, id_kind), EventMaker(2, id_kind)
    assert one.columns(numbers) == same.columns(numbers)
    assert one.columns(numbers).event_ids[1] == one.columns(numbers).event_ids[3]
    assert not set(one.columns(numbers).event_ids) & set(other.columns(numbers).event_ids)


@pytest.mark.parametrize(("id_kind", "version"), [(IdKind.UUID7, "7"), (IdKind.UUID4, "4")])
def test_ids_are_different_and_of_their_version(id_kind: IdKind, version: str) -> None:
    ids = EventMaker(1, id_kind).columns(np.arange(50_000)).event_ids
    assert len(set(ids)) == len(ids)
    assert {(one[14], one[19] in "89ab") for one in ids} == {(version, True)}
    if id_kind is IdKind.UUID7:
        assert [one[:13] for one in ids] == sorted(one[:13] for one in ids)


@pytest.mark.parametrize("batch", [1, 500])
def test_requests_hold_the_events_that_columns_gives(batch: int) -> None:
    maker = EventMaker(5, IdKind.UUID4)
    stream = Stream(chunk_events=500, dup_ratio=0.2, dup_window=1000)
    requests = list(Requests(maker, stream, batch=batch, chunks=3, host="h").some())
    assert len(requests) == 1500 // batch
    sent: list[dict[str, Any]] = []
    for request in requests:
        head, _, body = bytes(request.data).partition(b"\r\n\r\n")
        assert head.startswith(b"POST /publish HTTP/1.1\r\nHost: h\r\n") and b"Content-Length: %d" % len(body) in head
        sent += [json.loads(body)] if batch == 1 else json.loads(body)
    replay = Stream(chunk_events=500, dup_ratio=0.2, dup_window=1000)
    numbers = np.concatenate([replay.chunk() for _ in range(3)])
    columns = maker.columns(numbers)
    assert [(event["topic"], event["event_id"]) for event in sent] == maker.identities(numbers)
    assert [event["payload"] for event in sent] == [json.loads(payload) for payload in columns.payloads]
    times_s = [datetime.fromisoformat(event["timestamp"]).timestamp() for event in sent]
    assert times_s == pytest.approx([time_ns / 1e9 for time_ns in columns.timestamps_ns], abs=1e-6, rel=0)
    highest = [int(numbers[: (place + 1) * batch].max()) + 1 for place in range(len(requests))]
    assert [request.next_new for request in requests] == highest


def test_payloads_are_json_of_one_width() -> None:
    payloads = EventMaker(1, IdKind.UUID4).columns(np.arange(5000)).payloads
    assert {len(payload) for payload in payloads} == {len(payloads[0])}
    assert all(set(json.loads(payload)) == {"level", "status", "ms", "order"} for payload in payloads)
    assert 185 <= EVENT_BYTES <= 195


@pytest.mark.parametrize("dup_window", [100, None])
def test_a_stream_repeats_exactly_its_share_and_only_what_it_sent(dup_window: int | None) -> None:
    stream = Stream(chunk_events=50, dup_ratio=0.2, dup_window=dup_window, start=1000)
    next_new = 1000
    for _ in range(40):
        numbers = stream.chunk()
        new = numbers[numbers >= next_new]
        repeats = numbers[numbers < next_new]
        assert new.tolist() == list(range(next_new, next_new + 40)) and len(repeats) == 10
        assert repeats.min() >= (0 if dup_window is None else next_new - dup_window)
        next_new = stream.next


def test_what_was_never_sent_is_not_repeated() -> None:
    stream = Stream(chunk_events=50, dup_ratio=0.2, dup_window=100, start=1000, oldest=1000)
    assert stream.chunk().tolist() == list(range(1000, 1050))
    assert stream.chunk().min() >= 1000


def test_the_first_events_of_all_cannot_be_repeats() -> None:
    assert Stream(chunk_events=10, dup_ratio=0.5, dup_window=5).chunk().tolist() == list(range(10))


def test_arrivals_come_at_their_rate_and_in_order() -> None:
    arrivals = Arrivals(1000.0, seed=1)
    arrivals.start(5.0)
    due_s = []
    for _ in range(20_000):
        due_s.append(arrivals.next_s)
        arrivals.advance()
    assert due_s == sorted(due_s) and due_s[0] > 5.0
    assert due_s[-1] - 5.0 == pytest.approx(20.0, rel=0.05)


def test_latencies_are_summed_up() -> None:
    latency = summarize(np.array([0.1, 0.9, 2.5]), np.array([1.0, 3.0, 2.0]))
    assert (latency.p50, latency.max, latency.max_by_second) == (2.0, 3.0, [3.0, 0.0, 2.0])
    assert summarize(np.empty(0), np.empty(0)) == Latency()


def result_of(**changes: Any) -> LoadResult:
    right = LoadResult(
        requests=10,
        events=100,
        unique=80,
        stored=80,
        duplicate=20,
        conflict=0,
        invalid=0,
        refused=0,
        body_bytes=20_000,
        window_s=1.0,
        window_events=100,
        generator_cpu_s=0.1,
        server_cpu_s=0.1,
        latency_ms=Latency(),
        samples=[],
    )
    return msgspec.structs.replace(right, **changes)


def test_a_server_that_is_right_passes() -> None:
    require_right(result_of(), 5, {"unique_processed": 85})


@pytest.mark.parametrize(
    ("changes", "unique_processed"),
    [
        ({"stored": 79, "duplicate": 21}, 80),
        ({"duplicate": 19}, 80),
        ({"conflict": 1}, 80),
        ({"invalid": 1}, 80),
        ({}, 79),
    ],
)
def test_a_server_that_is_wrong_fails_the_benchmark(changes: dict[str, int], unique_processed: int) -> None:
    with pytest.raises(BenchFailed, match="the server is wrong"):
        require_right(result_of(**changes), 0, {"unique_processed": unique_processed})


@pytest.mark.parametrize(("batch", "rate"), [(500, None), (1, None), (1, 2000.0)])
def test_the_generator_sends_and_counts_every_request_once(batch: int, rate: float | None) -> None:
    with canned_server(batch) as port:
        job = Job(
            port=port, batch=batch, connections=4, rate=rate, events_max=20 * batch, seconds=30, warmup_s=0, dup_ratio=0
        )
        result = run_load(job)
    assert (result.requests, result.events, result.unique, result.stored) == (20, 20 * batch, 20 * batch, 20 * batch)
    assert result.window_events == result.events and result.rate > 0
    assert result.latency_ms.p50 > 0


def test_a_wrong_answer_ends_the_load() -> None:
    def answer(listener: socket.socket) -> None:
        peer = listener.accept()[0]
        with peer:
            peer.recv(65536)
            peer.sendall(b"HTTP/1.1 422 Unprocessable Content\r\ncontent-length: 4\r\n\r\nnope")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        with pytest.raises(BenchFailed, match="an answer is 422: nope"):
            run_load(Job(port=listener.getsockname()[1], batch=1, connections=1, events_max=1, seconds=5))
        thread.join()
