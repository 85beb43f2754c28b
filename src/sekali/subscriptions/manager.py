"""All subscriptions of a server: what is done with them by name."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import TypeVar

import msgspec

from sekali.consumer import Consumer
from sekali.delivery import (
    FIXED,
    SECRET_FORM,
    Alter,
    Create,
    DeadLetter,
    Definition,
    Delete,
    Delivery,
    Pause,
    Place,
    Seek,
    Subscription,
)
from sekali.errors import (
    InvalidQuery,
    NoSuchSubscription,
    PositionGone,
    SekaliError,
    StoreBroken,
    SubscriptionDiffers,
    TooManySubscriptions,
    Unavailable,
)
from sekali.ports import EventStore
from sekali.subscriptions.awake import Awake, Replaced
from sekali.subscriptions.consumed import Consumed
from sekali.subscriptions.lane import Counts
from sekali.subscriptions.status import Status
from sekali.subscriptions.surroundings import Ask, Delivered, Surroundings, committed
from sekali.timestamps import parse_timestamp

LAG_MAX = 100_000  # counted of one subscription
SAMPLED_MAX = 50

_Result = TypeVar("_Result")


class Subscriptions:
    """The subscriptions over one store. Belongs to the event loop on which it is started.

    ``clock_ns`` is steady and reads like the wall clock. ``new_id`` makes ids that cannot be guessed. What reads runs
    on ``readers``. ``stopping`` ends what waits.
    """

    def __init__(
        self,
        store: EventStore,
        readers: Executor,
        stopping: asyncio.Event,
        clock_ns: Callable[[], int],
        new_id: Callable[[], str],
        *,
        subscriptions_max: int,
    ) -> None:
        self._store = store
        self._readers = readers
        self._stopping = stopping
        self._clock_ns = clock_ns
        self._new_id = new_id
        self._subscriptions_max = subscriptions_max
        self._known: dict[str, Subscription] | None = None  # None: what is stored has to be looked up
        self._changes = 0  # that were committed, or may have been
        self._changes_under_way = 0
        self._counts: dict[str, Counts] = {}
        self._changing = asyncio.Lock()  # definitions and positions; nobody wakes meanwhile
        self.on_changed: Callable[[], None] = lambda: None  # called after each change of definitions or positions

    def start(self, consumer: Consumer) -> None:
        """Begin, with a consumer that tells ``on_stored`` what it stores. Call once, on the event loop."""
        self._around = Surroundings(self._store, consumer, self._readers, self._stopping, self._clock_ns, self._new_id)
        self._consumed = Consumed(self._around)
        self._tasks = [asyncio.create_task(self._end_waits()), asyncio.create_task(self._consumed.let_sleep())]

    async def stop(self) -> None:
        """End what goes on by itself."""
        for task in self._tasks:
            task.cancel()
        for awake in self._consumed:
            awake.end()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    def stored(self, head: int, lists: Iterable[Sequence[str]]) -> None:
        """See ``Consumed.stored``."""
        self._consumed.stored(head, lists)

    def look_again(self) -> None:
        """See ``Consumed.look_again``."""
        self._consumed.look_again()

    # Definitions.

    async def all(self) -> list[Subscription]:
        """Return all of them, by name.

        Raises:
            StoreBroken, Unavailable: the store cannot be read.

        """
        known = await self._read_known()
        return [known[name] for name in sorted(known)]

    async def get(self, name: str) -> Subscription:
        """Return one.

        Raises:
            NoSuchSubscription: there is none of that name.
            StoreBroken, Unavailable: the store cannot be read, or it is damaged.

        """
        subscription = await self.find(name)
        if subscription.fault is not None:
            raise StoreBroken(subscription.fault)
        return subscription

    async def find(self, name: str) -> Subscription:
        """Return one, also where it is damaged. Raises as ``get`` does otherwise."""
        subscription = (await self._read_known()).get(name)
        if subscription is None:
            raise NoSuchSubscription(f"there is no subscription {name}")
        return subscription

    async def put(self, name: str, definition: Definition) -> bool:
        """Make a subscription, or change what may change of it; return whether it is new. Both are valid.

        Raises:
            SubscriptionDiffers: it exists with something else that cannot be changed.
            TooManySubscriptions: there is no room for another.
            InvalidQuery: its start is not a time, or its secret is missing.
            PositionGone: it starts above the head of the log.
            SekaliError: it cannot be stored.

        """
        async with self._changing:
            self._require_nothing_under_way()
            known = await self._read_known()
            old = known.get(name)
            if old is not None and old.fault is not None:
                raise StoreBroken(old.fault)
            if old is None:
                if len(known) >= self._subscriptions_max:
                    raise TooManySubscriptions(
                        f"there are {len(known)} subscriptions, and at most {self._subscriptions_max} may be "
                        "(SUBSCRIPTIONS_MAX); delete one that is of no use any more"
                    )
                if definition.delivery is Delivery.PUSH and definition.secret is None:
                    raise InvalidQuery("secret", f"is missing: push signs with it; it {SECRET_FORM}")
                position = await self._position(definition.start)
                new = Subscription(name, definition, position, self._clock_ns())
                await self._commit(Create(new))
                return True
            if differing := [field for field in FIXED if getattr(old.definition, field) != getattr(definition, field)]:
                raise SubscriptionDiffers(
                    f"the subscription {name} exists with another {', '.join(differing)}, which cannot be changed: "
                    "delete it first, choose another name, or use seek to go to another place"
                )
            if definition.secret is None:  # it is not shown, so whoever sends back what is shown has none
                definition = msgspec.structs.replace(definition, secret=old.definition.secret)
            if old.definition != definition:
                await self._commit(Alter(name, definition, old.pause if definition.paused else None))
            return False

    async def pause(self, subscription: Subscription, reason: str) -> None:
        """Deliver nothing of a subscription any more and keep why, unless it was altered meanwhile.

        Raises:
            NoSuchSubscription: it was deleted.
            SekaliError: it cannot be stored.

        """
        async with self._changing:
            self._require_nothing_under_way()
            name, definition = subscription.name, subscription.definition
            current = await self.get(name)
            if (current.created_at_ns, current.definition) == (subscription.created_at_ns, definition):
                paused = msgspec.structs.replace(definition, paused=True)
                await self._commit(Alter(name, paused, Pause(reason, self._clock_ns())))

    async def delete(self, name: str) -> None:
        """Delete a subscription with all that is kept of it.

        Raises:
            NoSuchSubscription: there is none of that name.
            SekaliError: that cannot be stored.

        """
        async with self._changing:
            self._require_nothing_under_way()
            await self.find(name)
            self._consumed.end(name)
            await self._commit(Delete(name))
            self._counts.pop(name, None)

    async def seek(self, name: str, place: Place) -> int:
        """Go on from another place, whatever became of the events before; return the seq up to which all is settled.

        Leases are void, and dead letters from there on are none any more.

        Raises:
            NoSuchSubscription, InvalidQuery, PositionGone, SekaliError: see ``put``.

        """
        async with self._changing:
            self._require_nothing_under_way()
            await self.get(name)
            position = await self._position(place)
            self._consumed.end(name)
            await self._commit(Seek(name, position))
            return position

    async def _read_known(self) -> dict[str, Subscription]:
        while self._known is None:
            changes = self._changes
            is_sure = self._around.consumer.trouble is None
            found = {one.name: one for one in await self._around.read(self._store.subscriptions)}
            if changes == self._changes and not is_sure:
                return found
            if changes == self._changes:
                self._known = found
        return self._known

    async def _commit(self, change: Create | Alter | Delete | Seek) -> None:
        def done(failure: SekaliError | None) -> None:
            self._known = None
            self._changes += 1
            self._changes_under_way -= 1
            # Here, because whoever asked for it may not wait for the commit to its end.
            if failure is None and isinstance(change, Alter) and (awake := self._consumed.get(change.name)) is not None:
                awake.alter(change.definition)
            self.on_changed()

        committing = self._around.submit([change], done)
        self._changes_under_way += 1
        await committed(committing)

    def _require_nothing_under_way(self) -> None:
        """Refuse to build on a change whose commit nobody waited for to its end."""
        self._around.consumer.require_working()
        if self._changes_under_way:
            raise Unavailable("a change of subscriptions is under way; send the request again")

    async def _position(self, start: str | Place) -> int:
        if start == "earliest":
            return 0
        head = (await self._around.read(self._store.summary)).head
        if not isinstance(start, Place):
            return head
        if start.seq is not None:
            if start.seq > head + 1:
                raise PositionGone(
                    f"seq {start.seq} is above the newest event, {head}; at most {head + 1} can come next"
                )
            return start.seq - 1
        try:
            time_ns = parse_timestamp(start.time or "")
        except ValueError as error:
            raise InvalidQuery("time", str(error)) from None
        return await self._around.read(lambda: self._store.first_seq_at(time_ns)) - 1

    # Consuming.

    async def pull(self, name: str, ask: Ask) -> Delivered | None:
        """Lease events to a consumer; None where there were none within the time to wait.

        Raises:
            NoSuchSubscription: there is none of that name.
            SekaliError: events cannot be read; or what ``ask.still_wanted`` raises.

        """
        return await self._with(name, lambda awake: awake.pull(ask))

    async def acknowledge(self, name: str, lease_id: str, seqs: Sequence[int]) -> list[int]:
        """See ``Awake.acknowledge``. Raises as ``pull`` does."""
        return await self._with(name, lambda awake: awake.acknowledge(lease_id, seqs))

    async def give_back(self, name: str, lease_id: str, seqs: Sequence[int], delay_s: float, error: str) -> list[int]:
        """See ``Awake.give_back``. Raises as ``pull`` does."""
        return await self._with(name, lambda awake: awake.give_back(lease_id, seqs, delay_s, error))

    async def extend(self, name: str, lease_id: str, lease_s: float | None) -> tuple[int, list[int]]:
        """See ``Awake.extend``. Raises as ``pull`` does, and ``LeaseGone``."""
        return (await self._wake(name)).extend(lease_id, lease_s)

    def release(self, name: str, lease_id: str) -> None:
        """Take back a lease that nobody got."""
        if (awake := self._consumed.get(name)) is not None:
            awake.release(lease_id)

    async def replay(self, name: str, seqs: Sequence[int] | None) -> tuple[list[int], bool]:
        """See ``Awake.replay``. Raises as ``pull`` does."""
        return await self._with(name, lambda awake: awake.replay(seqs))

    async def drop(self, name: str, seqs: Sequence[int] | None) -> None:
        """See ``Awake.drop``. Raises as ``pull`` does."""
        await self._with(name, lambda awake: awake.drop(seqs))

    async def dead_letters(self, name: str, after: int, limit: int) -> list[DeadLetter]:
        """Return dead letters by number, from behind ``after``.

        Raises:
            StoreBroken, Unavailable: the store cannot be read.

        """
        return await self._around.read(lambda: self._store.dead_letters(name, after, limit))

    async def status(self, name: str, lag_max: int) -> Status:
        """Return the figures of one; counting of the lag ends at ``lag_max``.

        Raises:
            StoreBroken, Unavailable: the store cannot be read.

        """
        figures = await self._around.read(lambda: self._store.figures(name, lag_max))
        awake = self._consumed.get(name)
        in_flight, waiting = (0, 0) if awake is None else (awake.lanes.in_flight, awake.lanes.waiting)
        return Status(figures, self._clock_ns(), in_flight, waiting, self._counts.get(name) or Counts())

    async def samples(self) -> dict[str, dict[str, float]]:
        """Return metrics by subscription, for the first ``SAMPLED_MAX`` by name of which they can be read.

        Raises:
            StoreBroken, Unavailable: the store cannot be read.

        """
        found: dict[str, dict[str, float]] = {}
        for subscription in (await self.all())[:SAMPLED_MAX]:
            with suppress(StoreBroken):
                samples = (await self.status(subscription.name, LAG_MAX)).samples()
                paused = float(subscription.definition.paused)
                found[subscription.name] = samples | {"sekali_subscription_paused": paused}
        return found

    async def _with(self, name: str, act: Callable[[Awake], Awaitable[_Result]]) -> _Result:
        while True:
            try:
                return await act(await self._wake(name))
            except Replaced:
                continue

    async def _wake(self, name: str) -> Awake:
        """Return a subscription with its lanes, read from the store where nobody consumed it lately."""
        if (awake := self._consumed.get(name)) is not None:
            return awake
        async with self._changing:
            if (awake := self._consumed.get(name)) is not None:
                return awake
            self._require_nothing_under_way()
            subscription = await self.get(name)
            return await self._consumed.wake(subscription, self._counts.setdefault(name, Counts()))

    async def _end_waits(self) -> None:
        await self._stopping.wait()
        for awake in self._consumed:
            awake.end_waits()
