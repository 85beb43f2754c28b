"""A connection by itself, with a transport that takes as much as the test lets it: what no client can bring about."""

import asyncio
import gzip
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from sekali.admission import Admission
from sekali.api.connections import Connections
from sekali.api.encoding import PIECE_BYTES
from sekali.api.protocol import PIPELINED_BYTES, BoundedProtocol, bounded_protocol
from sekali.api.read import READS_MAX
from sekali.metrics import Ending, Metrics
from sekali.service import Running, running_app
from sekali.settings import ServerSettings
from sekali.stores.memory import MemoryStore
from sekali.testing import GatedStore

MIB = 1024 * 1024
DEADLINE_S = 60.0


class Transport(asyncio.Transport):
    """Takes what is written; with ``full`` it keeps it, as where a client does not read."""

    def __init__(self, protocol: BoundedProtocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = b""
        self.kept = b""
        self.full = False
        self.reading = True
        self.closing = False
        self.aborted = False

    def write(self, data: Any) -> None:
        if not self.full:
            self.written += data
            return
        self.kept += data
        if len(self.kept) > 64 * 1024 and not self.protocol.flow.write_paused:
            self.protocol.pause_writing()

    def take(self) -> None:
        """The client reads everything, and goes on reading."""
        self.full = False
        self.written, self.kept = self.written + self.kept, b""
        if self.protocol.flow.write_paused:
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.kept)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Server:
    """The parts of a server over a store in memory, and connections to it."""

    def __init__(self, running: Running, metrics: Metrics, settings: ServerSettings) -> None:
        self.shared = running.connections
        self.publish = running.publish
        self.metrics = metrics
        self._protocol = bounded_protocol(running.publish, running.connections)
        self._state = ServerState()
        self._config = uvicorn.Config(running.app, lifespan="off", log_config=None, timeout_keep_alive=1000)
        self._config.timeout_keep_alive = settings.idle_timeout_s  # type: ignore[assignment]

    def connect(self) -> tuple[BoundedProtocol, Transport]:
        protocol = self._protocol(self._config, self._state, {})
        transport = Transport(protocol)
        protocol.connection_made(transport)
        return protocol, transport


@asynccontextmanager
async def serving(folder: Path, store: Any = None, **changes: Any) -> AsyncIterator[Server]:
    settings = ServerSettings(db_path=folder / "store.db", **changes)
    metrics = Metrics(lambda: 0.0)
    access = Admission(settings).access("127.0.0.1", metrics)
    store = store or MemoryStore(lambda: 0, topics_max=100)
    async with running_app(settings, store, asyncio.Event(), metrics, access) as running:
        await running.ready.wait()
        try:
            yield Server(running, metrics, settings)
        finally:
            if isinstance(store, GatedStore):
                store.gate.set()


def run(scenario: Callable[[], Any]) -> None:
    """Run a scenario on a loop of its own, on which nothing else may fail."""
    failures: list[Any] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        await asyncio.wait_for(scenario(), DEADLINE_S)

    asyncio.run(watched())
    assert failures == []


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@pytest.fixture
def gated() -> GatedStore:
    """A store whose commits wait."""
    return GatedStore(MemoryStore(lambda: 0, topics_max=100))


def event(number: int, payload: object = 1) -> bytes:
    fields = {"topic": "t", "event_id": f"{number}", "timestamp": "2026-11-23T10:00:00Z", "payload": payload}
    return json.dumps(fields).encode()


def post(body: bytes, *headers: str, path: str = "/publish") -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


GET = b"GET /healthz HTTP/1.1\r\n\r\n"


def statuses(data: bytes) -> list[int]:
    return [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]


# Compressed bodies are undone in pieces, and others get their turn in between.


@pytest.mark.parametrize("path", ["/publish", "/exists"])
def test_others_get_their_turn_while_a_body_is_undone(tmp_path: Path, path: str) -> None:
    pieces = 20
    question = b'{"topic": "t", "event_ids": []}'
    body = (event(1) if path == "/publish" else question) + b" " * (pieces * PIECE_BYTES)

    async def scenario() -> None:
        async with serving(tmp_path) as server:
            protocol, transport = server.connect()
            held: list[int] = []

            def look() -> None:
                held.append(server.publish.budget.held)
                if not transport.written:
                    asyncio.get_running_loop().call_soon(look)

            look()
            protocol.data_received(post(gzip.compress(body), "Content-Encoding: gzip", path=path))
            await until(lambda: bool(transport.written))
            assert statuses(transport.written) == [200]
            steps = [later - earlier for earlier, later in pairwise(held) if later > earlier]
            assert len(steps) >= pieces - 1, "a piece at a time is undone, and between them the loop goes round"
            assert max(steps[1:]) <= PIECE_BYTES
            assert server.publish.budget.held == 0

    run(scenario)


