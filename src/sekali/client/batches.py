"""Events gathered into requests, and sent."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from sekali.client.errors import TooLarge
from sekali.client.http import Answer, Server
from sekali.client.lines import Item

REQUEST_BYTES_MAX = 4 * 1024 * 1024
FLUSH_AFTER_S = 0.2


class Sendable(Protocol):
    """What can be part of a request. ``event`` is a JSON object on one line."""

    @property
    def event(self) -> bytes: ...


T = TypeVar("T", bound=Sendable)


def batches(
    items: Iterable[Item | None],
    events_max: int,
    *,
    bytes_max: int = REQUEST_BYTES_MAX,
    flush_after_s: float = FLUSH_AFTER_S,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[list[Item]]:
    """Yield items in order, at most ``events_max`` and about ``bytes_max`` bytes at a time (one larger item alone).

    None among the items says that none came for a while. A batch does not wait for company longer than
    ``flush_after_s`` beyond that.
    """
    batch: list[Item] = []
    batch_bytes = 0
    started_s = 0.0
    for item in items:
        if item is not None:
            if batch and batch_bytes + len(item.event) > bytes_max:
                yield batch
                batch, batch_bytes = [], 0
            if not batch:
                started_s = clock()
            batch.append(item)
            batch_bytes += len(item.event) + 1
        if len(batch) >= events_max or (batch and clock() - started_s >= flush_after_s):
            yield batch
            batch, batch_bytes = [], 0
    if batch:
        yield batch


def publish_batch(server: Server, batch: list[T]) -> Iterator[tuple[list[T], Answer]]:
    """Publish a batch, in halves as often as the server finds it too large. Yields each part and its answer.

    An event that is too large all alone is answered ``invalid``.

    Raises:
        ClientError: see ``Server.publish``; what was yielded before is settled.

    """
    try:
        yield batch, server.publish([item.event for item in batch])
        return
    except TooLarge as error:
        if len(batch) == 1:
            verdict = {"outcome": "invalid", "error": str(error)}
            yield batch, Answer(0, 0, 0, 0, 1, [verdict], latency_s=0.0)
            return
    half = len(batch) // 2
    yield from publish_batch(server, batch[:half])
    yield from publish_batch(server, batch[half:])


class Pace:
    """Keeps to a rate.

    Args:
        per_second: at most so many a second, on average over any while.
        clock: monotonic seconds.
        sleep: waits for so many seconds.

    """

    def __init__(
        self,
        per_second: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._per_second = per_second
        self._clock = clock
        self._sleep = sleep
        self._due_s = clock()

    def wait_for(self, count: int) -> None:
        """Wait until it is time for the next ``count``. Time that went by unused is not made up for."""
        now_s = self._clock()
        if now_s < self._due_s:
            self._sleep(self._due_s - now_s)
        self._due_s = max(now_s, self._due_s) + count / self._per_second
