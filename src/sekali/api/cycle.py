"""Requests that the connection answers itself: those to ``/publish``, and what it has to refuse."""

import asyncio
from typing import TYPE_CHECKING, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from sekali.api.headers import SECURITY_LINES
from sekali.api.problems import Answer, Problem
from sekali.api.publish import PublishRequest

if TYPE_CHECKING:
    from sekali.api.protocol import BoundedProtocol

CLOSE = (b"connection", b"close")


class Cycle:
    """A request that the connection answers itself, in the place of uvicorn's cycle of one."""

    message_event: ClassVar = asyncio.Event()  # uvicorn sets it; nobody waits

    def __init__(self, connection: "BoundedProtocol", *, keep_alive: bool) -> None:
        self._connection = connection
        self._is_head = connection.parser.get_method() == b"HEAD"
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False
        self.started = False
        self._answer: Answer | None = None

    async def run_asgi(self, _: object) -> None:
        """Begin to answer, once what came before on the connection has been answered."""
        self.start()

    def start(self) -> None:
        """Begin to answer: it is the first request of those on the connection that are not answered."""
        self.started = True
        if self._answer is not None:
            self._send(self._answer)

    def respond(self, answer: Answer) -> None:
        """Answer, now or when it is its turn."""
        if self.started:
            self._send(answer)
        else:
            self._answer = answer
            self._connection.hold(len(answer.body))

    def _send(self, answer: Answer) -> None:
        self.response_complete = True
        transport = self._connection.transport
        if self.disconnected or transport.is_closing():
            return
        headers = [*self._connection.server_state.default_headers, *answer.headers]
        if not self.keep_alive and CLOSE not in headers:
            headers.append(CLOSE)
        lines = [STATUS_LINE[answer.status], *(b"%b: %b\r\n" % pair for pair in headers), SECURITY_LINES, b"\r\n"]
        if not self._is_head:
            lines.append(answer.body)
        transport.write(b"".join(lines))
        if CLOSE in headers:
            transport.close()
        self._connection.on_response_complete()


class PublishCycle(Cycle):
    """A request to ``/publish``, with what uvicorn's protocol asks of its cycle."""

    def __init__(self, connection: "BoundedProtocol", *, keep_alive: bool, waiting_for_100_continue: bool) -> None:
        super().__init__(connection, keep_alive=keep_alive)
        self._waiting_for_100_continue = waiting_for_100_continue
        self.request = PublishRequest(connection.publish, self.respond)
        self.request.begin(connection.parser.get_method(), connection.headers, connection.client)

    async def run_asgi(self, _: object) -> None:
        self.start()
        self.wait_for_more()

    def wait_for_more(self) -> None:
        """Tell the client to go on, where it waits for that."""
        if self._waiting_for_100_continue and self.started and self.request.reading:
            self._waiting_for_100_continue = False
            self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def end(self) -> None:
        """The request is complete."""
        self._waiting_for_100_continue = False
        self.request.end()

    def refuse(self, problem: Problem) -> None:
        """Answer the rest of the request that will not come."""
        self.keep_alive = False
        if self.request.reading:
            self.request.refuse(problem)
        elif self.response_complete:
            self._connection.transport.close()

    def respond(self, answer: Answer) -> None:
        # Not told to send its body, a client may leave it away, and then its next request would be taken for it.
        self.keep_alive = self.keep_alive and not self._waiting_for_100_continue
        super().respond(answer)