def test_body_of_a_client_that_left_is_undone_no_further(tmp_path: Path) -> None:
    body = gzip.compress(event(1) + b" " * (8 * MIB))

    async def scenario() -> None:
        async with serving(tmp_path) as server:
            protocol, transport = server.connect()
            protocol.data_received(post(body, "Content-Encoding: gzip")[:-1])
            await until(lambda: server.publish.budget.held > MIB)
            transport.close()
            protocol.connection_lost(None)
            assert server.publish.budget.held == 0
            for _ in range(100):
                await asyncio.sleep(0)
            assert server.publish.budget.held == 0 and transport.written == b""
            protocol, transport = server.connect()
            protocol.data_received(post(body + b"x", "Content-Encoding: gzip"))
            await until(lambda: bool(transport.written))
            assert statuses(transport.written) == [400], "what is behind it is found when it is all undone"

    run(scenario)


def test_body_that_breaks_off_while_it_is_undone_is_answered_once(tmp_path: Path) -> None:
    head = b"POST /publish HTTP/1.1\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = gzip.compress(event(1) + b" " * (8 * MIB))

    async def scenario() -> None:
        async with serving(tmp_path) as server:
            protocol, transport = server.connect()
            protocol.data_received(head + b"%x\r\n%b\r\n" % (len(body), body) + b"broken\r\n")
            assert statuses(transport.written) == [400]
            await asyncio.sleep(0.05)
            assert statuses(transport.written) == [400] and server.publish.budget.held == 0

    run(scenario)


# Whose time it is.


def test_time_for_a_body_does_not_run_while_the_server_does_not_read(tmp_path: Path, gated: GatedStore) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, gated) as server:
            protocol, transport = server.connect()
            last = post(event(2))
            protocol.data_received(post(event(1)) + last[:-5])
            assert not transport.reading, "first what has come already"
            protocol._too_slow()  # as its clock does when the time is over
            assert transport.written == b"" and not transport.closing
            gated.gate.set()
            await until(lambda: transport.reading)
            protocol.data_received(last[-5:])
            await until(lambda: statuses(transport.written) == [200, 200])
            protocol.data_received(last[:-5])
            protocol._too_slow()
            assert statuses(transport.written) == [200, 200, 408]

    run(scenario)


def test_idle_connection_with_something_left_to_send_is_cut(tmp_path: Path) -> None:
    """Too little waits for the transport to complain, and to close it in order would be to wait for ever."""

    async def scenario() -> None:
        async with serving(tmp_path, idle_timeout_s=0.05) as server:
            protocol, transport = server.connect()
            transport.full = True
            protocol.data_received(post(event(1)))
            await until(lambda: transport.closing)
            assert transport.aborted
            assert server.metrics.connections_ended[Ending.ANSWER_NOT_TAKEN] == 1

    run(scenario)


def test_last_answer_that_is_not_taken_is_cut(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, answer_timeout_s=0.05) as server:
            protocol, transport = server.connect()
            transport.full = True
            protocol.data_received(post(event(1), "Connection: close"))
            await until(lambda: transport.aborted)
            assert server.metrics.connections_ended[Ending.ANSWER_NOT_TAKEN] == 1

    run(scenario)


# What waits on a connection is counted, and let go of.


def test_requests_whose_turn_has_not_come_are_counted(tmp_path: Path, gated: GatedStore) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, gated) as server:
            protocol, transport = server.connect()
            protocol.data_received(post(event(1)))
            assert server.shared.bytes_held == 0
            protocol.data_received(GET)
            assert server.shared.bytes_held == PIPELINED_BYTES
            question = post(b" " * 1000, path="/exists")
            protocol.data_received(question)
            assert server.shared.bytes_held == 2 * PIPELINED_BYTES + 1000
            protocol.data_received(post(b"{"))
            before = 2 * PIPELINED_BYTES + 1000
            await until(lambda: server.shared.bytes_held > before)
            assert 100 < server.shared.bytes_held - before < 1000, "the answer that waits for those before it"
            gated.gate.set()
            await until(lambda: statuses(transport.written) == [200, 200, 400, 400])
            assert server.shared.bytes_held == 0
            protocol.connection_lost(None)

    run(scenario)


