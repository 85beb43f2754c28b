"""The load generator, a process of its own: ``python -m sekali.bench.load`` with a ``Job`` on standard input.

Non-blocking sockets and epoll; each connection has one request outstanding. Requests are made ahead by numpy while no
answer waits. One line of JSON a progress on standard output, the last one the ``LoadResult``.
"""

import gc
import re
import select
import sys
import time
from array import array
from collections import Counter, deque

import msgspec
import numpy as np
from numpy.typing import NDArray

from sekali.bench import proc
from sekali.bench.arrivals import Arrivals, summarize
from sekali.bench.connection import Connection, open_socket
from sekali.bench.events import EVENT_BYTES, EventMaker
from sekali.bench.job import DRAIN_S, Job, LoadResult, Sample
from sekali.bench.pauses import Clock
from sekali.bench.stream import Request, Requests, Stream

SAMPLE_EVERY_S = 0.25
MADE_AHEAD_BYTES_MAX = 64 * 1024 * 1024
RETRY_S = 0.02
SINGLES_PER_CHUNK = 500
RECONNECTS_MAX = 20  # times the number of connections
_HEAD = re.compile(rb"HTTP/1\.1 (\d\d\d).*?\r\ncontent-length: (\d+)(?:\r\n[^\r]+)*\r\n\r\n", re.DOTALL | re.IGNORECASE)
_COUNTS = re.compile(rb'\{"received":\d+,"stored":(\d+),"duplicate":(\d+),"conflict":(\d+),"invalid":(\d+)')
_COUNTS_BYTES_MAX = 120
_RECEIVE_BYTES = 256 * 1024
Floats = NDArray[np.float64]


class LoadFailed(Exception):
    """The load cannot go on, or an answer is not what it must be."""


