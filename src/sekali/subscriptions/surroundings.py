"""What consumers ask for and get, and what all subscriptions share to give it."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from sekali.consumer import COMMIT_TIMEOUT_S, Consumer
from sekali.delivery import Change
from sekali.errors import CommitUnknown, SekaliError
from sekali.ports import EventStore
from sekali.subscriptions.reading import Event

_Result = TypeVar("_Result")
Committing = asyncio.Future[SekaliError | None]  # its result is why a commit failed


@dataclass(frozen=True, slots=True)
class Ask:
    """What a consumer asks for. It waits for the first event until ``until_s``, by the clock of the event loop.

    ``topics_max`` bounds what it holds of an ordered subscription. ``still_wanted``, if any, is called again and again
    while it waits, and raises what ends the wait.
    """

    events_max: int
    until_s: float = 0.0
    lease_s: float | None = None
    topics_max: int = 1
    still_wanted: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Delivered:
    """Events given to a consumer, each with the number of its attempt."""

    lease_id: str
    expires_at_ns: int
    events: list[tuple[Event, int]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all subscriptions share.

    ``clock_ns`` is steady and reads like the wall clock; what ``new_id`` makes cannot be guessed. Nobody begins to wait
    once ``stopping`` is set.
    """

    store: EventStore
    consumer: Consumer
    readers: Executor
    stopping: asyncio.Event
    clock_ns: Callable[[], int]
    new_id: Callable[[], str]

    async def read(self, read: Callable[[], _Result]) -> _Result:
        """Run something that blocks on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, read)

    def submit(self, changes: Sequence[Change], on_done: Callable[[SekaliError | None], None]) -> Committing:
        """Give changes to be committed; ``on_done`` is called then, whatever happens to whoever waits.

        Raises:
            Unavailable: they were not taken.

        """
        future: Committing = asyncio.get_running_loop().create_future()

        def done(failure: SekaliError | None) -> None:
            on_done(failure)
            if not future.done():
                future.set_result(failure)

        self.consumer.change(changes, done)
        return future


async def committed(future: Committing) -> None:
    """Wait for a commit.

    Raises:
        Unavailable: it failed, or whether it did is not known yet.

    """
    try:
        async with asyncio.timeout(COMMIT_TIMEOUT_S):
            failure = await future
    except TimeoutError:
        raise CommitUnknown("a commit is under way for too long; send the request again") from None
    if failure is not None:
        raise failure
