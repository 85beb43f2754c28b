"""Consumers beside a load, in one process: ``python -m sekali.bench.consumers``, a ``ConsumeJob`` as its first line.

It publishes to topics of its own, at a steady rate, and each of them has one consumer, which checks that it gets every
event once and in order. Beside them idle ones wait for topics to which nobody publishes. It writes ``ready`` once all
are there. At the next line it publishes no more; once all is taken it writes a ``ConsumeResult`` and ends.
"""

import http.client
import re
import select
import sys
import time
from collections.abc import Generator, Sequence
from enum import StrEnum

import msgspec

from sekali.bench.connection import open_socket
from sekali.bench.followers import FollowStream, Wrong
from sekali.bench.job import DRAIN_S

REQUESTS_PER_S = 10  # of the publisher, each with events of every topic
PULL_EVENTS, PULL_WAIT_S = 100, 30
_RECEIVE_BYTES = 256 * 1024
_LOOK_EVERY_S = 0.25
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_NUMBER = re.compile(rb'"event_id":"(\d+)"')

Requests = Generator[bytes, bytes, None]  # gives requests and gets the bodies of their answers; b"": nothing to ask now


class Kind(StrEnum):
    """Who takes the events."""

    NOBODY = "nobody"
    FOLLOWERS = "followers"
    SUBSCRIPTIONS = "subscriptions"


class ConsumeJob(msgspec.Struct, frozen=True, kw_only=True):
    """``live`` topics get ``rate`` events a second each; with so many consumers, and ``idle`` ones beside them."""

    port: int
    kind: Kind
    live: int
    idle: int
    rate: int


class ConsumeResult(msgspec.Struct, frozen=True, kw_only=True):
    """``published`` counts events. ``events_per_s`` is of the slowest consumer, from its first events to its last."""

    published: int = 0
    events_per_s: float = 0.0
    cpu_s: float = 0.0
    failure: str | None = None


class _Account:
    """What one consumer got: events are numbered, from 0."""

    def __init__(self) -> None:
        self.next = 0
        self._first_s = self._last_s = 0.0
        self._first = 0

    def take(self, numbers: Sequence[int]) -> None:
        if list(numbers) != list(range(self.next, self.next + len(numbers))):
            raise Wrong(f"after {self.next - 1} came {numbers[0]} to {numbers[-1]}, {len(numbers)} events")
        self._last_s = time.perf_counter()
        self.next += len(numbers)
        if not self._first_s:
            self._first_s, self._first = self._last_s, self.next

    @property
    def events_per_s(self) -> float:
        return (self.next - self._first) / max(self._last_s - self._first_s, 1e-9)


