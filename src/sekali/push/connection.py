"""A connection to an endpoint: one request at a time, one bounded answer to each, parsed by httptools."""

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

HEAD_BYTES_MAX = 32 * 1024
BODY_BYTES_MAX = 16 * 1024  # of an answer, which nobody looks at
BODY_TIMEOUT_S = 1.0  # to go on with the connection after it; else it is closed


class NoAnswer(Exception):
    """There was none, and the message says why."""


class Answer:
    """The answer to one request, as far as it has come. The methods are those that httptools calls."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.retry_after: str | None = None
        self.is_whole = False
        self.is_last = False  # the connection is of no use after it
        self.size = 0
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Take what arrived.

        Raises:
            NoAnswer: it is not an answer.

        """
        self.size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.status, self.is_whole, self.is_last = 101, True, True
        except httptools.HttpParserError:
            self.is_last = True
            if self.status is None:
                raise NoAnswer("the answer is not HTTP") from None
        if self.status is None and self.size > HEAD_BYTES_MAX:
            raise NoAnswer(f"the headers of the answer are over {HEAD_BYTES_MAX // 1024} KiB")

    @property
    def is_enough(self) -> bool:
        """Whether nothing more of it is of interest."""
        return self.is_whole or (
            self.status is not None and (self.is_last or self.size > HEAD_BYTES_MAX + BODY_BYTES_MAX)
        )

    def on_message_begin(self) -> None:
        """A second answer to one request: the first counts, and nothing after it on this connection."""
        if self.status is not None:
            self.is_last = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status is None and name.lower() == b"retry-after":
            self.retry_after = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self.status is None and status >= 200:  # what comes before is no answer yet
            self.status = status
            self.is_last = not self._parser.should_keep_alive()

    def on_message_complete(self) -> None:
        self.is_whole = self.status is not None


class Connection(asyncio.Protocol):
    """A connection over which requests are sent one after the other. ``on_closed`` is called at its end."""

    def __init__(self) -> None:
        self.on_closed: Callable[[Connection], None] = lambda _: None
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._done: asyncio.Future[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether another request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes) -> Answer:
        """Send a request and return the answer, whole or as much of it as is of interest.

        Raises:
            NoAnswer: there was none.

        """
        if self._transport is None or self._transport.is_closing():
            raise NoAnswer("the connection was closed before the answer")
        answer = self._answer = Answer()
        done = self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        is_reusable = False
        try:
            await done
            is_reusable = answer.is_whole and not answer.is_last
            return answer
        finally:
            self._answer = self._done = None
            if not is_reusable and self._transport is not None:
                self._transport.abort()

    def close(self) -> None:
        """Close it, with nothing under way."""
        if self._transport is not None:
            self._transport.close()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._done is None or self._done.done():
            self.close()  # nobody asked
            return
        had_status = self._answer.status is not None
        try:
            self._answer.feed(data)
        except NoAnswer as error:
            self._done.set_exception(error)
            return
        if self._answer.is_enough:
            self._done.set_result(None)
        elif self._answer.status is not None and not had_status:
            asyncio.get_running_loop().call_later(BODY_TIMEOUT_S, self._end_body, self._done)

    def _end_body(self, done: "asyncio.Future[None]") -> None:
        if not done.done():
            done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            if self._answer is not None and self._answer.status is not None:
                self._answer.is_last = True
                self._done.set_result(None)
            else:
                self._done.set_exception(NoAnswer("the connection was closed before the answer"))
        self._transport = None
        self.on_closed(self)