class Load:
    """One run of a ``Job``."""

    def __init__(self, job: Job) -> None:
        self._job = job
        chunk_events = SINGLES_PER_CHUNK if job.batch == 1 else job.batch
        self._stream = Stream(
            chunk_events=chunk_events,
            dup_ratio=job.dup_ratio,
            dup_window=job.dup_window,
            start=job.start,
            oldest=job.oldest,
            seed=job.seed,
        )
        self._requests = Requests(
            EventMaker(job.seed, job.id_kind),
            self._stream,
            batch=job.batch,
            chunks=1 if job.batch == 1 else 8,
            host=job.host,
        )
        self._arrivals = None if job.rate is None else Arrivals(job.rate / job.batch, job.seed)
        self._made: deque[Request] = deque()
        self._idle: deque[Connection] = deque()
        self._retries: deque[tuple[float, Connection]] = deque()
        self._poll = select.epoll()
        self._by_descriptor: dict[int, Connection] = {}
        self._started = 0  # requests
        self._next_new = job.start  # the number of the first new event not yet sent
        self._answered = 0
        self._counts: Counter[str] = Counter()
        self._refusal = ""
        self._answered_at_s, self._latencies_s = array("d"), array("d")
        self._samples: list[Sample] = []
        self._clock = Clock()
        self._reconnects = 0
        self._marks: list[tuple[float, int, float, float]] = []  # time, requests answered, own and server's CPU time

    def run(self) -> LoadResult:
        """Do it. What goes wrong is in the result."""
        failure = None
        self._connect()
        self._make_ahead()
        gc.disable()
        self._clock.skip()
        self._begun_s = self._clock.now_s()
        self._window_s = self._begun_s + self._job.warmup_s
        self._end_s = self._window_s + self._job.seconds
        if self._arrivals is not None:
            self._arrivals.start(self._begun_s)
        try:
            self._loop()
        except (LoadFailed, OSError) as error:
            failure = str(error)
        return self._result(failure)

    def _connect(self) -> None:
        for _ in range(self._job.connections):
            connection = Connection(open_socket(self._job.host, self._job.port))
            self._watch(connection)
            self._idle.append(connection)

    def _watch(self, connection: Connection) -> None:
        self._by_descriptor[connection.socket.fileno()] = connection
        self._poll.register(connection.socket, select.EPOLLIN)

    def _reconnect(self, connection: Connection) -> None:
        """Go on with another socket: servers close connections that were idle for long, as in a pause."""
        self._reconnects += 1
        if connection.within_answer or self._reconnects > RECONNECTS_MAX * self._job.connections:
            raise LoadFailed("the server closed a connection")
        del self._by_descriptor[connection.socket.fileno()]
        self._poll.unregister(connection.socket)
        connection.socket.close()
        connection.socket, connection.waits_to_send = open_socket(self._job.host, self._job.port), False
        self._watch(connection)
        if connection.awaits:  # sending again is safe; were the answer lost and not the request, the counts would tell
            connection.unsent = connection.request
            self._send(connection)

    def _loop(self) -> None:
        next_sample_s = self._begun_s
        borders_s = (self._window_s, self._end_s)
        while True:
            now_s = self._clock.now_s()
            if len(self._marks) < len(borders_s) and now_s >= borders_s[len(self._marks)]:
                self._mark(now_s)
            if now_s >= next_sample_s:
                next_sample_s = now_s + SAMPLE_EVERY_S
                self._sample(now_s)
            sending_ended = self._start(now_s)
            if sending_ended and len(self._idle) == self._job.connections:
                break
            if now_s > self._end_s + DRAIN_S:
                raise LoadFailed(f"not all was taken within {DRAIN_S:g} s; the last 503: {self._refusal or 'none'}")
            self._wait(now_s, sending_ended=sending_ended)
        self._mark(self._clock.now_s())

    def _start(self, now_s: float) -> bool:
        """Send on the connections that are free, what is due; return whether there is nothing more to send."""
        while self._retries and self._retries[0][0] <= now_s:
            self._send(self._retries.popleft()[1])
        if self._arrivals is None:
            if now_s >= self._end_s or self._enough():
                return True
            while self._idle and not self._enough():
                self._begin(self._clock.now_s())
            return False
        while self._idle and (due_s := self._arrivals.next_s) <= now_s and due_s < self._end_s and not self._enough():
            self._arrivals.advance()
            self._begin(due_s)
        return self._arrivals.next_s >= self._end_s or self._enough()

    def _enough(self) -> bool:
        return self._job.events_max is not None and self._started * self._job.batch >= self._job.events_max

    def _begin(self, due_s: float) -> None:
        if not self._made:
            self._make()
        connection = self._idle.popleft()  # in turn, so that none is idle for long
        connection.request, self._next_new = self._made.popleft()
        connection.unsent = connection.request
        connection.due_s = due_s
        self._started += 1
        self._send(connection)

    def _make(self) -> None:
        self._made.extend(self._requests.some())

    def _make_ahead(self) -> None:
        """Make the first requests; of an open loop many, because making them later would delay those that are due."""
        job = self._job
        wanted = 0.0
        if job.rate is not None:
            wanted = min(job.rate * (job.warmup_s + job.seconds) * 1.05, MADE_AHEAD_BYTES_MAX / EVENT_BYTES)
        self._make()
        while len(self._made) * job.batch < min(wanted, job.events_max or wanted):
            self._make()

    def _wait(self, now_s: float, *, sending_ended: bool) -> None:
        """Handle what the sockets have. While there is nothing, requests are made ahead."""
        ready = self._poll.poll(0)
        if not ready and not sending_ended and len(self._made) < 2 * self._job.connections:
            self._make()
            ready = self._poll.poll(0)
        if not ready:
            wake_s = now_s + SAMPLE_EVERY_S
            if self._retries:
                wake_s = min(wake_s, self._retries[0][0])
            if self._arrivals is not None and self._idle and not sending_ended:
                wake_s = min(wake_s, self._arrivals.next_s)
            # select, because epoll rounds up to whole milliseconds. An epoll descriptor can itself be waited for.
            select.select([self._poll.fileno()], [], [], max(wake_s - self._clock.now_s(), 0))
            ready = self._poll.poll(0)
        for descriptor, mask in ready:
            connection = self._by_descriptor[descriptor]
            if mask & select.EPOLLOUT:
                self._send(connection)
            if mask & ~select.EPOLLOUT:
                self._receive(connection)

    def _send(self, connection: Connection) -> None:
        connection.awaits = True
        try:
            sent = connection.socket.send(connection.unsent)
        except BlockingIOError:
            sent = 0
        except ConnectionError:
            self._reconnect(connection)
            return
        connection.unsent = connection.unsent[sent:]
        if connection.unsent:
            self._poll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)
            connection.waits_to_send = True
        elif connection.waits_to_send:
            self._poll.modify(connection.socket, select.EPOLLIN)
            connection.waits_to_send = False

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(_RECEIVE_BYTES)
        except ConnectionError:
            data = b""
        if not data or not connection.awaits:  # unasked, an answer can only be 408
            self._reconnect(connection)
            return
        if connection.body_left:
            connection.body_left -= len(data)
        else:
            data = connection.head + data
            head = _HEAD.match(data)
            if head is None or len(data) - head.end() < min(int(head[2]), _COUNTS_BYTES_MAX):
                connection.head = data
                return
            connection.head = b""
            connection.status = int(head[1])
            connection.body_left = int(head[2]) - (len(data) - head.end())
            self._count(connection.status, data, head.end())
        if connection.body_left == 0:
            self._answer(connection)

    def _count(self, status: int, data: bytes, body_at: int) -> None:
        if status == 503:
            self._counts["refused"] += 1
            self._refusal = data[body_at : body_at + 500].decode(errors="replace")
            return
        counts = _COUNTS.match(data, body_at)
        if status != 200 or counts is None:
            raise LoadFailed(f"an answer is {status}: {data[body_at : body_at + 500].decode(errors='replace')}")
        for name, count in zip(("stored", "duplicate", "conflict", "invalid"), counts.groups(), strict=True):
            if count != b"0":
                self._counts[name] += int(count)

    def _answer(self, connection: Connection) -> None:
        now_s = self._clock.now_s()
        connection.awaits = False
        if connection.status == 503:
            connection.unsent = connection.request
            self._retries.append((now_s + RETRY_S, connection))
            return
        self._answered += 1
        self._answered_at_s.append(now_s)
        self._latencies_s.append(now_s - connection.due_s)
        self._idle.append(connection)
        # In a closed loop the next request goes out before the other answers are read.
        if self._arrivals is None and now_s < self._end_s and not self._enough():
            self._begin(now_s)

    def _sample(self, now_s: float) -> None:
        sample = Sample(
            round(now_s - self._begun_s, 4), self._answered * self._job.batch, self._next_new - self._job.start
        )
        self._samples.append(sample)
        _write_line(sample)

    def _mark(self, now_s: float) -> None:
        server_s = 0.0 if self._job.watched_pid is None else proc.cpu_s(self._job.watched_pid)
        self._marks.append((now_s, self._answered, time.process_time(), server_s))

    def _result(self, failure: str | None) -> LoadResult:
        job = self._job
        begin, end = (self._marks * 2)[:2] if self._marks else ((0.0, 0, 0.0, 0.0),) * 2
        return LoadResult(
            requests=self._answered,
            events=self._answered * job.batch,
            unique=self._next_new - job.start,
            **{name: self._counts[name] for name in ("stored", "duplicate", "conflict", "invalid", "refused")},
            body_bytes=self._answered * self._requests.body_bytes,
            window_s=end[0] - begin[0],
            window_events=(end[1] - begin[1]) * job.batch,
            generator_cpu_s=end[2] - begin[2],
            server_cpu_s=end[3] - begin[3],
            latency_ms=summarize(*self._window(begin[0], end[0])),
            samples=self._samples,
            paused_s=self._clock.paused_s,
            reconnects=self._reconnects,
            failure=failure,
        )

    def _window(self, begin_s: float, end_s: float) -> tuple[Floats, Floats]:
        """Return when the requests of the window were due, from its begin, and their latencies in milliseconds."""
        latencies_s = np.frombuffer(self._latencies_s)
        due_s = np.frombuffer(self._answered_at_s) - latencies_s
        inside = (due_s >= begin_s) & (due_s < end_s)
        return due_s[inside] - begin_s, latencies_s[inside] * 1000


def _write_line(document: Sample | LoadResult) -> None:
    sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _write_line(Load(msgspec.json.decode(sys.stdin.buffer.read(), type=Job)).run())
