"""All subscriptions that deliver by push: each has a pusher while it is not paused."""

import asyncio
from collections.abc import Iterable

import structlog

from sekali.delivery import Delivery, Subscription
from sekali.errors import SekaliError
from sekali.push.health import Health
from sekali.push.pusher import TROUBLE_S, Means, Pusher

REQUESTS_IN_ALL_MAX = 64
FINISH_S = 3.0  # for requests under way when the server stops

log = structlog.get_logger("sekali.push")


class Pushing:
    """Starts and ends pushers as subscriptions come, change and go. Belongs to the event loop."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._pushers: dict[str, tuple[Pusher, asyncio.Task[None]]] = {}
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, ready: asyncio.Event) -> None:
        """Begin once the server is ready. Call once, on the event loop."""
        self._means.subscriptions.on_changed = self.look_again
        self._tasks = [asyncio.create_task(self._keep_up(ready)), asyncio.create_task(self._end_when_stopping())]

    async def stop(self) -> None:
        """End. Requests under way have ``FINISH_S``; what is not answered by then is as if it had not been sent."""
        for task in self._tasks:
            task.cancel()
        running = [task for _, task in self._pushers.values()]
        self._match([])
        if self._means.sending:
            await asyncio.wait(self._means.sending, timeout=FINISH_S)
        left = list(self._means.sending)
        for task in left:
            task.cancel()
        await asyncio.gather(*self._tasks, *running, *left, return_exceptions=True)

    def look_again(self) -> None:
        """Note that subscriptions may have changed."""
        self._changed.set()

    def health(self, name: str) -> Health | None:
        """Return what is known of the endpoint of a subscription, None where nothing is pushed."""
        found = self._pushers.get(name)
        return None if found is None else found[0].health

    def samples(self, name: str) -> dict[str, float]:
        """Return metrics of the endpoint of a subscription by name, none where nothing is pushed."""
        health = self.health(name)
        if health is None:
            return {}
        return {
            "sekali_subscription_endpoint_down": float(health.is_down),
            "sekali_subscription_endpoint_failures": health.failures,
        }

    async def _keep_up(self, ready: asyncio.Event) -> None:
        await ready.wait()
        while True:
            self._changed.clear()
            try:
                self._match(await self._means.subscriptions.all())
            except SekaliError as error:
                log.warning("subscriptions cannot be read, and changes of push wait", reason=str(error))
                await self._means.sleep(TROUBLE_S)
                continue
            await self._changed.wait()

    async def _end_when_stopping(self) -> None:
        """Send nothing new while the server stops."""
        await self._means.stopping.wait()
        self._tasks[0].cancel()
        self._match([])

    def _match(self, subscriptions: Iterable[Subscription]) -> None:
        """Have a pusher for each subscription that is to be pushed, and no other."""
        wanted = {
            one.name: one
            for one in subscriptions
            if one.definition.delivery is Delivery.PUSH and not one.definition.paused
        }
        for name, (pusher, task) in list(self._pushers.items()):
            if name not in wanted or task.done() or not pusher.is_of(wanted[name]):
                task.cancel()
                del self._pushers[name]
        for name in wanted.keys() - self._pushers.keys():
            pusher = Pusher(wanted[name], self._means)
            task = asyncio.create_task(pusher.run())
            task.add_done_callback(self._ended)
            self._pushers[name] = pusher, task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a defect of the server; push begins again", exc_info=error)
            asyncio.get_running_loop().call_later(TROUBLE_S, self.look_again)
