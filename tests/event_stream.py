"""Streams of ``/subscribe`` as bytes on a socket, taken apart by nothing of ours but this: what the followers saw."""

import json
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode

DEADLINE_S = 30.0  # only ever reached by a test that fails


class Block(NamedTuple):
    """What stands between two empty lines. ``data`` is None where there is none."""

    id: str | None
    data: str | None
    comment: bool

    @property
    def seq(self) -> int:
        assert self.id is not None
        return int(self.id.rpartition("-")[2])


class Decoder:
    """Takes head, chunks and blocks apart, in whatever pieces they come."""

    def __init__(self) -> None:
        self.head: bytes | None = None
        self.complete = False  # the final chunk has come
        self.body = b""  # of the blocks that are not complete
        self._raw = b""

    def feed(self, data: bytes) -> bytes:
        """Return the text of the blocks that are complete now, each with the empty line that ends it."""
        self._raw += data
        if self.head is None:
            head, end, rest = self._raw.partition(b"\r\n\r\n")
            if not end:
                return b""
            self.head, self._raw = head, rest
        begin = 0
        pieces = [self.body]
        while (at := self._raw.find(b"\r\n", begin)) >= 0:
            size = int(self._raw[begin:at], 16)
            if len(self._raw) < at + 2 + size + 2:
                break
            assert self._raw[at + 2 + size : at + 4 + size] == b"\r\n"
            pieces.append(self._raw[at + 2 : at + 2 + size])
            begin = at + 2 + size + 2
            self.complete = self.complete or size == 0
        self._raw = self._raw[begin:]
        text = b"".join(pieces)
        cut = text.rfind(b"\n\n") + 2
        whole, self.body = (text[:cut], text[cut:]) if cut >= 2 else (b"", text)
        return whole


def blocks_of(text: bytes) -> list[Block]:
    """Take whole blocks apart."""
    found = []
    for lines in text.decode().split("\n\n")[:-1]:
        fields = {name: value for name, _, value in (line.partition(": ") for line in lines.split("\n"))}
        assert fields.keys() <= {"id", "data", "retry", ":"}, lines
        found.append(Block(fields.get("id"), fields.get("data"), ":" in fields))
    return found


class EventStream:
    """One connection to ``/subscribe``."""

    def __init__(
        self,
        port: int,
        *,
        headers: Mapping[str, str] | None = None,
        receive_buffer_bytes: int | None = None,
        **params: object,
    ) -> None:
        self.socket = socket.socket()
        if receive_buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(("127.0.0.1", port))
        query = "?" + urlencode(params) if params else ""
        lines = [f"{name}: {value}\r\n" for name, value in {"Host": "localhost", **(headers or {})}.items()]
        self.socket.sendall(f"GET /subscribe{query} HTTP/1.1\r\n{''.join(lines)}\r\n".encode())
        self.decoder = Decoder()
        self.blocks: list[Block] = []
        self.ended = False

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events that have come."""
        return [json.loads(block.data) for block in self.blocks if block.data is not None]

    @property
    def seqs(self) -> list[int]:
        """Their places, as ``id`` tells them; ``data`` must tell the same."""
        found = [block.seq for block in self.blocks if block.data is not None]
        assert found == [event["seq"] for event in self.events]
        return found

    @property
    def last_event_id(self) -> str:
        """Where a client goes on."""
        return next(block.id for block in reversed(self.blocks) if block.id is not None)

    def receive(self) -> bool:
        """Take what comes next; False at the end of the connection."""
        try:
            data = self.socket.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        self.ended = not data
        self.blocks += blocks_of(self.decoder.feed(data))
        return not self.ended

    def receive_events(self, count: int) -> list[int]:
        """Wait until so many events have come, and return their seqs."""
        deadline_s = time.monotonic() + DEADLINE_S
        while len([block for block in self.blocks if block.data is not None]) < count:
            assert time.monotonic() < deadline_s and self.receive(), f"only {len(self.blocks)} blocks"
        return self.seqs

    def receive_to(self, seq: int) -> list[int]:
        """Wait until a place has been told, by an event or between events."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not self.blocks or self.blocks[-1].id is None or self.blocks[-1].seq < seq:
            assert time.monotonic() < deadline_s and self.receive(), f"the end came before {seq}"
        return self.seqs

    def receive_all(self) -> None:
        """Wait for the end: of the stream, or of the connection."""
        while not self.decoder.complete and self.receive():
            pass

    def open(self) -> Self:
        """Wait until the stream has begun."""
        while not self.blocks:
            assert self.receive(), self.decoder.head
        return self

    @property
    def status(self) -> int:
        """The status of the answer."""
        while self.decoder.head is None:
            assert self.receive()
        return int(self.decoder.head.split()[1])

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
