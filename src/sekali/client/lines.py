"""Plain lines to events, in bounded memory.

A line's identity is its place: which file (a fingerprint of its first line), where in it (the byte offset), and what
stands there (a hash of the line). So a file that is published again is all duplicates, a file that grew adds what is
new, and a file that was rotated, which begins with another line, is another file whatever its name.

A line ends with LF or CRLF. The ending is no part of the line, so a last line that gets its ending later stays the same
line. Empty lines are skipped.
"""

import os
import select
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from sekali.client.events import encode_event, format_time
from sekali.client.timepattern import TimePattern

LINE_BYTES_MAX = 1024 * 1024
FINGERPRINT_BYTES = 8  # tells files apart; 16 hexadecimal digits
LINE_HASH_BYTES = 16  # 32 hexadecimal digits: two lines at one offset are never taken for one
CHUNK_BYTES = 64 * 1024

_TOO_LONG = "the line is longer than a publisher sends; shorten or split it"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file, without its ending.

    ``number`` counts from 1, ``offset`` is that of its first byte. Of a line that is ``too_long`` only the beginning
    was kept.
    """

    number: int
    offset: int
    content: bytes
    too_long: bool = False


class Item(NamedTuple):
    """An event on its way to the server, and where it came from: ``app.log:17`` for instance."""

    place: str
    event: bytes


Fault = Callable[[str, str], None]
"""Told the place of a line that cannot be published, and why."""


def read_chunks(fd: int, idle_s: float) -> Iterator[bytes]:
    """Yield what arrives on a file descriptor, up to its end; an empty chunk when nothing came for ``idle_s`` seconds.

    Reading does not wait for a chunk to fill up, so the lines of a slow pipe come out as they come in.
    """
    while True:
        while not select.select([fd], [], [], idle_s)[0]:
            yield b""
        chunk = os.read(fd, CHUNK_BYTES)
        if not chunk:
            return
        yield chunk


def split_lines(chunks: Iterable[bytes], line_bytes_max: int = LINE_BYTES_MAX) -> Iterator[Line | None]:
    """Yield the lines of a file that comes in chunks, empty ones included; None for an empty chunk.

    At most ``line_bytes_max`` bytes of a line, and one chunk, are in memory at a time.
    """
    kept_max = line_bytes_max + 1  # room for a carriage return
    kept, length = bytearray(), 0
    number, offset = 1, 0
    for chunk in chunks:
        if not chunk:
            yield None
            continue
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            kept += end[: kept_max - len(kept)]
            length += len(end)
            yield _line(number, offset, bytes(kept), length, line_bytes_max)
            number, offset = number + 1, offset + length + 1
            kept, length = bytearray(), 0
        kept += rest[: kept_max - len(kept)]
        length += len(rest)
    if length:
        yield _line(number, offset, bytes(kept), length, line_bytes_max)


def _line(number: int, offset: int, kept: bytes, length: int, line_bytes_max: int) -> Line:
    content = kept.removesuffix(b"\r") if length == len(kept) else kept
    if len(content) > line_bytes_max:
        return Line(number, offset, content[:line_bytes_max], too_long=True)
    return Line(number, offset, content)


class PlaceIds:
    """Makes the ids of one file's lines; call it with each line in order, the first included.

    The fingerprint is that of the first line that is not empty. Of a line that is too long it covers the beginning.
    """

    def __init__(self) -> None:
        self._fingerprint: str | None = None

    def __call__(self, line: Line) -> str:
        """Return ``<fingerprint>-<offset>-<hash>``, hexadecimal, decimal, hexadecimal."""
        if self._fingerprint is None:
            self._fingerprint = blake2b(line.content, digest_size=FINGERPRINT_BYTES).hexdigest()
        return f"{self._fingerprint}-{line.offset}-{blake2b(line.content, digest_size=LINE_HASH_BYTES).hexdigest()}"


def line_events(
    lines: Iterable[Line | None],
    make_id: Callable[[Line], str],
    topic: str,
    source: str,
    *,
    name: str,
    on_fault: Fault,
    time_pattern: TimePattern | None = None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> Iterator[Item | None]:
    r"""Yield an event for each line that is not empty, with the payload ``{"line": "<text>"}``; None goes through.

    ``name`` is the file's, for the places. An event's time is the one that ``time_pattern`` finds in the line, else
    when it was read. Bytes that are not UTF-8 appear in the text as ``\xNN``.
    """
    for line in lines:
        if line is None:
            yield None
            continue
        if not line.content:
            continue
        event_id = make_id(line)  # also of a line that is too long: it may be the first
        if line.too_long:
            on_fault(f"{name}:{line.number}", _TOO_LONG)
            continue
        text = line.content.decode(errors="backslashreplace")
        now_ns = clock_ns()
        timestamp = time_pattern.find(text, now_ns) if time_pattern else None
        event = encode_event(topic, event_id, timestamp or format_time(now_ns), {"line": text}, source)
        yield Item(f"{name}:{line.number}", event)


def ndjson_events(lines: Iterable[Line | None], *, name: str, on_fault: Fault) -> Iterator[Item | None]:
    """Yield each line that is not blank, unchanged, as an event; None goes through. The server says which are none."""
    for line in lines:
        if line is None:
            yield None
        elif line.too_long:
            on_fault(f"{name}:{line.number}", _TOO_LONG)
        elif line.content.strip():
            yield Item(f"{name}:{line.number}", line.content)
