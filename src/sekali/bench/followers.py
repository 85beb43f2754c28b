"""Many followers in one process: ``python -m sekali.bench.followers`` with a ``FollowJob`` as the first line it reads.

Non-blocking sockets and epoll. It writes ``ready`` once all are connected. The next line it reads is the seq of the
last event that they must come to; once they have, it writes a ``FollowResult`` and ends.
"""

import gc
import re
import resource
import select
import socket
import sys
import time

import msgspec
import numpy as np
from numpy.typing import NDArray

from sekali.bench import arrivals
from sekali.bench.connection import open_socket
from sekali.bench.job import DRAIN_S, Latency
from sekali.bench.pauses import PAUSE_S

_RECEIVE_BYTES = 256 * 1024
_LOOK_EVERY_S = 0.25
_EVENT = re.compile(rb"id: [0-9a-f]{32}-(\d+)\ndata: ")
_PROCESSED_AT = re.compile(rb'"processed_at":"([^"]+)Z"')
_TIMED_EVERY = 10  # of so many followers one has its latency measured
_DESCRIPTORS_BESIDE = 50


class FollowJob(msgspec.Struct, frozen=True, kw_only=True):
    """So many followers of everything; or with ``idle`` each of a topic of its own, to which nobody publishes."""

    port: int
    followers: int
    idle: bool = False


class FollowResult(msgspec.Struct, frozen=True, kw_only=True):
    """What they got. ``events_per_s`` is that of the slowest, from its first event to its last.

    ``latency_ms`` is from ``processed_at``, when the commit began, to the whole event in the follower's process.
    ``failure`` says what was wrong.
    """

    events: int = 0  # each
    events_per_s: float = 0.0
    latency_ms: Latency = Latency()
    cpu_s: float = 0.0
    failure: str | None = None


class Wrong(Exception):
    """Somebody did not get what he must."""


class FollowStream:
    """One connection: takes the body out of its chunks, and counts the events, which must come without a gap."""

    def __init__(self, opened: socket.socket, *, is_timed: bool) -> None:
        self.socket = opened
        self.is_open = False  # the head of the answer has come, and a first block
        self.last_seq = -1
        self.events = 0
        self.first_s = self.last_s = 0.0
        self.timed: list[tuple[int, list[bytes]]] = []  # received at, and when the events were committed
        self._is_timed = is_timed
        self._raw = b""
        self._text = b""

    def receive(self) -> None:
        """Take what has come."""
        data = self.socket.recv(_RECEIVE_BYTES)
        if not data:
            raise Wrong("the server ended a stream")
        self._raw += data
        if not self.is_open:
            head, end, rest = self._raw.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 200 "):
                raise Wrong(f"a stream is refused: {self._raw[:500].decode(errors='replace')}")
            self._raw, self.is_open = rest, True
        self._take_chunks()
        cut = self._text.rfind(b"\n\n") + 2
        if cut >= 2:
            whole, self._text = self._text[:cut], self._text[cut:]
            self.take_events(whole)

    def _take_chunks(self) -> None:
        begin = 0
        pieces = [self._text]
        while (at := self._raw.find(b"\r\n", begin)) >= 0:
            size = int(self._raw[begin:at], 16)
            if len(self._raw) < at + 2 + size + 2:
                break
            pieces.append(self._raw[at + 2 : at + 2 + size])
            begin = at + 2 + size + 2
        self._raw = self._raw[begin:]
        self._text = b"".join(pieces)

    def take_events(self, text: bytes) -> None:
        seqs = list(map(int, _EVENT.findall(text)))
        if not seqs:
            return
        if not self.events:
            self.last_seq, self.first_s = seqs[0] - 1, time.perf_counter()
        if seqs != list(range(self.last_seq + 1, self.last_seq + 1 + len(seqs))):
            raise Wrong(f"after {self.last_seq} came {seqs[0]} to {seqs[-1]}, {len(seqs)} events")
        self.last_seq, self.last_s = seqs[-1], time.perf_counter()
        self.events += len(seqs)
        if self._is_timed:
            self.timed.append((time.time_ns(), _PROCESSED_AT.findall(text)))


