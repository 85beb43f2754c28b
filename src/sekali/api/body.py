"""Request bodies, read with limits on size and time, and only as far as there is room for them."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Self

from sekali.api.problems import Kind, Problem
from sekali.errors import QueueFull

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Disconnected(Exception):
    """The client left before its request was complete."""


class ByteBudget:
    """The bytes of request bodies that the server holds at once. Belongs to the event loop."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.held = 0

    def reserve(self, count: int) -> None:
        """Take room for bytes.

        Raises:
            QueueFull: there is not enough.

        """
        if self.held + count > self._bytes_max:
            raise QueueFull(
                f"no room for {count} more bytes: {self.held} are held, at most {self._bytes_max} may be "
                "(QUEUE_BYTES_MAX); send the request again"
            )
        self.held += count

    def release(self, count: int) -> None:
        """Give room back."""
        self.held -= count


class Reservation:
    """Bytes of the budget that one request holds."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.held = 0

    def grow(self, count: int) -> None:
        """Take more.

        Raises:
            QueueFull: there is not enough.

        """
        self._budget.reserve(count)
        self.held += count

    def release(self) -> None:
        """Give all of it back. May be called twice."""
        self._budget.release(self.held)
        self.held = 0


class BodyReader:
    """Reads the body of one request, reserving its bytes before they are read.

    As a context manager it gives them back at the end, once the request is answered; or not, after ``hand_over``: then
    they live on, and whoever they were handed to releases the ``reservation``.
    """

    def __init__(self, budget: ByteBudget, *, bytes_max: int, timeout_s: float) -> None:
        self.reservation = Reservation(budget)
        self._bytes_max = bytes_max
        self._timeout_s = timeout_s
        self._handed_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._handed_over:
            self.reservation.release()

    def hand_over(self) -> None:
        """Leave the release to somebody else."""
        self._handed_over = True

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """Return the whole body.

        Raises:
            Problem: it is too large (413) or too slow (408).
            QueueFull: there is no room for it now.
            Disconnected: the client left.

        """
        declared = _content_length(scope)
        if declared is not None:
            if declared > self._bytes_max:
                raise self._too_large()
            self.reservation.grow(declared)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._read(receive)
        except TimeoutError:
            raise Problem(
                Kind.TOO_SLOW,
                f"the body did not arrive within {self._timeout_s:g} s (BODY_TIMEOUT_S)",
                headers=[(b"connection", b"close")],
            ) from None

    async def _read(self, receive: Receive) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._bytes_max:
                raise self._too_large()
            if size > self.reservation.held:  # a body sent in chunks does not say its length
                self.reservation.grow(size - self.reservation.held)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _too_large(self) -> Problem:
        return Problem(
            Kind.TOO_LARGE,
            f"the body is over {self._bytes_max} bytes (BODY_BYTES_MAX); send fewer events in one request",
        )


def _content_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)  # the HTTP parser has seen that it is a number
    return None


def header(scope: Scope, name: bytes) -> str:
    """Return a request header's values joined by commas, as HTTP allows, or an empty string."""
    return ",".join(value.decode("latin-1") for key, value in scope["headers"] if key == name)
