"""The publisher's real input: files and standard input, as events."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sekali.client.batches import FLUSH_AFTER_S, REQUEST_BYTES_MAX
from sekali.client.errors import InputFailed
from sekali.client.lines import (
    LINE_BYTES_MAX,
    Fault,
    Item,
    Line,
    PlaceIds,
    line_events,
    ndjson_events,
    read_chunks,
    split_lines,
)
from sekali.client.timepattern import TimePattern
from sekali.client.uuid7 import Uuid7

STDIN = Path("-")
STDIN_FD = 0


@dataclass(frozen=True, slots=True)
class Input:
    """One file, or standard input, and how to read it. Only plain lines have a topic, a source and a time pattern."""

    path: Path
    ndjson: bool
    topic: str = ""
    source: str = ""
    time_pattern: TimePattern | None = None

    @property
    def is_stdin(self) -> bool:
        """Whether it is standard input."""
        return self.path == STDIN

    def items(self, chunks: Iterator[bytes], refuse: Fault) -> Iterator[Item | None]:
        """Return the events in the chunks."""
        name = "stdin" if self.is_stdin else str(self.path)
        if self.ndjson:
            return ndjson_events(split_lines(chunks, REQUEST_BYTES_MAX), name=name, on_fault=refuse)
        return line_events(
            split_lines(chunks, LINE_BYTES_MAX),
            _new_ids() if self.is_stdin else PlaceIds(),
            self.topic,
            self.source,
            name=name,
            on_fault=refuse,
            time_pattern=self.time_pattern,
        )


def _new_ids() -> Callable[[Line], str]:
    """Return ids for lines that have no place to come back to."""
    new_id = Uuid7()
    return lambda _: new_id()


def source_of(path: Path) -> str:
    """Return the source that a file's lines have by default. A name that is not UTF-8 still has to become text."""
    return "stdin" if path == STDIN else os.fsencode(path.name).decode(errors="backslashreplace")


def size_bytes(inputs: list[Input]) -> int | None:
    """Return how much there is to read, None where that is not known."""
    if any(entry.is_stdin or not entry.path.is_file() for entry in inputs):
        return None
    return sum(entry.path.stat().st_size for entry in inputs)


def input_items(
    inputs: list[Input], refuse: Fault, advance: Callable[[int], None], is_stopped: Callable[[], bool]
) -> Iterator[Item | None]:
    """Yield the events of all inputs, one input after another, until there are no more or it is stopped.

    ``advance`` is told how many bytes were read.

    Raises:
        InputFailed: a file cannot be read.

    """
    for entry in inputs:
        try:
            with _opened(entry) as fd:
                yield from entry.items(_watched(read_chunks(fd, FLUSH_AFTER_S), advance, is_stopped), refuse)
        except OSError as error:
            raise InputFailed(f"cannot read {entry.path}: {error.strerror}") from error


@contextmanager
def _opened(entry: Input) -> Iterator[int]:
    if entry.is_stdin:
        yield STDIN_FD
        return
    fd = os.open(entry.path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def _watched(
    chunks: Iterator[bytes], advance: Callable[[int], None], is_stopped: Callable[[], bool]
) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        if is_stopped():
            return
        advance(len(chunk))
