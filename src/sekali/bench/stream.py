"""What the load sends: which event numbers, in which requests, and what must have become of them in the end."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from sekali.bench.events import EVENT_BYTES, EventMaker, Numbers


class Stream:
    """Event numbers in the order of sending, of which a share repeats earlier ones.

    New events are ``start``, ``start + 1``, … . Of each chunk of ``chunk_events`` exactly ``round(chunk_events *
    dup_ratio)`` are repeats, at random places, drawn evenly from the last ``dup_window`` new events before the chunk,
    or from all since ``oldest`` where that is None.
    """

    def __init__(
        self,
        *,
        chunk_events: int,
        dup_ratio: float,
        dup_window: int | None,
        start: int = 0,
        oldest: int = 0,
        seed: int = 0,
    ) -> None:
        self._chunk_events = chunk_events
        self._repeats = round(chunk_events * dup_ratio)
        self._dup_window = dup_window
        self._oldest = oldest
        self._random = np.random.default_rng([seed, start])
        self.next = start  # the number of the next new event

    def chunk(self) -> Numbers:
        """Return the next chunk [chunk_events]."""
        oldest = self._oldest if self._dup_window is None else max(self.next - self._dup_window, self._oldest)
        repeats = self._repeats if self.next > oldest else 0
        numbers = np.empty(self._chunk_events, np.int64)
        is_repeat = np.zeros(self._chunk_events, np.bool_)
        is_repeat[self._random.permutation(self._chunk_events)[:repeats]] = True
        numbers[is_repeat] = self._random.integers(oldest, self.next, repeats) if repeats else 0
        new = self._chunk_events - repeats
        numbers[~is_repeat] = np.arange(self.next, self.next + new)
        self.next += new
        return numbers


class Request(NamedTuple):
    """A whole HTTP request, and the number of the next new event once it is sent."""

    data: memoryview
    next_new: int


class Requests:
    """Whole HTTP requests of ``batch`` events each; a single event is sent as an object, not as an array.

    They are made from ``chunks`` chunks of the stream at a time, each of a whole number of batches.
    """

    def __init__(self, maker: EventMaker, stream: Stream, *, batch: int, chunks: int, host: str) -> None:
        self._maker = maker
        self._stream = stream
        self._chunks = chunks
        self.batch = batch
        self.body_bytes = EVENT_BYTES if batch == 1 else batch * (EVENT_BYTES + 1) + 1
        head = (
            f"POST /publish HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {self.body_bytes}\r\n\r\n"
        ).encode()
        self._head = np.frombuffer(head, np.uint8)

    def some(self) -> Iterator[Request]:
        """Make the next few requests, together because numpy costs by the call."""
        next_new = self._stream.next
        numbers = np.concatenate([self._stream.chunk() for _ in range(self._chunks)])
        count, head_bytes = len(numbers) // self.batch, len(self._head)
        out = np.empty((count, head_bytes + self.body_bytes), np.uint8)
        out[:, :head_bytes] = self._head
        if self.batch == 1:
            self._maker.write(numbers, out[:, head_bytes:])
        else:
            out[:, head_bytes] = ord("[")
            rows = as_strided(
                out[:, head_bytes + 1 :], (count, self.batch, EVENT_BYTES + 1), (out.strides[0], EVENT_BYTES + 1, 1)
            )
            self._maker.write(numbers.reshape(count, self.batch), rows[..., :EVENT_BYTES])
            rows[..., EVENT_BYTES] = ord(",")
            out[:, -1] = ord("]")
        # New numbers are consecutive, so the highest so far tells how many there are.
        highest = np.maximum.accumulate(numbers.reshape(count, self.batch).max(axis=1))
        width = out.shape[1]
        whole = memoryview(out.reshape(-1).data)
        for place, number in enumerate(np.maximum(highest + 1, next_new).tolist()):
            yield Request(whole[place * width : (place + 1) * width], number)
