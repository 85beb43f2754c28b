"""A subscription that is being consumed: its lanes in memory, and around them reading, waiting and committing."""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sekali.delivery import Change, DeadLetter, Definition, Forget, Ordering, PendingLane, Progress, Subscription
from sekali.errors import LeaseGone, QueueFull, SekaliError, Unavailable
from sekali.subscriptions.lane import Counts, Settlement, Want
from sekali.subscriptions.lanes import Lanes
from sekali.subscriptions.reading import read_lanes, topics_of
from sekali.subscriptions.surroundings import Ask, Committing, Delivered, Surroundings, committed
from sekali.topics import compile_pattern

LANES_AT_ONCE = 100  # of one consumer, where the order does not matter
LOOK_INTERVAL_S = 1.0  # while a consumer waits: whether it may still
REPLAYED_AT_ONCE = 1000


class Replaced(Exception):
    """The object is out of date: what it stood for was changed, or is not in use. Take another one."""


@dataclass(slots=True, eq=False)
class _Waiter:
    ask: Ask
    future: "asyncio.Future[list[Want]]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Awake:
    """One subscription with its lanes. Belongs to the event loop.

    It comes to an ``end`` when what is stored is not what it knows any more, or nobody uses it.
    """

    def __init__(
        self,
        subscription: Subscription,
        around: Surroundings,
        head: int,
        pending: Iterable[PendingLane],
        counts: Counts,
    ) -> None:
        self.name = subscription.name
        self.definition = subscription.definition
        self._around = around
        self._matches = compile_pattern(self.definition.topic).fullmatch
        self._is_ordered = self.definition.order is Ordering.TOPIC
        self.lanes = Lanes(
            exclusive=self._is_ordered,
            max_attempts=self.definition.max_attempts,
            head=head,
            pending=pending,
            counts=counts,
            now_ns=around.clock_ns(),
        )
        self._waiters: deque[_Waiter] = deque()
        self._ended: Exception | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0  # by the clock of the loop; a handle of uvloop need not tell
        self._burying = asyncio.Lock()  # dead letters are changed one after the other
        self.used_at_ns = around.clock_ns()
        self._arm()

    @property
    def is_in_use(self) -> bool:
        """Whether somebody waits or holds events, or something is on its way to the disk."""
        return bool(self._waiters) or self.lanes.in_flight > 0 or self.lanes.is_committing

    def wants(self, topic: str) -> bool:
        """Whether events of a topic belong to it."""
        return self._matches("/" + topic) is not None

    def stored(self, head: int, topics: Iterable[str]) -> None:
        """Note that events of its topics were stored."""
        self.lanes.stored(head, topics, self._around.clock_ns())
        self._serve()

    def alter(self, definition: Definition) -> None:
        """Go on with another definition of the same position."""
        self.definition = definition
        self.lanes.max_attempts = definition.max_attempts
        self._serve()

    def end(self, reason: Exception | None = None) -> None:
        """Be of no use any more. Whoever waits is told the reason, or to take another object."""
        if self._ended is None:
            self._ended = reason or Replaced()
            if self._timer is not None:
                self._timer.cancel()
            for waiter in self._waiters:
                waiter.future.set_exception(self._ended)
            self._waiters.clear()

    @property
    def has_ended(self) -> bool:
        """Whether it is of no use any more."""
        return self._ended is not None

    def end_waits(self) -> None:
        """Let whoever waits go with nothing."""
        for waiter in self._waiters:
            waiter.future.set_result([])
        self._waiters.clear()

    # Taking.

    async def pull(self, ask: Ask) -> Delivered | None:
        """Lease events; None where there were none within the time to wait.

        Raises:
            Replaced: take another object.
            SekaliError: it cannot be read, or what was under way failed; or what ``ask.still_wanted`` raises.

        """
        self.used_at_ns = self._around.clock_ns()
        woken_for_nothing = False
        while True:
            wants = await self._wants(ask, first=woken_for_nothing)
            if not wants:
                return None
            delivered = await self._lease(ask, wants)
            if delivered is not None:
                return delivered
            woken_for_nothing = True

    async def _wants(self, ask: Ask, *, first: bool) -> list[Want]:
        """Wait for one's turn, and for lanes that have something; nothing where the time is over."""
        self._require_current()
        if self._around.stopping.is_set():
            return []
        waiter = _Waiter(ask)
        if first:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        self._serve()
        try:
            while not waiter.future.done():
                left_s = ask.until_s - asyncio.get_running_loop().time()
                if left_s <= 0:
                    return []
                if ask.still_wanted is None:
                    await asyncio.wait([waiter.future], timeout=left_s)
                    continue
                await asyncio.wait([waiter.future], timeout=min(left_s, LOOK_INTERVAL_S))
                if not waiter.future.done():
                    ask.still_wanted()
            return waiter.future.result()
        except asyncio.CancelledError:
            if waiter.future.done() and waiter.future.exception() is None:
                self._put_back(waiter.future.result())
            raise
        finally:
            if not waiter.future.done():
                self._waiters.remove(waiter)
                waiter.future.cancel()

    def _serve(self) -> None:
        """Give lanes to those who wait, in the order they came."""
        now_ns = self._around.clock_ns()
        while self._waiters and not self.definition.paused and self._ended is None:
            ask = self._waiters[0].ask
            wants = self.lanes.take(ask.topics_max if self._is_ordered else LANES_AT_ONCE, ask.events_max, now_ns)
            if not wants:
                return
            self._waiters.popleft().future.set_result(wants)

    async def _lease(self, ask: Ask, wants: list[Want]) -> Delivered | None:
        around = self._around
        try:
            taken = await around.read(lambda: read_lanes(around.store, wants, ask.events_max))
        except BaseException:
            self._put_back(wants)
            raise
        self._require_current()
        now_ns = around.clock_ns()
        expires_at_ns = now_ns + round((ask.lease_s or self.definition.lease_seconds) * 1e9)
        self.lanes.put_back(reversed(wants[len(taken) :]), now_ns)
        lease = self.lanes.lease(around.new_id(), [one.found for one in taken], expires_at_ns, now_ns)
        self._arm()
        self._serve()
        if lease is None:
            return None
        events = [(event, one.want.attempts.get(event.seq, 1)) for one in taken for event in one.events]
        return Delivered(lease.id, expires_at_ns, events)

    def _put_back(self, wants: list[Want]) -> None:
        if self._ended is None:
            self.lanes.put_back(reversed(wants), self._around.clock_ns())
            self._serve()

    # What consumers say.

    async def acknowledge(self, lease_id: str, seqs: Sequence[int]) -> list[int]:
        """Settle events, durably; return those that the lease did not hold and that are not settled either.

        Raises:
            Replaced, SekaliError: see ``pull``.

        """
        self._begin()
        lost, settlement = self.lanes.acknowledge(lease_id, seqs)
        commit = None if settlement is None else self._commit(settlement)
        if lost:  # perhaps the answer to the first acknowledgement was lost
            lost, settled = await self._look_for(lost)
            if settled and commit is None and self.lanes.is_committing:
                commit = self._around.submit([], self._end_if_failed)  # whatever is on its way comes before
        if commit is not None:
            await committed(commit)
        return lost

    async def give_back(self, lease_id: str, seqs: Sequence[int], delay_s: float, error: str) -> list[int]:
        """Count a failed attempt for events, durably; return those that the lease does not hold.

        Raises:
            Replaced, SekaliError: see ``pull``.

        """
        self._begin()
        now_ns = self._around.clock_ns()
        due_at_ns = now_ns + round(delay_s * 1e9)
        lost, settlement = self.lanes.give_back(lease_id, seqs, due_at_ns, error, now_ns)
        if settlement is not None:
            await committed(self._commit(settlement))
        return lost

    def extend(self, lease_id: str, lease_s: float | None) -> tuple[int, list[int]]:
        """Let a lease run out at another time, counted from now; return that and what it holds.

        Raises:
            Replaced: take another object.
            LeaseGone: there is no such lease.

        """
        self._require_current()
        expires_at_ns = self._around.clock_ns() + round((lease_s or self.definition.lease_seconds) * 1e9)
        held = self.lanes.extend(lease_id, expires_at_ns)
        if held is None:
            raise LeaseGone("the lease ran out, or all that it held is settled; pull again")
        self._arm()
        return expires_at_ns, held

    def release(self, lease_id: str) -> None:
        """Take back what nobody got."""
        if self._ended is None:
            self.lanes.release(lease_id, self._around.clock_ns())
            self._serve()

    async def replay(self, seqs: Sequence[int] | None) -> tuple[list[int], bool]:
        """Let dead letters be given again; return which, and whether there may be more.

        Raises:
            QueueFull: too many events are given out or wait to be given again.
            Replaced, SekaliError: see ``pull``.

        """
        around = self._around
        async with self._burying:
            self._begin()
            dead = await around.read(lambda: around.store.dead_letters(self.name, 0, REPLAYED_AT_ONCE, seqs))
            self._begin()
            if not dead:
                return [], False
            settlement = self.lanes.reopen(_by_topic(dead))
            if settlement is None:
                raise QueueFull("too many events of the subscription are open; let some be acknowledged first")
            found = [one.seq for one in dead]
            await committed(self._commit(settlement, Forget(self.name, found)))
            return found, len(found) == REPLAYED_AT_ONCE

    async def drop(self, seqs: Sequence[int] | None) -> None:
        """Forget dead letters, durably.

        Raises:
            Replaced, SekaliError: see ``pull``.

        """
        async with self._burying:
            self._begin()
            await committed(self._around.submit([Forget(self.name, seqs)], self._end_if_failed))

    # Inside.

    def _begin(self) -> None:
        """Make sure that what comes can be committed."""
        self._require_current()
        self._around.consumer.require_working()
        self.used_at_ns = self._around.clock_ns()

    def _require_current(self) -> None:
        if self._ended is not None:
            raise self._ended

    def _commit(self, settlement: Settlement, *others: Change) -> Committing:
        def done(failure: SekaliError | None) -> None:
            self._end_if_failed(failure)
            if self._ended is None:
                self.lanes.committed(settlement, self._around.clock_ns())
                self._serve()
                self._arm()

        return self._around.submit([Progress(self.name, settlement.states(), settlement.dead), *others], done)

    def _end_if_failed(self, failure: SekaliError | None) -> None:
        """What is stored is not known after a commit that failed, and leases are void."""
        if failure is not None:
            self.end(failure)

    async def _look_for(self, seqs: Sequence[int]) -> tuple[list[int], list[int]]:
        """Sort events into those that are not settled, or not of this subscription, and those that are settled."""
        topics = await self._around.read(lambda: topics_of(self._around.store, seqs))
        self._require_current()
        settled = [
            seq for seq in seqs if seq in topics and self.wants(topics[seq]) and self.lanes.is_settled(topics[seq], seq)
        ]
        known = set(settled)
        return [seq for seq in seqs if seq not in known], settled

    def _tick(self) -> None:
        self._timer = None
        settlement = self.lanes.tick(self._around.clock_ns())
        if settlement is not None:
            try:
                self._commit(settlement)
            except Unavailable as error:
                self.end(error)
                return
        self._serve()
        self._arm()

    def _arm(self) -> None:
        """See to it that ``_tick`` comes when something runs out or is due."""
        at_ns = self.lanes.next_at_ns()
        if at_ns is None:
            return
        loop = asyncio.get_running_loop()
        at_s = loop.time() + max((at_ns - self._around.clock_ns()) / 1e9, 0)
        if self._timer is not None:
            if self._timer_at_s <= at_s:
                return
            self._timer.cancel()
        self._timer, self._timer_at_s = loop.call_at(at_s, self._tick), at_s


def _by_topic(dead: Sequence[DeadLetter]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for one in dead:
        found.setdefault(one.topic, []).append(one.seq)
    return found