class Followers:
    """All of them."""

    def __init__(self, job: FollowJob) -> None:
        self._job = job
        self._pauses_ns: list[tuple[int, int]] = []
        self._poll = select.epoll()
        self._followers: dict[int, FollowStream] = {}

    def connect(self) -> None:
        """Connect all of them, and wait until each stream is open."""
        _allow_descriptors(self._job.followers + _DESCRIPTORS_BESIDE)
        for number in range(self._job.followers):
            opened = open_socket("127.0.0.1", self._job.port)
            topic = f"topic=idle/{number}&" if self._job.idle else ""
            opened.sendall(f"GET /subscribe?{topic}after=latest HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            self._followers[opened.fileno()] = FollowStream(opened, is_timed=number % _TIMED_EVERY == 0)
            self._poll.register(opened, select.EPOLLIN)
        end_s = time.perf_counter() + DRAIN_S
        while not all(follower.is_open for follower in self._followers.values()):
            self._receive(end_s)

    def follow(self) -> FollowResult:
        """Follow until standard input names the last seq and all have come to it."""
        failure, begun_s = None, time.process_time()
        last_seq: int | None = None
        end_s = float("inf")
        self._poll.register(sys.stdin, select.EPOLLIN)
        gc.disable()
        try:
            while last_seq is None or not self._have_come_to(last_seq):
                if self._receive(end_s):
                    last_seq, end_s = int(sys.stdin.readline()), time.perf_counter() + DRAIN_S
                    self._poll.unregister(sys.stdin)
        except (Wrong, OSError) as error:
            failure = str(error)
        return self._result(failure, time.process_time() - begun_s)

    def _have_come_to(self, seq: int) -> bool:
        return self._job.idle or all(follower.last_seq >= seq for follower in self._followers.values())

    def _receive(self, end_s: float) -> bool:
        """Take what there is, and wait for it if there is nothing; return whether there is a line to read."""
        before_s, before_ns = time.perf_counter(), time.time_ns()
        if before_s > end_s:
            raise Wrong(f"not all came to the end within {DRAIN_S:g} s")
        ready = self._poll.poll(_LOOK_EVERY_S)
        if time.perf_counter() - before_s > PAUSE_S:
            self._pauses_ns.append((before_ns, time.time_ns()))
        for descriptor, _ in ready:
            if descriptor in self._followers:
                self._followers[descriptor].receive()
        return any(descriptor not in self._followers for descriptor, _ in ready)

    def _result(self, failure: str | None, cpu_s: float) -> FollowResult:
        followers = list(self._followers.values())
        if failure is not None or self._job.idle:
            got = sum(follower.events for follower in followers)
            return FollowResult(failure=failure or (f"idle followers got {got} events" if got else None), cpu_s=cpu_s)
        paused_s = sum(end - begin for begin, end in self._pauses_ns) / 1e9
        rates = [follower.events / max(follower.last_s - follower.first_s - paused_s, 1e-9) for follower in followers]
        return FollowResult(
            events=min(follower.events for follower in followers),
            events_per_s=min(rates),
            latency_ms=self._latency(followers),
            cpu_s=cpu_s,
        )

    def _latency(self, followers: list[FollowStream]) -> Latency:
        timed = [one for follower in followers for one in follower.timed]
        texts = [text.decode() for _, some in timed for text in some]
        committed_ns: NDArray[np.int64] = np.array(texts, "datetime64[ns]").astype(np.int64)
        received_ns = np.repeat([at_ns for at_ns, _ in timed], [len(some) for _, some in timed])
        good = np.ones(len(texts), bool)
        for begin_ns, end_ns in self._pauses_ns:
            good &= (received_ns < begin_ns) | (committed_ns > end_ns)
        since_s = (committed_ns - committed_ns.min(initial=np.iinfo(np.int64).max)) / 1e9
        return arrivals.summarize(since_s[good], ((received_ns - committed_ns) / 1e6)[good])


def _allow_descriptors(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(hard, needed)))


def main() -> None:
    """Do what standard input says."""
    followers = Followers(msgspec.json.decode(sys.stdin.readline(), type=FollowJob))
    try:
        followers.connect()
    except (Wrong, OSError, ValueError) as error:
        result = FollowResult(failure=f"not all could connect: {error}")
    else:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        result = followers.follow()
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")


if __name__ == "__main__":
    main()
