"""What became of an event: the server's verdict, and the handle by which a publisher waits for it."""

from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from sekali.client.errors import ClientError, NotSekali

DELIVERED = "delivered"
"""The outcome of an event that another process delivered, out of an outbox that the two share."""
_GOOD = frozenset({"stored", "duplicate", DELIVERED})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the server said of one event.

    ``outcome`` is ``stored``, ``duplicate`` (same identity, same content), ``conflict`` (same identity, other content)
    or ``invalid``. ``seq`` is the event's place in the log, that of the first if it was there before; None where there
    is none or it is not known. ``error`` says what to change in an invalid event.
    """

    outcome: str
    seq: int | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the event is in the log, stored now or before."""
        return self.outcome in _GOOD

    def __str__(self) -> str:
        more = self.error if self.error is not None else f"seq {self.seq}"
        return f"{self.outcome}: {more}"


def read_verdict(result: Any) -> Verdict:
    """Return a verdict from an item of ``results``.

    Raises:
        NotSekali: it is none.

    """
    if not isinstance(result, Mapping) or not isinstance(result.get("outcome"), str):
        raise NotSekali("the answer does not say what became of each event. Check the URL")
    return Verdict(result["outcome"], result.get("seq"), result.get("error"))


def running_future() -> "Future[Any]":
    """Return a future that nobody can cancel: what is under way is not taken back by not waiting for it."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


class Delivery:
    """An event on its way. Wait for its verdict with ``result``, or with ``await`` in asyncio; or do not.

    An event published before a fork is delivered by the parent, and the child is not told what became of it.
    """

    __slots__ = ("__weakref__", "_future", "event_id", "topic")

    def __init__(self, topic: str, event_id: str) -> None:
        self.topic = topic
        self.event_id = event_id
        self._future: Future[Verdict] = running_future()

    def result(self, timeout_s: float | None = None) -> Verdict:
        """Wait for the verdict.

        Raises:
            TimeoutError: it did not come in time. It still may.
            ClientError: there will be none: the event was dropped (``BufferFull``), given up (``Unreachable``), refused
                (``Refused``, ``NotSekali``), or left over when the publisher was closed (``PublisherClosed``).

        """
        return self._future.result(timeout_s)

    def done(self) -> bool:
        """Tell whether ``result`` would return or raise at once."""
        return self._future.done()

    def add_done_callback(self, callback: Callable[["Delivery"], object]) -> None:
        """Call back when it is done, on a thread of the publisher; at once if it is. Do not wait in there."""
        self._future.add_done_callback(lambda _: callback(self))

    def __await__(self) -> Generator[Any, None, Verdict]:
        import asyncio  # noqa: PLC0415 - a program of threads does without

        return asyncio.wrap_future(self._future).__await__()

    def settle(self, verdict: Verdict) -> None:
        """Tell the verdict. For the publisher; the first to say how it ended is believed."""
        if not self._future.done():
            self._future.set_result(verdict)

    def fail(self, error: ClientError) -> None:
        """Tell that there will be no verdict. For the publisher, as ``settle``."""
        if not self._future.done():
            self._future.set_exception(error)
