"""What is committed, handed on to whoever follows: read once, however many take it.

::

    consumer ─committed()─> feed ─one read─> block ─> ring of blocks ─take()─> followers, each at its own pace

Where nobody wants what a commit brought, nothing is read and nobody is woken. The ring is bounded: a follower that it
has left behind reads pages of the log by itself, and joins again. Nobody asks the disk whether there is something new.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from sekali.blocks import Block, BlockMaker, Frames, Group, Groups
from sekali.errors import SekaliError
from sekali.ports import EventStore, Readable

RING_BYTES_MAX = 16 * 1024 * 1024
RING_BLOCKS_MAX = 4096
# To send to one follower takes about a quarter of this. So handing on takes a bounded share of a core, however many
# follow and however small the commits are, and what comes meanwhile goes out together.
PAUSE_PER_FOLLOWER_S = 0.0001

log = structlog.get_logger("sekali.feed")


@dataclass(frozen=True, slots=True)
class Goal:
    """How far the feed has come: the seq up to which, and the number of the block that comes next."""

    seq: int
    number: int


class Follower:
    """One who follows. ``position`` is the seq up to which it was given everything."""

    def __init__(self, feed: "Feed", group: Group, position: int) -> None:
        self.position = position
        self._feed = feed
        self._group = group
        self._number: int | None = None  # of the block to take next
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_behind(self) -> bool:
        """Whether it has to read up to the feed's goal by itself: the ring does not reach back to its position."""
        return self._number is None or self._number < self._feed.first_number

    def arrive(self, goal: Goal) -> None:
        """It has everything up to a goal now."""
        self.position, self._number = goal.seq, goal.number

    def take(self) -> bytes | None:
        """Return what comes next, or None where there is nothing yet; not while it is behind."""
        assert self._number is not None
        while self._number < self._feed.next_number:
            block = self._feed.block(self._number)
            self._number += 1
            self.position = block.end
            if block.chunks is not None and (chunk := block.chunks.get(self._group)) is not None:
                return chunk
        self.position = self._feed.head
        return None

    async def wait(self) -> None:
        """Wait for more, after there was nothing to take; or for ``wake``."""
        self._waiter = asyncio.get_running_loop().create_future()
        waiting = self._feed.waiting.setdefault(self._group, set())
        waiting.add(self)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._feed.waiting.get(self._group) is waiting:  # nothing has come that it wants
                self.arrive(self._feed.goal)
                waiting.remove(self)
                if not waiting:
                    del self._feed.waiting[self._group]

    def wake(self) -> None:
        """End the wait, if it waits."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Feed:
    """Hands on what is committed. Belongs to the event loop; it reads the store on ``thread``.

    ``frames`` encodes events, one for one. The ring holds at most ``ring_bytes_max`` of what it made of them.
    """

    def __init__(
        self, store: EventStore, thread: Executor, frames: Frames, *, ring_bytes_max: int = RING_BYTES_MAX
    ) -> None:
        self._store = store
        self._thread = thread
        self._groups = Groups()
        self._maker = BlockMaker(store, self._groups, frames, ring_bytes_max)
        self._ring_bytes_max = ring_bytes_max
        self.head = 0  # everything up to here was put into blocks, or nobody wanted it
        self.next_number = 0  # of the block that comes next
        self.waiting: dict[Group, set[Follower]] = {}  # those who have everything up to the head
        self._blocks: deque[Block] = deque()
        self._ring_bytes = 0
        self._told = 0  # the newest seq that is known to be committed
        self._begun = 0  # up to here it was read, or is being read
        self._wanted: set[str] | None = set()  # topics to read from there on; None: all
        self._reading = asyncio.Lock()  # groups come only while nothing is read: each block is for all of them
        self._handing_on: asyncio.Task[None] | None = None
        self._awaited: list[tuple[int, asyncio.Future[None]]] = []  # seqs that the head has to come to

    # What is told.

    def committed(self, count: int, newest: int, topics: Iterable[Sequence[str]]) -> None:
        """Take note of a commit: how many events it stored, the newest seq, and their topics in any number of lists.

        Topics of which nothing was stored may be among them.
        """
        if newest <= self._told:
            return
        if not self._groups:
            self._told = newest
            self._let_go()
        elif newest - self._told != count:  # there is something before it that nobody told of
            self._note(newest)
        else:
            self._want(set().union(*topics))
            self._told = newest
            self._go_on()

    def look_again(self) -> None:
        """Find out how far the log has come: a commit that failed may have stored its events all the same."""
        self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        try:
            summary = await asyncio.get_running_loop().run_in_executor(self._thread, self._store.summary)
        except SekaliError as error:
            log.warning("how far the log has come is not known", reason=str(error))
        else:
            self._note(summary.head)

    def _note(self, newest: int) -> None:
        if newest > self._told:
            self._told = newest
            self._wanted = None
            self._go_on()

    def _want(self, topics: set[str]) -> None:
        wanted = {topic for topic in topics if self._groups.wanting(topic)}
        if wanted == topics and self._told == self._begun:
            self._wanted = None  # to read everything is faster
        elif self._wanted is not None:
            self._wanted |= wanted

    # Who follows.

    @asynccontextmanager
    async def following(
        self, pattern: str | None, readable: Readable, after: int, newest: int
    ) -> AsyncIterator[Follower]:
        """Give a follower of a topic or pattern, from behind a seq.

        ``newest`` is a seq that the caller has seen in the log, and ``after`` is not above it.
        """
        async with self._reading:
            self._note(newest)
            group = self._groups.join(pattern, readable)
            if self.head < self._told:  # of what was told before it came, nobody asked what it wants
                self._wanted = None
        try:
            if after > self.head:
                came = asyncio.get_running_loop().create_future()
                self._awaited.append((after, came))
                await came
            yield Follower(self, group, after)
        finally:
            self._groups.leave(group)
            if not self._groups:
                self._let_go()

    # The ring.

    @property
    def goal(self) -> Goal:
        """How far it has come."""
        return Goal(self.head, self.next_number)

    @property
    def first_number(self) -> int:
        """Number of the oldest block there is."""
        return self.next_number - len(self._blocks)

    def block(self, number: int) -> Block:
        """Return a block of the ring."""
        return self._blocks[number - self.next_number]

    def _go_on(self) -> None:
        if self._handing_on is not None:
            return
        if not self._groups:
            self._let_go()
        elif self._wanted == set():
            self._advance(self._told)
        else:
            self._handing_on = asyncio.get_running_loop().create_task(self._hand_on())

    async def _hand_on(self) -> None:
        """Make blocks until everything told is in them."""
        loop = asyncio.get_running_loop()
        try:
            while self._groups and self.head < self._told:
                if self._wanted == set():
                    self._advance(self._told)
                    break
                async with self._reading:
                    wanted, up_to = self._wanted, self._told
                    self._wanted, self._begun = set(), up_to
                    block = await loop.run_in_executor(self._thread, self._maker.make, self.head, up_to, wanted)
                if not self._groups:
                    break
                followers = self._put(block)
                if block.end < up_to:
                    self._begun = block.end
                    self._wanted = None if wanted is None or self._wanted is None else self._wanted | wanted
                else:
                    await asyncio.sleep(PAUSE_PER_FOLLOWER_S * followers)
        finally:
            self._handing_on = None
        if not self._groups:
            self._let_go()

    def _put(self, block: Block) -> int:
        """Put a block into the ring and wake those who wait for it; return how many followers it is for."""
        before = self.goal
        self._advance(block.end)
        if block.chunks is None:
            self._blocks.clear()
            self._ring_bytes = 0
            self.next_number += 1
            groups: Iterable[Group] = list(self.waiting)
        elif block.chunks:
            self._blocks.append(block)
            self._ring_bytes += block.size
            self.next_number += 1
            while self._ring_bytes > self._ring_bytes_max or len(self._blocks) > RING_BLOCKS_MAX:
                self._ring_bytes -= self._blocks.popleft().size
            groups = block.chunks
        else:
            return 0
        followers = 0
        for group in groups:
            followers += group.members
            for follower in self.waiting.pop(group, ()):
                follower.arrive(before)
                follower.wake()
        return followers

    def _advance(self, head: int) -> None:
        self.head = head
        self._begun = max(self._begun, head)
        if self._awaited:
            for after, came in self._awaited:
                if after <= head and not came.done():
                    came.set_result(None)
            self._awaited = [one for one in self._awaited if not one[1].done()]

    def _let_go(self) -> None:
        """Keep nothing: nobody follows."""
        self._blocks.clear()
        self._ring_bytes = 0
        self._wanted = set()
        self._advance(self._told)
