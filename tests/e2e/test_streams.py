"""NDJSON streams: whole or visibly cut, in constant memory, and without holding the write-ahead log back."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import apsw
import pytest
import urllib3

from e2e.conftest import Launch
from e2e.server import NDJSON, RawConnection, ServerProcess, event, verify

MIB = 1024 * 1024
EVENTS, PAYLOAD_BYTES = 20_000, 3_000
FINAL_CHUNK = b"\r\n0\r\n\r\n"
STREAM = f"GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: {NDJSON}\r\n\r\n".encode()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with 20,000 events, 60 MB, which no server has open."""
    path = tmp_path_factory.mktemp("filled") / "store.db"
    with ServerProcess(path) as server:
        for start in range(0, EVENTS, 2_000):
            events = [event("stream", f"{n}", payload="x" * PAYLOAD_BYTES) for n in range(start, start + 2_000)]
            assert server.http.publish(events).json()["stored"] == 2_000
        assert server.terminate() == 0
    return path


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(filled, tmp_path / "store.db"))


def _lines(chunked: bytes) -> list[bytes]:
    """Take a body apart that came in chunks, the last of which may be cut; return the whole lines."""
    body, rest = b"", chunked
    while rest:
        length, _, rest = rest.partition(b"\r\n")
        size = int(length or b"0", 16)
        body += rest[:size]
        rest = rest[size + 2 :]
    return body.split(b"\n")[:-1]


def _begin(server: ServerProcess, connection: RawConnection) -> bytes:
    """Ask for a stream and read only its beginning: then the server waits for the reader."""
    connection.send(STREAM)
    data = b""
    while len(data) < 100_000:
        data += connection.socket.recv(4096)
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") and b"transfer-encoding: chunked" in head.lower()
    return body


def _read_to_the_end(connection: RawConnection, body: bytes) -> bytes:
    chunks = [body]
    try:
        while not chunks[-1].endswith(FINAL_CHUNK) and (chunk := connection.socket.recv(MIB)):
            chunks.append(chunk)
    except ConnectionResetError:
        pass
    return b"".join(chunks)


def test_stream_is_cut_without_the_final_chunk_on_sigterm(launch: Launch, store: Path) -> None:
    server = launch(store)
    with RawConnection(server.port, receive_buffer_bytes=4096) as connection:
        body = _begin(server, connection)
        server.signal(signal.SIGTERM)
        server.wait_for_log("stopping")
        body = _read_to_the_end(connection, body)
    assert server.wait() == 0, server.log
    assert not body.endswith(FINAL_CHUNK), "a reader takes this for everything"
    lines = _lines(body)
    assert 0 < len(lines) < EVENTS
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, len(lines) + 1)), "what came is good"


def test_http_client_notices_that_a_stream_was_cut(launch: Launch, store: Path) -> None:
    server = launch(store)
    with server.http.stream(order="-seq") as response:
        chunks = response.stream(65536)
        next(chunks)
        server.signal(signal.SIGTERM)
        server.wait_for_log("stopping")
        with pytest.raises(urllib3.exceptions.ProtocolError):
            for _ in chunks:
                pass
    assert server.wait() == 0, server.log


def test_reader_that_stalls_does_not_keep_the_server_from_stopping(launch: Launch, store: Path) -> None:
    server = launch(store, STOP_TIMEOUT_S=1)
    with RawConnection(server.port, receive_buffer_bytes=4096) as connection:
        body = _begin(server, connection)
        assert server.terminate() == 0, server.log
        assert not _read_to_the_end(connection, body).endswith(FINAL_CHUNK)


def test_whole_stream_has_everything_and_the_final_chunk(launch: Launch, store: Path) -> None:
    server = launch(store)
    with RawConnection(server.port) as connection:
        body = _read_to_the_end(connection, _begin(server, connection))
    assert body.endswith(FINAL_CHUNK)
    lines = _lines(body)
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, EVENTS + 1))


def test_reader_that_leaves_does_no_harm(launch: Launch, store: Path) -> None:
    server = launch(store)
    for _ in range(20):
        with RawConnection(server.port, receive_buffer_bytes=4096) as connection:
            _begin(server, connection)
    assert server.http.publish(event("after", "1")).status == 200
    assert len(server.http.export(after=EVENTS).splitlines()) == 1
    assert server.terminate() == 0


def _checkpoint(path: Path, patience_ms: int = 5000) -> tuple[int, int]:
    """Checkpoint from another connection; return whether a reader was in the way and the size of the log after it."""
    connection = apsw.Connection(str(path))
    try:
        connection.set_busy_timeout(patience_ms)
        row: Any = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.close()
    return row[0], path.with_name(path.name + "-wal").stat().st_size


def test_stalled_stream_does_not_hold_the_write_ahead_log_back(launch: Launch, store: Path) -> None:
    server = launch(store)
    more = [event("more", f"{n}", payload="x" * PAYLOAD_BYTES) for n in range(2_000)]
    with RawConnection(server.port, receive_buffer_bytes=4096) as connection:
        body = _begin(server, connection)
        assert server.http.publish(more).json()["stored"] == 2_000
        assert store.with_name("store.db-wal").stat().st_size > MIB, "there is something to checkpoint"
        assert _checkpoint(store) == (0, 0), "the open stream holds a read transaction"
        lines = _lines(_read_to_the_end(connection, body))
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, EVENTS + 1)), "the stream went on after it"

    # The same checkpoint does fail where a reader keeps its transaction open.
    reader = apsw.Connection(str(store), flags=apsw.SQLITE_OPEN_READONLY)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM events").fetchall()
    assert server.http.publish([one | {"topic": "more/2"} for one in more]).json()["stored"] == 2_000
    busy, wal_bytes = _checkpoint(store, patience_ms=100)
    reader.close()
    assert busy == 1 and wal_bytes > MIB
    assert server.terminate() == 0
    verify(store)


def test_memory_is_constant_during_a_large_export(launch: Launch, store: Path) -> None:
    server = launch(store)

    def export(after: int) -> int:
        with server.http.stream(after=after) as response:
            return sum(chunk.count(b"\n") for chunk in response.stream(MIB))

    assert export(EVENTS - 5_000) == 5_000
    quarter = server.resident_bytes_peak
    assert export(0) == EVENTS
    whole = server.resident_bytes_peak
    # A page is at most 8 MiB, and there are a few copies of it; what is left to read after a quarter is 45 MB.
    assert whole - quarter < 30 * MIB, f"{whole - quarter:,} bytes"
    with RawConnection(server.port, receive_buffer_bytes=4096) as stalled:
        _begin(server, stalled)
        for _ in range(3):
            assert export(0) == EVENTS
    growth = server.resident_bytes_peak - whole
    assert growth < 40 * MIB, f"{growth:,} bytes for a stream beside another one"
