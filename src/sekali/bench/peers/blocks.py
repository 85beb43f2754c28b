"""The same events for systems that are not spoken to over HTTP: in blocks, made outside of the time that counts."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sekali.bench.children import BenchFailed
from sekali.bench.events import EVENT_BYTES, SOURCE, TOPICS, EventMaker, IdKind
from sekali.bench.pauses import WATCH
from sekali.bench.stream import Stream

DUP_RATIO = 0.2
DUP_WINDOW = 10_000
CHUNK = 2000  # duplicates are of events before the chunk
WARMUP_CHUNKS = 1


class Block(NamedTuple):
    """Some events as columns and as JSON, and how many of them are new."""

    topics: list[str]
    event_ids: list[str]
    timestamps_ns: list[int]
    sources: list[str]
    payloads: list[str]
    documents: list[bytes]
    new: int

    def __len__(self) -> int:
        return len(self.topics)

    def part(self, start: int, end: int) -> "Block":
        """Return a part of it; how many of its events are new is not known then."""
        some = slice(start, end)
        return Block(
            self.topics[some],
            self.event_ids[some],
            self.timestamps_ns[some],
            self.sources[some],
            self.payloads[some],
            self.documents[some],
            new=-1,
        )


class PeerRun(NamedTuple):
    """Events acknowledged, and the seconds that took."""

    events: int
    seconds: float

    @property
    def rate(self) -> float:
        """Events acknowledged a second."""
        return self.events / self.seconds


Send = Callable[[Block], int]  # sends a block, waits for every acknowledgement, and returns how many were new


class Blocks:
    """Makes blocks of ids in time order."""

    def __init__(self, seed: int) -> None:
        self._maker = EventMaker(seed, IdKind.UUID7)
        self._stream = Stream(chunk_events=CHUNK, dup_ratio=DUP_RATIO, dup_window=DUP_WINDOW, seed=seed)

    def make(self, chunks: int) -> Block:
        """Make the next block, of ``chunks`` times ``CHUNK`` events."""
        before = self._stream.next
        numbers = np.concatenate([self._stream.chunk() for _ in range(chunks)])
        columns = self._maker.columns(numbers)
        out = np.empty((len(numbers), EVENT_BYTES), np.uint8)
        self._maker.write(numbers, out)
        text = out.tobytes()
        return Block(
            topics=[TOPICS[number] for number in columns.topic_numbers],
            event_ids=columns.event_ids,
            timestamps_ns=columns.timestamps_ns,
            sources=[SOURCE] * len(numbers),
            payloads=[payload.decode() for payload in columns.payloads],
            documents=[text[at : at + EVENT_BYTES] for at in range(0, len(text), EVENT_BYTES)],
            new=self._stream.next - before,
        )


def timed(send: Send, *, seconds: float, chunks: int, notify: Callable[[float], None]) -> PeerRun:
    """Send blocks of ``chunks`` chunks until they have taken ``seconds``, after a warm-up that does not count.

    Raises:
        BenchFailed: it took a duplicate for new, or a new event for a duplicate.

    """
    blocks = Blocks(seed=1)
    _send_checked(send, blocks.make(WARMUP_CHUNKS))
    events, taken_s = 0, 0.0
    while taken_s < seconds:
        block = blocks.make(chunks)
        taken_s += _send_checked(send, block)
        events += len(block)
        notify(min(taken_s / seconds, 1.0))
    return PeerRun(events, taken_s)


def _send_checked(send: Send, block: Block) -> float:
    begun_s = time.perf_counter()
    new = send(block)
    taken_s = WATCH.since_s(begun_s)
    if new != block.new:
        raise BenchFailed(f"of {len(block)} events {block.new} are new, and it says {new}")
    return taken_s
