"""Server-Sent Events taken apart (https://html.spec.whatwg.org/multipage/server-sent-events.html). Does no I/O."""

from typing import NamedTuple

BUFFER_BYTES_MAX = 64 * 1024 * 1024  # many times the largest event


class Message(NamedTuple):
    """One message of a stream. ``data`` is None where it only tells a place; ``id`` is the newest place told."""

    data: str | None
    id: str | None


class Parser:
    """Takes a stream in pieces, however they are cut, and gives the messages that are complete.

    Of the ways to end a line it knows LF and CRLF, of the fields ``data`` and ``id``; it skips others, and comments.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []
        self._id: str | None = None
        self._is_empty = True  # the message that comes in

    def feed(self, piece: bytes) -> list[Message]:
        """Return the messages that a piece completes.

        Raises:
            ValueError: it is no such stream, because it is not UTF-8 or a line has no end.

        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > BUFFER_BYTES_MAX:
            raise ValueError("a line without an end")
        messages: list[Message] = []
        for line in lines:
            if line not in {b"", b"\r"}:
                self._take(line.decode().removesuffix("\r"))
            elif not self._is_empty:
                messages.append(Message("\n".join(self._data) if self._data else None, self._id))
                self._data, self._is_empty = [], True
        return messages

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        self._is_empty = self._is_empty and name not in {"data", "id"}
