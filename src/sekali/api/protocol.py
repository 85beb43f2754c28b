"""The connection: what uvicorn's HTTP protocol leaves unbounded, bounded, and the short way to ``/publish``.

uvicorn with httptools waits for ever for a header or a body, takes headers of any size and as many requests as fit into
one packet, and keeps for ever what a client does not take; here all of that has a limit (``connections.py``). Requests
to ``/publish`` are answered here; all others go to the ASGI application.
"""

import asyncio
from typing import Any, ClassVar

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sekali.api.connections import TAKEN_BYTES_MIN, Connections
from sekali.api.cycle import CLOSE, Cycle, PublishCycle
from sekali.api.problems import Kind, Problem
from sekali.api.publish import Publish
from sekali.api.read import CONNECTION, TAKEN
from sekali.metrics import Ending

HEADER_BYTES_MAX = 32 * 1024
HEADER_COUNT_MAX = 100
PIPELINED_MAX = 16
PIPELINED_BYTES = 16 * 1024  # about what a request takes whose turn has not come, with as many headers as it may have

log = structlog.get_logger("sekali.connection")


class _Ended(Exception):
    """Nothing more of the connection is read."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    publish: ClassVar[Publish]
    shared: ClassVar[Connections]

    is_endless = False  # the answer does not end by itself, or may be long in coming
    _deadline: asyncio.TimerHandle | None = None  # of the message that comes in
    _taking: asyncio.TimerHandle | None = None  # of the answer that goes out
    _messages = 0
    _in_header = True
    _in_body = False
    _ended = False  # nothing more is read
    _header_bytes = 0
    _unparsed_bytes = 0  # of a header that has not ended, which the parser collects and does not show
    _waiting_bytes = 0  # of requests whose turn has not come
    _unsent_bytes = 0  # when it was last looked at
    _next_waits = False  # for the answer before it to be taken
    _running: Any = None  # the ASGI cycle whose turn it is

    # The connection comes and goes.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.shared.open += 1
        refusal = self.shared.refusal(self.connections)  # type: ignore[arg-type]
        if refusal is None:
            self._start_deadline()
        else:
            self._ended = True
            self._answer(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        self.shared.open -= 1
        self.shared.hold(self, 0)
        self._stop_clocks()
        super().connection_lost(exc)
        for cycle in (self._running, self.cycle, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
            if isinstance(cycle, PublishCycle):
                cycle.request.abandon()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Stay, where the client has asked everything it wants to and waits for the answer, if that has an end."""
        asked = self.cycle is not None and not self.cycle.response_complete and not self._in_body
        if not asked or self.is_endless or self.scheme == "https":
            return False
        self._ended = True
        self._stop_deadline()
        self.cycle.keep_alive = False
        return True

    # What comes in.

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        before = self._messages
        self._unset_keepalive_if_required()
        self._parse(data)
        # What is still incomplete gets a clock; most requests come whole and need none.
        if self._ended:
            pass
        elif self._in_header:
            self._start_deadline()
            if self._messages in (before, 1):  # all of the data belongs to this header
                self._unparsed_bytes += len(data)
                if self._unparsed_bytes > HEADER_BYTES_MAX:
                    self._refuse_size()
        elif self._in_body:
            self._start_deadline()
            if isinstance(self.cycle, PublishCycle):
                self.cycle.wait_for_more()
        elif self.cycle.response_complete and self.timeout_keep_alive_task is None and not self._next_waits:
            self._start_idling()  # these were line ends between requests

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Not taken up: the request is as good without, and its body still comes. The parser would leave it away.
            lines = [b"%b: %b\r\n" % pair for pair in self.headers if pair[0] != b"upgrade"]
            version = self.parser.get_http_version().encode()
            head = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n", *lines, b"\r\n"]
            self.parser = httptools.HttpRequestParser(self)
            self._parse(b"".join(head) + data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            if not self._ended:
                # No fault of the client's: a defect of ours, or no memory.
                log.error("a request could not be read", exc_info=error.__context__)
                self._end(Kind.UNAVAILABLE, "the request could not be read; send it again")
        except httptools.HttpParserError as error:
            self._end(Kind.NOT_HTTP, f"{error}")

    def on_message_begin(self) -> None:
        before = self.cycle
        if before is not None and (self.transport.is_closing() or not before.keep_alive):
            self._ended = True  # after a request to close there is no other
            raise _Ended
        if len(self.pipeline) >= PIPELINED_MAX:
            self._ended = True
            before.keep_alive = False
            raise _Ended
        super().on_message_begin()
        self._messages += 1
        self._in_header = True
        self._header_bytes = self._unparsed_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_header:  # and not behind a body in chunks
            super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        upgrade = self.parser.should_upgrade()
        path = b"/publish" if self.url == b"/publish" else _path(self.url)
        if path is None or (upgrade and self.parser.get_method() == b"CONNECT"):
            self._end(Kind.NOT_HTTP, "the address is not one of this server")
            raise _Ended
        if upgrade:
            return  # see _parse
        self._in_header, self._in_body = False, True
        self._stop_deadline()
        if path == b"/publish":
            self._begin_publish()
        else:
            super().on_headers_complete()
            if self.pipeline:
                self.hold(PIPELINED_BYTES)
            self.scope["state"] |= {CONNECTION: self, TAKEN: self.taken}
            # Where a body was announced that may not come, it must not be awaited in place of the next request.
            if self.expect_100_continue or self.parser.get_http_version() != "1.1":
                self.cycle.keep_alive = False

    def _begin_publish(self) -> None:
        self._put(
            PublishCycle(
                self,
                keep_alive=self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive(),
                waiting_for_100_continue=self.expect_100_continue,
            )
        )

    def _put(self, cycle: Cycle) -> None:
        """Let a cycle answer once the one before it has."""
        before = self.cycle
        self.cycle = cycle  # type: ignore[assignment]
        if before is None or before.response_complete:
            cycle.start()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        if isinstance(self.cycle, PublishCycle):
            self.cycle.request.feed(body)
        elif self.scope["method"] in {"POST", "PUT"}:  # no other method is asked for its body
            super().on_body(body)
            if self.pipeline:
                self.hold(len(body))

    def on_message_complete(self) -> None:
        if self._in_header:  # an upgrade that is not taken up
            return
        self._in_body = False
        self._stop_deadline()
        if isinstance(self.cycle, PublishCycle):
            self.cycle.end()
        else:
            super().on_message_complete()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > HEADER_BYTES_MAX or len(self.headers) > HEADER_COUNT_MAX:
            self._refuse_size()
            raise _Ended

    # What goes out.

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        if self.flow.write_paused and not self.transport.is_closing():
            self._next_waits = True
            return
        super().on_response_complete()
        if self.pipeline:  # first what has come already
            self.flow.pause_reading()
        elif self._waiting_bytes:
            self._waiting_bytes = 0
            self._tell_held()
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._start_taking()

    def pause_writing(self) -> None:
        """Ask a client that does not take its answers for no more, and wait for it so long and no longer."""
        super().pause_writing()
        self.flow.pause_reading()
        self._start_taking()
        self._tell_held()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._tell_held()
        if self.transport.is_closing():
            return
        self._stop_taking()
        if self._next_waits:
            self._next_waits = False
            self.on_response_complete()
        elif not self.pipeline:
            self.flow.resume_reading()

    async def taken(self) -> bool:
        """Wait until the client has taken what was sent to it; False: it has left."""
        await self.flow.drain()
        if self.transport.is_closing():
            self._running.disconnected = True
        return not self.transport.is_closing()

    def hold(self, count: int) -> None:
        """Count bytes in whose turn has not come."""
        self._waiting_bytes += count
        self._tell_held()

    def _tell_held(self) -> None:
        unsent = self.transport.get_write_buffer_size() if self.flow.write_paused else 0
        self.shared.hold(self, self._waiting_bytes + unsent)

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.cut(Ending.ANSWER_NOT_TAKEN)
        else:
            super().timeout_keep_alive_handler()

    # Clocks and ends.

    @property
    def idle_until_s(self) -> float | None:
        """When it will be closed for being idle; None while a request is under way."""
        if self.timeout_keep_alive_task is None or self._in_header or self._in_body:
            return None
        return self.timeout_keep_alive_task.when()

    def _start_idling(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _start_deadline(self) -> None:
        if self._deadline is None:
            time_s = self.shared.header_timeout_s if self._in_header else self.shared.body_timeout_s
            self._deadline = self.loop.call_later(time_s, self._too_slow)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self.flow.read_paused:  # by us: the client could not send
            self._start_deadline()
            return
        shared = self.shared
        if self._in_header:
            shared.count_ended(Ending.HEADERS_LATE)
            what, limit = "headers", f"{shared.header_timeout_s:g} s (HEADER_TIMEOUT_S)"
        else:
            shared.count_ended(Ending.BODY_LATE)
            what, limit = "body", f"{shared.body_timeout_s:g} s (BODY_TIMEOUT_S)"
        self._end(Kind.TOO_SLOW, f"the {what} did not arrive within {limit}")

    def _start_taking(self) -> None:
        if self._taking is None:
            self._unsent_bytes = self.transport.get_write_buffer_size()
            self._taking = self.loop.call_later(self.shared.answer_timeout_s, self._not_taken)

    def _stop_taking(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def _not_taken(self) -> None:
        """Look how far the client has come with its answer."""
        self._taking = None
        if self._unsent_bytes - self.transport.get_write_buffer_size() < TAKEN_BYTES_MIN:
            self.cut(Ending.ANSWER_NOT_TAKEN)
        else:
            self._tell_held()
            self._start_taking()

    def cut(self, reason: Ending) -> None:
        """End the connection at once, whatever it has to send."""
        self.shared.count_ended(reason)
        self._ended = True
        self._stop_clocks()
        self.shared.hold(self, 0)
        self.transport.abort()

    def _stop_clocks(self) -> None:
        self._unset_keepalive_if_required()
        self._stop_deadline()
        self._stop_taking()

    def _refuse_size(self) -> None:
        self._end(
            Kind.HEADERS_TOO_LARGE,
            f"at most {HEADER_COUNT_MAX} headers, and {HEADER_BYTES_MAX} bytes of them and of the URL",
        )

    def _end(self, kind: Kind, detail: str) -> None:
        """Refuse the request that comes in, in its turn, and close; what comes after it is not looked at."""
        self._ended = True
        self._stop_deadline()
        if self.transport.is_closing():
            return
        problem = Problem(kind, detail, headers=[CLOSE])
        cycle = self.cycle
        if not self._in_body:
            self._answer(problem)
        elif isinstance(cycle, PublishCycle):
            cycle.refuse(problem)
        elif cycle.response_started:
            self.transport.close()
        else:
            if self.pipeline:  # its turn has not come
                self.pipeline.popleft()
            else:
                cycle.disconnected = cycle.response_complete = True
                cycle.message_event.set()
            self._answer(problem)

    def _answer(self, problem: Problem) -> None:
        """Close with a problem, once what was asked before has its answer."""
        cycle = Cycle(self, keep_alive=False)
        self._put(cycle)
        cycle.respond(problem.answer())


def _path(url: bytes) -> bytes | None:
    """Return the path of an address, in whatever form that came; None where it is none."""
    try:
        found: bytes | None = httptools.parse_url(url).path
    except httptools.HttpParserInvalidURLError:
        return None
    return found if found is None or found.isascii() else None


def bounded_protocol(publish: Publish, shared: Connections) -> type[BoundedProtocol]:
    """Return the protocol class for uvicorn, with ``publish`` for the requests to ``/publish``."""
    return type("BoundedProtocol", (BoundedProtocol,), {"publish": publish, "shared": shared})
