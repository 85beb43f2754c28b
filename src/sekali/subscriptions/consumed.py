"""Those of all subscriptions that are being consumed: woken by whoever asks, told of what is stored, forgotten again.

One that nobody consumes is nowhere but in the store, and costs a commit nothing.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from sekali.delivery import Subscription
from sekali.subscriptions.awake import Awake
from sekali.subscriptions.lane import Counts
from sekali.subscriptions.surroundings import Surroundings, committed

ASLEEP_AFTER_S = 60.0  # without anybody who pulls or holds events
LOOK_INTERVAL_S = 10.0
TOPICS_REMEMBERED_MAX = 100_000


class Consumed:
    """Subscriptions in memory, by name. Belongs to the event loop."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._awake: dict[str, Awake] = {}
        self._waking: dict[str, list[tuple[int, Iterable[str]]]] = {}  # what was stored meanwhile
        self._recoveries = 0
        self._by_topic: dict[str, tuple[Awake, ...]] = {}

    def __iter__(self) -> Iterator[Awake]:
        return iter(self._awake.values())

    def get(self, name: str) -> Awake | None:
        """Return one that is of use, or None where none is in memory."""
        awake = self._awake.get(name)
        return None if awake is None or awake.has_ended else awake

    async def wake(self, subscription: Subscription, counts: Counts) -> Awake:
        """Read the lanes of one from the store. Nothing else may wake, move or delete it meanwhile.

        Raises:
            StoreBroken, Unavailable: the store cannot be read, or changed.

        """
        name = subscription.name
        self.end(name)
        # What was said to one that came to an end may still be on its way to the disk.
        await committed(self._around.submit([], lambda failure: None))
        recoveries = -1
        while recoveries != self._recoveries:
            recoveries = self._recoveries
            self._waking[name] = []
            try:
                head, pending = await self._around.read(lambda: self._around.store.pending(name))
            finally:
                notes = self._waking.pop(name)
        awake = Awake(subscription, self._around, head, pending, counts)
        for noted_head, topics in notes:
            awake.stored(noted_head, filter(awake.wants, topics))
        self._awake[name] = awake
        self._by_topic.clear()
        return awake

    def end(self, name: str) -> None:
        """Forget one. Whoever waits is told to take another."""
        awake = self._awake.pop(name, None)
        if awake is not None:
            awake.end()
            self._by_topic.clear()

    def stored(self, head: int, lists: Iterable[Sequence[str]]) -> None:
        """Wake whoever waits for events of the topics in these lists. Called after each commit that stored something.

        Topics of which nothing was stored may be among them.
        """
        if not self._awake and not self._waking:
            return
        topics = dict.fromkeys(chain.from_iterable(lists))
        found: dict[Awake, list[str]] = {}
        for topic in topics:
            for awake in self._of_topic(topic):
                found.setdefault(awake, []).append(topic)
        for awake, its_topics in found.items():
            awake.stored(head, its_topics)
        for notes in self._waking.values():
            notes.append((head, topics))

    def look_again(self) -> None:
        """Go on from what is stored: a commit that failed may have stored its events all the same. Leases are void."""
        self._recoveries += 1
        for name in list(self._awake):
            self.end(name)

    async def let_sleep(self) -> None:
        """Forget what nobody consumes any more, and what came to an end. Does not return."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            now_ns = self._around.clock_ns()
            for name, awake in list(self._awake.items()):
                if awake.has_ended or (not awake.is_in_use and now_ns - awake.used_at_ns > ASLEEP_AFTER_S * 1e9):
                    self.end(name)

    def _of_topic(self, topic: str) -> tuple[Awake, ...]:
        found = self._by_topic.get(topic)
        if found is None:
            if len(self._by_topic) >= TOPICS_REMEMBERED_MAX:
                self._by_topic.clear()
            found = self._by_topic[topic] = tuple(awake for awake in self if awake.wants(topic))
        return found