class _Following(FollowStream):
    """Follows a topic."""

    def __init__(self, port: int, topic: str, account: _Account) -> None:
        super().__init__(open_socket("127.0.0.1", port), is_timed=False)
        self._account = account
        self.socket.sendall(f"GET /subscribe?topic={topic} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())

    def take_events(self, text: bytes) -> None:
        if numbers := list(map(int, _NUMBER.findall(text))):
            self._account.take(numbers)


class _Asking:
    """A connection that carries one request after the other."""

    is_open = True

    def __init__(self, port: int, requests: Requests) -> None:
        self.socket = open_socket("127.0.0.1", port)
        self._requests = requests
        self._data = b""
        self.is_free = False
        self._send(next(requests))

    def go_on(self) -> None:
        """Ask what is to be asked now, after there was nothing."""
        self._send(self._requests.send(b""))

    def receive(self) -> None:
        """Take what has come of an answer; once that is whole ask the next."""
        data = self.socket.recv(_RECEIVE_BYTES)
        if not data:
            raise Wrong("the server closed a connection")
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or length is None or len(body) < int(length[1]):
            return
        if not head.startswith(b"HTTP/1.1 200 "):
            raise Wrong(f"an answer is {self._data[:500].decode(errors='replace')}")
        self._data = b""
        self._send(self._requests.send(body))

    def _send(self, request: bytes) -> None:
        self.is_free = not request
        if request and self.socket.send(request) != len(request):
            raise Wrong("the server does not take a request")


def _post(path: str, document: object) -> bytes:
    body = msgspec.json.encode(document)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class _Event(msgspec.Struct):
    event_id: str
    seq: int


class _Pulled(msgspec.Struct):
    lease: str | None
    events: list[_Event]


class _Acknowledged(msgspec.Struct):
    acknowledged: list[int]


def _pulling(name: str, account: _Account) -> Requests:
    """Pull and acknowledge."""
    pull = _post(f"/subscriptions/{name}/pull", {"max": PULL_EVENTS, "wait": PULL_WAIT_S})
    while True:
        pulled = msgspec.json.decode((yield pull), type=_Pulled)
        if not pulled.events:
            continue
        account.take([int(event.event_id) for event in pulled.events])
        seqs = [event.seq for event in pulled.events]
        answer = yield _post(f"/subscriptions/{name}/ack", {"lease": pulled.lease, "seqs": seqs})
        if msgspec.json.decode(answer, type=_Acknowledged).acknowledged != seqs:
            raise Wrong(f"an acknowledgement is {answer[:500].decode()}")


class _Publishing:
    """Publishes to all live topics. ``each`` is how many events of each are acknowledged."""

    def __init__(self, job: ConsumeJob) -> None:
        self._job = job
        self._pause_s = 1 / REQUESTS_PER_S
        self.each = 0
        self.due_s = 0.0

    def requests(self) -> Requests:
        yield b""
        while True:
            count = self._job.rate // REQUESTS_PER_S
            numbers = range(self.each, self.each + count)
            topics = [_topic("live", place) for place in range(self._job.live)]
            yield _post("/publish", [_event(topic, number) for number in numbers for topic in topics])
            self.each += count
            self.due_s += self._pause_s
            yield b""


def _event(topic: str, number: int) -> dict[str, object]:
    """Return an event, about as large as those of the load."""
    return {
        "topic": topic,
        "event_id": f"{number}",
        "timestamp": "2026-11-23T10:15:30.123456Z",
        "source": "bench-1",
        "payload": {"level": "info", "status": 200, "ms": 100, "order": 1_000_000 + number, "text": "x" * 32},
    }


def _topic(kind: str, place: int) -> str:
    return f"{kind}/{place}"


class Consumers:
    """All of them, and their publisher."""

    def __init__(self, job: ConsumeJob) -> None:
        self._job = job
        self._accounts = [_Account() for _ in range(job.live)] if job.kind is not Kind.NOBODY else []
        self._poll = select.epoll()
        self._by_descriptor: dict[int, _Following | _Asking] = {}
        self._publishing = _Publishing(job)

    def connect(self) -> None:
        """Connect all of them, and wait until each is there."""
        places = [("live", place, account) for place, account in enumerate(self._accounts)]
        if self._accounts:
            places += [("idle", place, _Account()) for place in range(self._job.idle)]
        for kind, place, account in places:
            self._watch(self._consumer(_topic(kind, place), f"{kind}-{place}", account))
        end_s = time.perf_counter() + DRAIN_S
        while not all(one.is_open for one in self._by_descriptor.values()):
            self._receive(end_s, end_s)
        self._publisher = _Asking(self._job.port, self._publishing.requests())
        self._watch(self._publisher)

    def _consumer(self, topic: str, name: str, account: _Account) -> "_Following | _Asking":
        if self._job.kind is Kind.FOLLOWERS:
            return _Following(self._job.port, topic, account)
        connection = http.client.HTTPConnection("127.0.0.1", self._job.port)
        connection.request("PUT", f"/subscriptions/{name}", msgspec.json.encode({"topic": topic}))
        if (status := connection.getresponse().status) != http.HTTPStatus.CREATED:
            raise Wrong(f"PUT /subscriptions/{name} is {status}")
        connection.close()
        return _Asking(self._job.port, _pulling(name, account))

    def _watch(self, one: "_Following | _Asking") -> None:
        self._by_descriptor[one.socket.fileno()] = one
        self._poll.register(one.socket, select.EPOLLIN)

    def consume(self) -> ConsumeResult:
        """Publish and consume until there is a line on standard input, and all is taken."""
        failure, begun_s = None, time.process_time()
        end_s = float("inf")
        is_publishing = True
        self._poll.register(sys.stdin, select.EPOLLIN)
        self._publishing.due_s = time.perf_counter()
        try:
            while is_publishing or not self._is_done:
                if is_publishing and self._publisher.is_free and self._publishing.due_s <= time.perf_counter():
                    self._publisher.go_on()
                wake_s = self._publishing.due_s if is_publishing and self._publisher.is_free else end_s
                if self._receive(end_s, wake_s):
                    is_publishing, end_s = False, time.perf_counter() + DRAIN_S
                    self._poll.unregister(sys.stdin)
        except (Wrong, OSError) as error:
            failure = str(error)
        return ConsumeResult(
            published=self._publishing.each * self._job.live,
            events_per_s=min((one.events_per_s for one in self._accounts), default=0.0),
            cpu_s=time.process_time() - begun_s,
            failure=failure,
        )

    @property
    def _is_done(self) -> bool:
        return self._publisher.is_free and all(one.next == self._publishing.each for one in self._accounts)

    def _receive(self, end_s: float, wake_s: float) -> bool:
        """Take what there is, and wait for it if there is nothing; return whether there is a line to read."""
        now_s = time.perf_counter()
        if now_s > end_s:
            raise Wrong(f"not all was taken within {DRAIN_S:g} s")
        is_told = False
        for descriptor, _ in self._poll.poll(min(max(wake_s - now_s, 0), _LOOK_EVERY_S)):
            one = self._by_descriptor.get(descriptor)
            if one is None:
                is_told = True
            else:
                one.receive()
        return is_told


def main() -> None:
    """Do what standard input says."""
    consumers = Consumers(msgspec.json.decode(sys.stdin.readline(), type=ConsumeJob))
    try:
        consumers.connect()
    except (Wrong, OSError, ValueError) as error:
        result = ConsumeResult(failure=f"not all could connect: {error}")
    else:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        result = consumers.consume()
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")


if __name__ == "__main__":
    main()
