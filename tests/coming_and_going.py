"""Followers of everything that leave, come back and stand still at random, and keep account of what they saw.

All of them are on one thread, with epoll, because what they are many of is connections. The account is kept by seq, and
by a digest of every byte that an event came as.
"""

import hashlib
import heapq
import random
import re
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable

from event_stream import Decoder

RECEIVE_BYTES = 256 * 1024
LOOK_EVERY_S = 0.25
RETURNS_AT_ONCE, STAYS_AWAY, STANDS_STILL = "returns at once", "stays away", "stands still"
MOVES = (RETURNS_AT_ONCE, STAYS_AWAY, STANDS_STILL)
_EVENT = re.compile(rb"id: [0-9a-f]{32}-(\d+)\ndata: ")
_COMMENT = re.compile(rb"(?:\A|(?<=\n\n)):\n(?:id: [^\n]*\n)?\n")


class Traveller:
    """One follower over all of its connections. ``position`` is the highest seq that it saw."""

    def __init__(self) -> None:
        self.position = 0
        self.skipped = self.repeated = 0
        self.digest = hashlib.blake2b()
        self.connections = 0
        self.socket: socket.socket | None = None

    def connect(self, port: int, log_id: str) -> None:
        """Go on behind the last event that came whole."""
        self.socket = socket.create_connection(("127.0.0.1", port))
        place = f"Last-Event-ID: {log_id}-{self.position}\r\n" if self.connections else ""
        query = "GET /subscribe?after=earliest HTTP/1.1\r\nHost: localhost\r\n"
        self.socket.sendall(f"{query}{place}\r\n".encode())
        self.socket.setblocking(False)
        self.connections += 1
        self._decoder = Decoder()
        self._has_begun = False

    def receive(self) -> bool:
        """Take what has come; False if the connection has ended."""
        assert self.socket is not None
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except ConnectionResetError:
            data = b""
        text = self._decoder.feed(data)
        if text and not self._has_begun:
            assert self._decoder.head is not None and self._decoder.head.startswith(b"HTTP/1.1 200 "), text
            begin, _, text = text.partition(b"\n\n")
            assert begin.startswith(b"retry: "), begin
            self._has_begun = True
        self.take(text)
        return bool(data)

    def take(self, text: bytes) -> None:
        """Enter whole blocks into the account."""
        if b":\n" in text:  # an event has no line that ends like this
            text = _COMMENT.sub(b"", text)
        self.digest.update(text)
        seqs = list(map(int, _EVENT.findall(text)))
        if seqs == list(range(self.position + 1, self.position + 1 + len(seqs))):
            self.position += len(seqs)
            return
        for seq in seqs:
            self.skipped += max(seq - self.position - 1, 0)
            self.repeated += seq <= self.position
            self.position = max(self.position, seq)

    def close(self) -> None:
        """Leave, in the middle of whatever comes."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None


class Crowd:
    """Followers that move: each after a random time, ``stay_s`` in the mean. Away they are for a quarter of that."""

    def __init__(self, port: int, log_id: str, count: int, chance: random.Random, stay_s: float) -> None:
        self.travellers = [Traveller() for _ in range(count)]
        self.moves: Counter[str] = Counter()
        self.came_back_behind = 0  # so often somebody came back who had seen something, and not all
        self.cut = 0  # so often the server ended a connection
        self._port, self._log_id = port, log_id
        self._chance, self._stay_s = chance, stay_s
        self._poll = select.epoll()
        self._there: dict[int, Traveller] = {}  # by descriptor: those who take what comes
        self._due: list[tuple[float, int]] = []  # when, and who

    def follow(self, last_seq: Callable[[], int | None], deadline_s: float) -> None:
        """Follow, and move until ``last_seq`` knows where the log ends; then until all have come to that.

        Raises:
            AssertionError: that took longer than ``deadline_s``.

        """
        end_s = time.monotonic() + deadline_s
        for number in range(len(self.travellers)):
            self._arrive(number)
        goal: int | None = None
        try:
            while goal is None or any(one.position < goal for one in self.travellers):
                assert time.monotonic() < end_s, min(one.position for one in self.travellers)
                for descriptor, _ in self._poll.poll(self._until_due_s()):
                    if not self._there[descriptor].receive():
                        self.cut += 1
                        traveller = self._there[descriptor]
                        self._leave(traveller)
                        self._come(traveller)
                goal = last_seq() if goal is None else goal
                while self._until_due_s() == 0:
                    self._move(heapq.heappop(self._due)[1], stays=goal is not None)
        finally:
            for one in self.travellers:
                one.close()
            self._poll.close()

    def _until_due_s(self) -> float:
        return min(max(self._due[0][0] - time.monotonic(), 0), LOOK_EVERY_S) if self._due else LOOK_EVERY_S

    def _later(self, number: int, mean_s: float) -> None:
        heapq.heappush(self._due, (time.monotonic() + self._chance.expovariate(1 / mean_s), number))

    def _arrive(self, number: int) -> None:
        self._come(self.travellers[number])
        self._later(number, self._stay_s)

    def _move(self, number: int, *, stays: bool) -> None:
        one = self.travellers[number]
        if one.socket is None:
            self._arrive(number)
        elif one.socket.fileno() not in self._there:
            self._take(one)
            self._later(number, self._stay_s)
        elif not stays:
            move = self._chance.choice(MOVES)
            self.moves[move] += 1
            if move == STANDS_STILL:
                self._poll.unregister(one.socket)
                del self._there[one.socket.fileno()]
                self._later(number, self._stay_s / 4)
                return
            self._leave(one)
            if move == RETURNS_AT_ONCE:
                self._arrive(number)
            else:
                self._later(number, self._stay_s / 4)

    def _come(self, traveller: Traveller) -> None:
        self.came_back_behind += traveller.position > 0
        traveller.connect(self._port, self._log_id)
        self._take(traveller)

    def _take(self, traveller: Traveller) -> None:
        assert traveller.socket is not None
        self._there[traveller.socket.fileno()] = traveller
        self._poll.register(traveller.socket, select.EPOLLIN)

    def _leave(self, traveller: Traveller) -> None:
        assert traveller.socket is not None
        self._poll.unregister(traveller.socket)
        del self._there[traveller.socket.fileno()]
        traveller.close()


def digest_of(log_id: str, pieces: Iterable[bytes]) -> tuple[int, bytes]:
    """Return how many events an NDJSON export of a log holds, and the digest of who saw each of them once, in order."""
    digest = hashlib.blake2b()
    count, rest = 0, b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            count += 1
            digest.update(b"id: %b-%d\ndata: %b\n\n" % (log_id.encode(), count, line))
    assert rest == b""
    return count, digest.digest()
