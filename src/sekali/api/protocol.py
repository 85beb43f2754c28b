"""The connection: what uvicorn's HTTP protocol leaves unbounded, bounded.

uvicorn with httptools waits for ever for a header and takes headers of any size; here a connection has a deadline for
its first and every next header, and a maximum for their size.
"""

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sekali.api.problems import Answer, Kind, Problem

HEADER_BYTES_MAX = 32 * 1024
HEADER_COUNT_MAX = 100

_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    header_timeout_s: ClassVar[float]

    _deadline: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _unparsed_bytes = 0  # of a header that has not ended, which the parser collects and does not show

    def data_received(self, data: bytes) -> None:
        waiting = self._deadline is not None
        super().data_received(data)
        if waiting and self._deadline is not None:
            self._unparsed_bytes += len(data)
            if self._unparsed_bytes > HEADER_BYTES_MAX:
                self._refuse_size()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = self._unparsed_bytes = 0
        self._start_deadline()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._stop_deadline()
        if not self.transport.is_closing():
            super().on_headers_complete()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > HEADER_BYTES_MAX or len(self.headers) > HEADER_COUNT_MAX:
            self._refuse_size()

    def _refuse_size(self) -> None:
        self._end(
            Kind.HEADERS_TOO_LARGE,
            f"at most {HEADER_COUNT_MAX} headers, and {HEADER_BYTES_MAX} bytes of them and of the URL",
        )

    def _start_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        self._end(Kind.TOO_SLOW, f"the headers did not arrive within {self.header_timeout_s:g} s (HEADER_TIMEOUT_S)")

    def _end(self, kind: Kind, detail: str) -> None:
        if not self.transport.is_closing():
            self.transport.write(_raw(Problem(kind, detail).answer()))
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            self._end(Kind.NOT_HTTP, msg)


def bounded_protocol(header_timeout_s: float) -> type[BoundedProtocol]:
    """Return the protocol class for uvicorn, which gives a client ``header_timeout_s`` to send its headers."""
    return type("BoundedProtocol", (BoundedProtocol,), {"header_timeout_s": header_timeout_s})


def _raw(answer: Answer) -> bytes:
    head: list[Any] = [b"HTTP/1.1 %d %b" % (answer.status, _REASONS[answer.status])]
    head += [b"%b: %b" % pair for pair in answer.headers]
    return b"\r\n".join([*head, b"connection: close", b"", answer.body])