def test_what_a_connection_held_is_let_go_of_with_it(tmp_path: Path, gated: GatedStore) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, gated) as server:
            protocol, _ = server.connect()
            protocol.data_received(post(event(1)) + GET * 3)
            assert server.shared.bytes_held == 3 * PIPELINED_BYTES and server.shared.open == 1
            protocol.connection_lost(None)
            assert server.shared.bytes_held == 0 and server.shared.open == 0
            gated.gate.set()

    run(scenario)


def test_next_request_is_begun_once_the_answer_before_it_is_taken(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as server:
            protocol, transport = server.connect()
            transport.full = True
            invalid = b"[" + b"0," * 2000 + b"0]"
            protocol.data_received(post(invalid) + GET)
            await until(lambda: len(transport.kept) > 64 * 1024)
            for _ in range(50):
                await asyncio.sleep(0)
            assert statuses(transport.kept) == [422] and not transport.reading
            assert server.shared.bytes_held > len(transport.kept)
            transport.take()
            await until(lambda: statuses(transport.written) == [422, 200])
            assert server.shared.bytes_held == 0 and transport.reading

    run(scenario)


def test_who_has_waited_longest_is_cut(tmp_path: Path) -> None:
    class Waiting:
        idle_until_s = None

        def __init__(self) -> None:
            self.reason: Ending | None = None

        def cut(self, reason: Ending) -> None:
            self.reason = reason
            shared.hold(self, 0)

    settings = ServerSettings(db_path=tmp_path / "store.db", connection_bytes_max=16 * MIB)
    shared = Connections(Metrics(lambda: 0.0), settings)
    first, second, third = Waiting(), Waiting(), Waiting()
    shared.hold(first, 6 * MIB)
    shared.hold(second, 6 * MIB)
    shared.hold(first, 0)  # it was all taken
    shared.hold(first, 6 * MIB)
    shared.hold(third, 4 * MIB)
    assert (first.reason, second.reason, third.reason) == (None, None, None)
    shared.hold(third, 5 * MIB)
    assert (first.reason, second.reason, third.reason) == (None, Ending.WAITED_LONGEST, None)
    assert shared.bytes_held == 11 * MIB


# Errors wait for their turn.


@pytest.mark.parametrize(
    ("broken", "status"),
    [
        (b"POST /exists HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
        (b"POST /publish HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
        (b"GET /events HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000, 431),
    ],
)
def test_broken_request_behind_others_is_answered_in_its_turn(
    tmp_path: Path, gated: GatedStore, broken: bytes, status: int
) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, gated) as server:
            protocol, transport = server.connect()
            protocol.data_received(post(event(1)) + GET + broken)
            assert transport.written == b""
            protocol.data_received(GET)
            gated.gate.set()
            await until(lambda: transport.closing)
            assert statuses(transport.written) == [200, 200, status]

    run(scenario)


def test_question_that_breaks_off_is_answered_once(tmp_path: Path) -> None:
    """It is being read already: the problem takes the place of its answer."""

    async def scenario() -> None:
        async with serving(tmp_path) as server:
            protocol, transport = server.connect()
            protocol.data_received(b"POST /exists HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
            await asyncio.sleep(0.01)
            protocol.data_received(b"x\r\n")
            await until(lambda: transport.closing)
            await asyncio.sleep(0.01)
            assert statuses(transport.written) == [400]

    run(scenario)


# Reading.


def test_few_pages_are_made_before_they_are_handed_over(tmp_path: Path) -> None:
    """However many ask: what a page takes is held by few, until their connections have it."""

    class Counting(MemoryStore):
        reading = most = 0
        lock = threading.Lock()

        def read(self, query: Any) -> Any:
            with self.lock:
                self.reading += 1
                self.most = max(self.most, self.reading)
            return super().read(query)

    store = Counting(lambda: 0, topics_max=100)

    async def scenario() -> None:
        async with serving(tmp_path, store) as server:
            asked = [server.connect() for _ in range(3 * READS_MAX)]
            for protocol, _ in asked:
                protocol.data_received(b"GET /events HTTP/1.1\r\n\r\n")
            loop = asyncio.get_running_loop()
            for _ in range(50):  # the loop is busy, and no page can be handed over
                await asyncio.sleep(0)
                if store.reading >= READS_MAX:
                    break
                threading.Event().wait(0.01)
            threading.Event().wait(0.05)
            assert store.reading == store.most <= READS_MAX
            await until(lambda: all(transport.written for _, transport in asked))
            assert store.reading == 3 * READS_MAX and loop.is_running()

    run(scenario)
