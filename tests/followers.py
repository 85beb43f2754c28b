"""Streams of ``/subscribe`` without a server: every step of theirs happens when the test says so."""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import Request

from batches import commit
from sekali.api.access import Access
from sekali.api.parameters import GRANT
from sekali.api.proxies import Proxies
from sekali.api.read import CONNECTION
from sekali.api.subscribe import Subscribing
from sekali.api.wire import events_sse
from sekali.errors import StoreBroken
from sekali.event import Batch, Outcome
from sekali.feed import Feed
from sekali.keys import ANYBODY, Grant
from sekali.metrics import Ending, Metrics
from sekali.ports import Page, Query, StoredEvent, Unreadable
from sekali.stores.memory import MemoryStore
from sekali.testing import WrappedStore

_BLOCK = re.compile(rb"id: [0-9a-f]+-(\d+)\n(data: [^\n]*\n)?\n")


class ByHand(Executor):
    """Runs what it is given one at a time, when told to, on the thread of whoever tells it."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        self._waiting.append((future, partial(function, *arguments, **options)))
        return future

    def run_one(self) -> bool:
        """Run what has waited longest; False if nothing waits."""
        if not self._waiting:
            return False
        future, job = self._waiting.popleft()
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(job())
            except Exception as error:
                future.set_exception(error)
        return True


class FailingReads(WrappedStore):
    """Reads fail, or find their first row damaged, while told to; ``reads`` are the queries that came."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.fails = self.finds_damage = False
        self.reads: list[Query] = []

    def read(self, query: Query) -> Page:
        self.reads.append(query)
        if self.fails:
            raise StoreBroken("injected")
        page = super().read(query)
        if self.finds_damage and page.events:
            return replace(page, events=[Unreadable(page.events[0].seq, "injected"), *page.events[1:]])
        return page


class Connection:
    """The connection of one stream. It takes what is sent while ``open``; with ``takes_one`` one piece."""

    def __init__(self) -> None:
        self.is_endless = False
        self.open = asyncio.Event()
        self.open.set()
        self.takes_one = False
        self.left = asyncio.Event()
        self.cuts: list[Ending] = []
        self.messages: list[dict[str, Any]] = []
        self._asked = False

    async def taken(self) -> bool:
        await self.open.wait()
        return not self.left.is_set()

    def cut(self, reason: Ending) -> None:
        self.cuts.append(reason)
        self.leave()

    def leave(self) -> None:
        self.left.set()
        self.open.set()

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if not self.left.is_set():
            self.messages.append(message)
            if self.takes_one:
                self.open.clear()

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.messages if message["type"] == "http.response.body"]

    @property
    def ids(self) -> list[int]:
        """Every place told, in order: of events and between them."""
        return [int(seq) for seq, _ in _BLOCK.findall(b"".join(self.bodies))]

    @property
    def seqs(self) -> list[int]:
        """The events that came, by seq."""
        return [int(seq) for seq, data in _BLOCK.findall(b"".join(self.bodies)) if data]


class House:
    """A log, its feed and the route over them, on a loop, with nothing that happens by itself."""

    def __init__(self, *, ring_bytes_max: int = 1 << 24, **options: Any) -> None:
        self.store = FailingReads(MemoryStore(lambda: 0, topics_max=100))
        self.feeder, self.readers = ByHand(), ByHand()
        self.stopping = asyncio.Event()
        self.encoded = 0
        self.log_id = self.store.summary().log_id
        self.feed = Feed(self.store, self.feeder, self._frames, ring_bytes_max=ring_bytes_max)
        self.metrics = Metrics(lambda: 0.0)
        self.access = Access(
            None,
            self.metrics,
            only_this_machine=False,
            rate_limit_per_s=0,
            proxies=Proxies(()),
            clock_s=lambda: 0.0,
            wall_clock_s=lambda: 0.0,
        )
        self.subscribing = Subscribing(
            self.store, self.feed, self.readers, self.stopping, self.access, self.metrics, **options
        )
        self._published = 0

    def _frames(self, events: Sequence[StoredEvent | Unreadable]) -> list[bytes]:
        self.encoded += len(events)
        return events_sse(self.log_id, events)

    def publish(self, *topics: str, told: bool = True, again: Sequence[str] = ()) -> None:
        """Commit an event of each topic, and of those in ``again`` one that is there already; and tell the feed."""
        made = Batch()
        for position, topic in enumerate((*topics, *again)):
            made.topics.append(topic)
            made.event_ids.append(f"{self._published + position}" if position < len(topics) else "0")
            made.timestamps_ns.append(0)
            made.payloads.append(b"{}")
            made.sources.append("")
            made.source_seqs.append(None)
        self._published += len(topics)
        (verdicts,) = commit(self.store, made)
        seqs = [one.seq for one in verdicts if one.outcome is Outcome.STORED and one.seq is not None]
        if told and seqs:
            self.feed.committed(len(seqs), seqs[-1], [made.topics])

    def subscribe(
        self,
        topic: str | None = None,
        after: str = "earliest",
        last_event_id: str | None = None,
        grant: Grant = ANYBODY,
    ) -> tuple[Connection, "asyncio.Task[None]"]:
        """Begin a stream; return its connection, and the task that writes it."""
        connection = Connection()
        scope = {"type": "http", "http_version": "1.1", "headers": [], GRANT: grant, "state": {CONNECTION: connection}}

        async def stream() -> None:
            answer = await self.subscribing.subscribe(Request(scope), topic, after, last_event_id)
            await answer(scope, connection.receive, connection.send)

        return connection, asyncio.create_task(stream())

    async def spin(self) -> None:
        """Let everybody do what they can before the next read."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def settle(self) -> None:
        """Let everything happen that is under way."""
        idle = 0
        while idle < 3:
            await self.spin()
            ran = self.feeder.run_one() or self.readers.run_one()
            idle = 0 if ran else idle + 1
