"""Request bodies, read with limits on their size, and only as far as there is room for them."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Self

from sekali.api.encoding import Gunzip, is_gzip
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


class Body:
    """The body of one request as it comes in: its size watched, its bytes reserved, its compression undone.

    ``bytes_max`` bounds it as sent, and as it is without its compression. Whoever has one calls ``release`` when its
    bytes are needed no more, or uses it as a context manager, which does.
    """

    def __init__(self, budget: ByteBudget, bytes_max: int) -> None:
        self._budget = budget
        self._bytes_max = bytes_max
        self._reserved = 0
        self._size = 0  # as sent
        self._undone = 0  # of what the compression stood for
        self._chunks: list[bytes] = []
        self._gunzip: Gunzip | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def begin(self, length: int | None, *, gzip: bool) -> None:
        """Make room for a body before it comes. ``length`` is None where it comes in chunks.

        Raises:
            Problem: 413, it is too large.
            QueueFull: there is no room for it now.

        """
        if gzip:
            self._gunzip = Gunzip()
        if length is not None:
            if length > self._bytes_max:
                raise self._too_large("the body")
            self._reserve(length)

    def feed(self, data: bytes) -> None:
        """Take a part of it; with compression, ``undo`` goes on with that.

        Raises:
            Problem: 413, it is too large.
            QueueFull: there is no room for it now.

        """
        self._size += len(data)
        if self._size > self._bytes_max:
            raise self._too_large("the body")
        if self._size + self._undone > self._reserved:  # a body sent in chunks does not say its length
            self._reserve(self._size + self._undone - self._reserved)
        if self._gunzip is None:
            self._chunks.append(data)
        else:
            self._gunzip.feed(data)

    def undo(self) -> bool:
        """Undo the compression of a piece, and tell whether there is more to undo.

        Raises:
            NotJson: it is not compressed as was said.
            Problem: 413, it is too large.
            QueueFull: there is no room for it now.

        """
        if self._gunzip is None or not self._gunzip.has_more:
            return False
        piece = self._gunzip.take()
        self._undone += len(piece)
        if self._undone > self._bytes_max:
            raise self._too_large("the body without its compression")
        self._reserve(len(piece))
        self._chunks.append(piece)
        return self._gunzip.has_more

    def whole(self) -> bytes:
        """Return all of it, once: it is complete.

        Raises:
            NotJson: its compression is cut.

        """
        if self._gunzip is not None:
            self._gunzip.finish()
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        return body

    def release(self) -> None:
        """Give its room back. May be called twice."""
        self._budget.release(self._reserved)
        self._reserved = 0
        self._chunks.clear()
        self._gunzip = None

    def _reserve(self, count: int) -> None:
        self._budget.reserve(count)
        self._reserved += count

    def _too_large(self, what: str) -> Problem:
        return Problem(
            Kind.TOO_LARGE, f"{what} is over {self._bytes_max} bytes (BODY_BYTES_MAX); send less in one request"
        )


async def read_whole(body: Body, scope: Scope, receive: Receive) -> bytes:
    """Read the body of an ASGI request into ``body``, and return it.

    Raises:
        Problem: it is too large (413), or compressed in a way that is not known (415).
        NotJson: it is not compressed as was said.
        QueueFull: there is no room for it now.
        Disconnected: the client left.

    """
    length = header(scope, b"content-length")  # the HTTP parser has seen that it is a number
    body.begin(int(length) if length else None, gzip=is_gzip(header(scope, b"content-encoding")))
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        body.feed(message.get("body", b""))
        while body.undo():
            await asyncio.sleep(0)  # others get their turn
        if not message.get("more_body", False):
            return body.whole()


def header(scope: Scope, name: bytes) -> str:
    """Return a request header's values joined by commas, as HTTP allows, or an empty string."""
    return ",".join(value.decode("latin-1") for key, value in scope["headers"] if key == name)
