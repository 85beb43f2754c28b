"""A connection of the load generator: non-blocking, with at most one request outstanding."""

import socket
from dataclasses import dataclass, field


@dataclass(slots=True)
class Connection:
    """The socket, the request that is sent or to be sent, and how far its answer is."""

    socket: socket.socket
    request: memoryview = field(default_factory=lambda: memoryview(b""))
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    waits_to_send: bool = False
    due_s: float = 0.0
    awaits: bool = False  # an answer
    head: bytes = b""  # of the answer, until its counts are there
    body_left: int = 0  # of the answer, once they are
    status: int = 0

    @property
    def within_answer(self) -> bool:
        """Whether a part of an answer has come."""
        return bool(self.head) or self.body_left > 0


def open_socket(host: str, port: int) -> socket.socket:
    """Connect."""
    opened = socket.create_connection((host, port))
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    opened.setblocking(False)
    return opened
