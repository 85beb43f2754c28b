"""Content encodings of request bodies: none, or gzip, undone a bounded piece at a time."""

import zlib
from collections import deque

from sekali.api.problems import Kind, Problem
from sekali.errors import NotJson

PIECE_BYTES = 256 * 1024  # undone in one go: less than a millisecond
MEMBERS_MAX = 1000
_GZIP = 16 + zlib.MAX_WBITS
_NAMES = {"gzip": True, "x-gzip": True, "identity": False, "": False}


def is_gzip(content_encoding: str) -> bool:
    """Tell whether a body is in gzip, from the value of its ``Content-Encoding``.

    Raises:
        Problem: 415, it is in something else.

    """
    encoding = content_encoding.strip().lower()
    try:
        return _NAMES[encoding]
    except KeyError:
        raise Problem(
            Kind.MEDIA,
            f"content encoding {encoding} is not known; send the body in gzip, once, or uncompressed",
            headers=[(b"accept-encoding", b"gzip, identity")],
        ) from None


class Gunzip:
    """Undoes gzip (RFC 1952): any number of members, one after the other, and nothing else.

    It never makes more than it is asked for, so that a small body that stands for a huge one costs nothing.
    """

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP)
        self._members = 1
        self._waiting: deque[bytes] = deque()

    def feed(self, data: bytes) -> None:
        """Take a part of the body."""
        self._waiting.append(data)

    @property
    def has_more(self) -> bool:
        """Whether ``take`` can go on with what was fed."""
        return bool(self._waiting)

    def take(self) -> bytes:
        """Undo the next ``PIECE_BYTES`` at most; fewer when all that was fed is undone.

        Raises:
            NotJson: this is not gzip, or it is damaged, or something else comes behind it.
            Problem: 413, it has more than ``MEMBERS_MAX`` members.

        """
        pieces: list[bytes] = []
        room = PIECE_BYTES
        while self._waiting and room:
            data = self._waiting.popleft()
            if self._member.eof and data:
                self._next_member()
            try:
                piece = self._member.decompress(data, room)
            except zlib.error as error:
                raise NotJson(f"the body is not gzip, or damaged: {error}") from None
            room -= len(piece)
            pieces.append(piece)
            rest = self._member.unconsumed_tail or self._member.unused_data
            if rest:
                self._waiting.appendleft(rest)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def finish(self) -> None:
        """Tell that the body is complete.

        Raises:
            NotJson: the last member is not.

        """
        if not self._member.eof:
            raise NotJson("the body is not gzip, or cut: it ends too early")

    def _next_member(self) -> None:
        self._members += 1
        if self._members > MEMBERS_MAX:
            raise Problem(Kind.TOO_LARGE, f"the body is gzip with more than {MEMBERS_MAX} members; compress it as one")
        self._member = zlib.decompressobj(_GZIP)
