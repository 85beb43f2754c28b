"""Requests as bytes, connections that end badly, and what a server holds: for clients that no library would be."""

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from e2e.server import DEADLINE_S, Client, RawConnection, ServerProcess, event, wait_until

CLIENT_CONNECTIONS = 1  # that the test's own client keeps open, and the metrics count


def post(body: bytes, *headers: str, path: str = "/publish", version: str = "1.1", length: int | None = None) -> bytes:
    """Return a request with a body of declared length."""
    size = f"Content-Length: {len(body) if length is None else length}"
    return head("POST", path, size, *headers, version=version) + body


def head(method: str, path: str, *headers: str, version: str = "1.1") -> bytes:
    """Return the head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: test", *headers, "", ""]).encode()


def chunked(pieces: Iterable[bytes], end: bytes = b"0\r\n\r\n") -> bytes:
    """Return a body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


def one_event(topic: str, event_id: str, **fields: object) -> bytes:
    return json.dumps(event(topic, event_id, **fields)).encode()


class HalfAnAnswer(AssertionError):
    """An answer is not complete."""


def statuses(data: bytes) -> list[int]:
    """Return the statuses of the answers in what a connection gave, which must be whole."""
    return [status for status, _ in answers(data)]


def answers(data: bytes) -> list[tuple[int, bytes]]:
    """Take answers that say their length apart.

    Raises:
        HalfAnAnswer: the last one is not complete.

    """
    found = []
    while data:
        top, separator, rest = data.partition(b"\r\n\r\n")
        if not separator:
            raise HalfAnAnswer(data[:1000])
        status = int(top.split()[1])
        if status == 100:
            found.append((status, b""))
            data = rest
            continue
        length = int(top.lower().partition(b"content-length:")[2].split()[0])
        if len(rest) < length:
            raise HalfAnAnswer(data[:1000])
        found.append((status, rest[:length]))
        data = rest[length:]
    return found


def ask(port: int, request: bytes, *, half_close: bool = False) -> bytes:
    """Send bytes, and return everything that comes until the server ends the connection."""
    with RawConnection(port) as connection:
        connection.send(request)
        if half_close:
            connection.socket.shutdown(socket.SHUT_WR)
        return receive_until_closed(connection)


def receive_until_closed(connection: RawConnection) -> bytes:
    chunks = []
    try:
        while chunk := connection.socket.recv(65536):
            chunks.append(chunk)
    except ConnectionResetError:
        pass
    return b"".join(chunks)


def receive_answers(connection: RawConnection, count: int) -> list[tuple[int, bytes]]:
    """Wait for so many answers that say their length."""
    data = b""
    while True:
        try:
            found = answers(data)
        except HalfAnAnswer:
            found = []
        if len(found) >= count:
            return found
        chunk = connection.socket.recv(65536)
        assert chunk, f"the connection ended after {data!r}"
        data += chunk


def reset(connection: RawConnection) -> None:
    """End a connection by a reset, as a process that is killed or a firewall does."""
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.socket.close()


@contextmanager
def connections(port: int, count: int, receive_buffer_bytes: int | None = None) -> Iterator[list[RawConnection]]:
    """Open so many, and close what is left of them at the end."""
    opened: list[RawConnection] = []
    try:
        for _ in range(count):
            opened.append(RawConnection(port, receive_buffer_bytes))
        yield opened
    finally:
        for connection in opened:
            connection.socket.close()


def metric(http: Client, name: str, **labels: str) -> float:
    """Return a figure of /metrics."""
    text = http.get("/metrics").data.decode()
    wanted = name + ("{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}" if labels else "")
    [line] = [line for line in text.splitlines() if line.startswith(wanted + " ")]
    return float(line.rpartition(" ")[2])


def ended(http: Client, reason: str) -> int:
    """Return how many connections the server ended for a reason."""
    return int(metric(http, "sekali_connections_ended_total", reason=reason))


def sockets(server: ServerProcess) -> int:
    """Return how many sockets the server has open."""
    names = []
    for number in os.listdir(f"/proc/{server.pid}/fd"):  # noqa: PTH208
        with contextlib.suppress(FileNotFoundError):  # closed in between
            names.append(os.readlink(f"/proc/{server.pid}/fd/{number}"))  # noqa: PTH115
    return sum(name.startswith("socket:") for name in names)


def wait_until_nothing_is_held(server: ServerProcess) -> None:
    """Wait until no request, no byte and no connection is left but the test's own.

    Raises:
        AssertionError: something is.

    """
    figures = {
        "sekali_queue_bytes": 0,
        "sekali_queue_events": 0,
        "sekali_connection_bytes": 0,
        "sekali_connections": CLIENT_CONNECTIONS,
    }

    found: dict[str, float] = {}

    def is_quiet() -> bool:
        found.update({name: metric(server.http, name) for name in figures})
        return found == figures

    try:
        wait_until(is_quiet, "nothing is held", DEADLINE_S)
    except AssertionError:
        raise AssertionError(f"something is held: {found}") from None
