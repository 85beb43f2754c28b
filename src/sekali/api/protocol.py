"""The connection: what uvicorn's HTTP protocol leaves unbounded, bounded, and the short way to ``/publish``.

uvicorn with httptools waits for ever for a header and takes headers of any size; here a connection has a deadline for
its first and every next header, and a maximum for their size. Requests to ``/publish`` are answered here; all others
go to the ASGI application.
"""

import asyncio
import sys
from typing import Any, ClassVar

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sekali.api.headers import SECURITY_HEADERS, SECURITY_LINES
from sekali.api.problems import Answer, Kind, Problem
from sekali.api.publish import Publish, PublishRequest

HEADER_BYTES_MAX = 32 * 1024
HEADER_COUNT_MAX = 100

_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}

log = structlog.get_logger("sekali.connection")

_CLOSE = (b"connection", b"close")


class PublishCycle:
    """A request to ``/publish`` in the place of uvicorn's cycle of one, with what its protocol asks of that."""

    def __init__(self, connection: "BoundedProtocol", *, keep_alive: bool, waiting_for_100_continue: bool) -> None:
        self._connection = connection
        self._is_head = connection.parser.get_method() == b"HEAD"
        self._waiting_for_100_continue = waiting_for_100_continue
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False
        self.message_event = asyncio.Event()  # uvicorn sets it; nobody waits
        self.started = False
        self._answer: Answer | None = None
        self.request = PublishRequest(connection.publish, self._respond)
        self.request.begin(connection.parser.get_method(), connection.headers, connection.client)

    async def run_asgi(self, _: object) -> None:
        """Begin to answer, once what came before on the connection has been answered."""
        self.start()

    def start(self) -> None:
        """Begin to answer: it is the first request of those on the connection that are not answered."""
        self.started = True
        if self._answer is not None:
            self._send(self._answer)

    def wait_for_more(self) -> None:
        """Tell the client to go on, where it waits for that, and start the clock."""
        if self.request.reading:
            if self._waiting_for_100_continue and self.started:
                self._waiting_for_100_continue = False
                self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.request.wait_for_more()

    def _respond(self, answer: Answer) -> None:
        if self.started:
            self._send(answer)
        else:
            self._answer = answer

    def _send(self, answer: Answer) -> None:
        self.response_complete = True
        transport = self._connection.transport
        if self.disconnected or transport.is_closing():
            return
        headers = [*self._connection.server_state.default_headers, *answer.headers]
        if not self.keep_alive and _CLOSE not in headers:
            headers.append(_CLOSE)
        lines = [STATUS_LINE[answer.status], *(b"%b: %b\r\n" % pair for pair in headers), SECURITY_LINES, b"\r\n"]
        if not self._is_head:
            lines.append(answer.body)
        transport.write(b"".join(lines))
        if _CLOSE in headers:
            transport.close()
        self._connection.on_response_complete()


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    header_timeout_s: ClassVar[float]
    publish: ClassVar[Publish]

    _deadline: asyncio.TimerHandle | None = None
    _messages = 0
    _in_header = True
    _header_bytes = 0
    _unparsed_bytes = 0  # of a header that has not ended, which the parser collects and does not show

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        super().connection_lost(exc)
        for cycle in (self.cycle, *(waiting for waiting, _ in self.pipeline)):
            if isinstance(cycle, PublishCycle):
                cycle.disconnected = True
                cycle.request.abandon()

    def data_received(self, data: bytes) -> None:
        before = self._messages
        super().data_received(data)
        # What is still incomplete gets a clock; most requests come whole and need none.
        if self._in_header:
            self._start_deadline()
            if self._messages in (before, 1):  # all of the data belongs to this header
                self._unparsed_bytes += len(data)
                if self._unparsed_bytes > HEADER_BYTES_MAX:
                    self._refuse_size()
        elif isinstance(self.cycle, PublishCycle):
            self.cycle.wait_for_more()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._messages += 1
        self._in_header = True
        self._header_bytes = self._unparsed_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._in_header = False
        self._stop_deadline()
        if self.transport.is_closing():
            return
        if self.url.partition(b"?")[0] == b"/publish":
            self._begin_publish()
        else:
            super().on_headers_complete()

    def _begin_publish(self) -> None:
        before = self.cycle
        cycle = PublishCycle(
            self,
            keep_alive=self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive(),
            waiting_for_100_continue=self.expect_100_continue,
        )
        self.cycle = cycle  # type: ignore[assignment]
        if before is None or before.response_complete:
            cycle.start()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        if isinstance(self.cycle, PublishCycle):
            self.cycle.request.feed(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if isinstance(self.cycle, PublishCycle):
            self.cycle.request.end()
        else:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.flow.write_paused:
            self.pause_writing()

    def pause_writing(self) -> None:
        """Ask a client that does not take its answers for no more, and wait for it."""
        super().pause_writing()
        self.flow.pause_reading()
        self._unset_keepalive_if_required()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.cycle is not None and self.cycle.response_complete and not self.transport.is_closing():
            self.flow.resume_reading()
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

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
        fault = sys.exception()
        if isinstance(fault, httptools.HttpParserCallbackError):  # not the client's fault, but a fault of what it calls
            log.error("a request could not be read", reason=repr(fault.__context__))
            self._end(Kind.UNAVAILABLE, "the request could not be read; send it again")
        else:
            self._end(Kind.NOT_HTTP, msg)


def bounded_protocol(header_timeout_s: float, publish: Publish) -> type[BoundedProtocol]:
    """Return the protocol class for uvicorn.

    It gives a client ``header_timeout_s`` to send its headers, and requests to ``/publish`` to ``publish``.
    """
    return type("BoundedProtocol", (BoundedProtocol,), {"header_timeout_s": header_timeout_s, "publish": publish})


def _raw(answer: Answer) -> bytes:
    head: list[Any] = [b"HTTP/1.1 %d %b" % (answer.status, _REASONS[answer.status])]
    head += [b"%b: %b" % pair for pair in (*answer.headers, *SECURITY_HEADERS)]
    return b"\r\n".join([*head, b"connection: close", b"", answer.body])
