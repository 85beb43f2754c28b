"""One subscription that delivers by push: takes its events as any consumer does, and sends each to the endpoint."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from sekali.delivery import ERROR_CHARS_MAX, LEASE_S_MAX, Definition, Subscription
from sekali.errors import LeaseGone, NoSuchSubscription, SekaliError
from sekali.ports import StoredEvent, Unreadable
from sekali.push.health import Health
from sekali.push.outcome import Failure, retry_delay_s
from sekali.subscriptions.manager import Subscriptions
from sekali.subscriptions.surroundings import Ask, Delivered

WAIT_S = 3600.0  # for an event; then the wait begins again
TROUBLE_S = 1.0  # while the store has trouble, until the next try

log = structlog.get_logger("sekali.push")


@dataclass(frozen=True, slots=True)
class Means:
    """What all pushers share.

    ``clock_ns`` is steady; ``random_share`` gives numbers in [0, 1). ``slots`` are the requests under way at once.
    ``sending`` holds what is under way, which goes on when its pusher ends.
    """

    subscriptions: Subscriptions
    send: Callable[[Definition, StoredEvent], Awaitable[Failure | None]]
    stopping: asyncio.Event
    clock_ns: Callable[[], int]
    sleep: Callable[[float], Awaitable[object]]
    random_share: Callable[[], float]
    slots: asyncio.Semaphore
    pause_after_s: float
    sending: set["asyncio.Task[None]"] = field(default_factory=set)


class Pusher:
    """Delivers one subscription as it was defined at that time. Another definition gets another pusher."""

    def __init__(self, subscription: Subscription, means: Means) -> None:
        self.health = Health()
        self._subscription = subscription
        self._means = means
        self._sending: set[asyncio.Task[None]] = set()
        self._log = log.bind(subscription=subscription.name, url=subscription.definition.url)

    def is_of(self, subscription: Subscription) -> bool:
        """Whether it delivers this subscription, defined so."""
        mine = self._subscription
        return (mine.created_at_ns, mine.definition) == (subscription.created_at_ns, subscription.definition)

    async def run(self) -> None:
        """Deliver until the server stops, the subscription is deleted, or this is cancelled.

        What is under way then is left to its end.
        """
        name, subscriptions = self._subscription.name, self._means.subscriptions
        while not self._means.stopping.is_set():
            # The lease ends with the server at the latest, so it has to be no shorter than any request.
            ask = Ask(1, asyncio.get_running_loop().time() + WAIT_S, LEASE_S_MAX)
            try:
                delivered = await subscriptions.pull(name, ask)
            except NoSuchSubscription:
                return
            except SekaliError as error:
                self._log.warning("events cannot be read, and are not pushed", reason=str(error))
                await self._means.sleep(TROUBLE_S)
                continue
            if delivered is not None:
                await self._hand_over(delivered)

    async def _hand_over(self, delivered: Delivered) -> None:
        """Let an event be sent once it is its turn."""
        try:
            await self._turn()
            await self._means.slots.acquire()
        except BaseException:
            self._means.subscriptions.release(self._subscription.name, delivered.lease_id)
            raise
        task = asyncio.create_task(self._deliver(delivered))
        for tasks in (self._sending, self._means.sending):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _turn(self) -> None:
        """Wait until the endpoint may get another request."""
        while True:
            if len(self._sending) >= self.health.window:
                await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
            elif (wait_s := self.health.wait_s(self._means.clock_ns())) > 0:
                await self._means.sleep(wait_s)
            else:
                return

    async def _deliver(self, delivered: Delivered) -> None:
        """Send an event, and settle it by what comes of that."""
        name, subscriptions = self._subscription.name, self._means.subscriptions
        ((event, attempt),) = delivered.events
        try:
            try:
                if not self.is_of(await subscriptions.get(name)):
                    return
                # Perhaps somebody sought another place meanwhile, or the store failed: then the lease is void.
                await subscriptions.extend(name, delivered.lease_id, LEASE_S_MAX)
                failure = await self._send(event)
            finally:
                self._means.slots.release()
            if failure is None:
                await subscriptions.acknowledge(name, delivered.lease_id, [event.seq])
            elif isinstance(event, Unreadable) or await self._is_of_event(event.seq, attempt, failure):
                delay_s = retry_delay_s(attempt, failure, self._means.random_share())
                error = failure.error[:ERROR_CHARS_MAX]
                await subscriptions.give_back(name, delivered.lease_id, [event.seq], delay_s, error)
        except (LeaseGone, NoSuchSubscription):
            self._log.debug("the event is not to be pushed any more", seq=event.seq)
        except SekaliError as error:  # it comes again
            self._log.warning("what came of a push cannot be stored", seq=event.seq, reason=str(error))
        finally:
            subscriptions.release(name, delivered.lease_id)  # of what is settled it holds nothing any more

    async def _send(self, event: StoredEvent | Unreadable) -> Failure | None:
        if isinstance(event, Unreadable):
            return Failure(f"the event cannot be read back: {event.error}")
        try:
            failure = await self._means.send(self._subscription.definition, event)
        except Exception as error:
            self._log.exception("a defect of the server", seq=event.seq)
            return Failure(f"a defect of the server: {error!r}")
        if failure is None:
            if self.health.is_down:
                self._log.info("the endpoint answers again", failures=self.health.failures)
            self.health.succeeded(self._means.clock_ns())
        return failure

    async def _is_of_event(self, seq: int, attempt: int, failure: Failure) -> bool:
        """Note what it says of the endpoint, and return whether it is a failed attempt of the event."""
        health, now_ns, was_down = self.health, self._means.clock_ns(), self.health.is_down
        counts = health.failed(failure, now_ns, self._means.random_share())
        self._log.debug("a push failed", seq=seq, attempt=attempt, error=failure.error, counts=counts)
        if health.is_down and not was_down:
            self._log.warning("the endpoint is down", failures=health.failures, error=failure.error)
        if (reason := health.reason_to_pause(failure, now_ns, self._means.pause_after_s)) is not None:
            self._log.warning("paused: PUT it with paused false when it is mended", reason=reason)
            await self._means.subscriptions.pause(self._subscription, reason)
        return counts
