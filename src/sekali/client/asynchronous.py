"""The publisher for asyncio: the same publisher, awaited."""

import asyncio
from typing import Any, Self, Unpack

from sekali.client.delivery import Delivery
from sekali.client.events import Event, EventFields
from sekali.client.publisher import CLOSE_S, FLUSH_S, Counts, Publisher


class AsyncPublisher:
    """A publisher whose waiting does not stop the event loop. Batching and sending are the publisher's own.

    Args:
        publisher: closed by ``close``. Others, threads as well, may use it at the same time.

    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def publish(self, topic: str, payload: Any, **fields: Unpack[EventFields]) -> Delivery:
        """Publish an event as ``Publisher.publish`` does. Await what it returns for the verdict.

        A task that is cancelled while it waits for room takes the event back, unless it is under way already.
        """
        return await self.publish_event(self._publisher.new_event(topic, payload, **fields))

    async def publish_event(self, event: Event) -> Delivery:
        """Publish an event that was made before."""
        entry = self._publisher.offer(event)
        if entry.accepted is not None:
            try:
                await asyncio.wrap_future(entry.accepted)
            except BaseException:
                self._publisher.withdraw(entry)
                raise
        return entry.delivery

    def counts(self) -> Counts:
        """Return what was done so far."""
        return self._publisher.counts()

    async def flush(self, timeout_s: float = FLUSH_S) -> bool:
        """Wait until everything published so far has its verdict or was dropped; tell whether that is so."""
        return await asyncio.to_thread(self._publisher.flush, timeout_s)

    async def close(self, timeout_s: float = CLOSE_S) -> bool:
        """Publish no more, wait for what is left, and end; see ``Publisher.close``."""
        return await asyncio.to_thread(self._publisher.close, timeout_s)
