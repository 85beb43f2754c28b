"""``GET /subscribe``: the log as Server-Sent Events, history first and then live.

A stream takes its events from the feed. Where that has left it behind, and at the beginning, it reads the log by
itself, up to where the feed has come. https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Annotated, Protocol, TypeVar

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response

from sekali import ports
from sekali.api import models, wire
from sekali.api.access import Access
from sekali.api.body import Receive, Scope, Send
from sekali.api.parameters import Topic, each_parameter_once, reader_of, require_readable
from sekali.api.problems import Kind, Problem
from sekali.api.read import CONNECTION, StreamCut
from sekali.errors import InvalidQuery, SekaliError
from sekali.feed import Feed, Follower
from sekali.keys import Grant
from sekali.metrics import Ending, Metrics
from sekali.ports import EventStore, Position

HEARTBEAT_S = 15.0
LOOK_INTERVAL_S = 1.0
RETRY_MS = 2000  # how long a browser waits before it connects again
PAGE_EVENTS = 1000
PAGE_BYTES = 256 * 1024
PAGES_MAX = 8  # under way, or done and not yet taken over by their connections

_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"x-accel-buffering", b"no"),  # nginx would hold it back
]

_Result = TypeVar("_Result")


class _Connection(Protocol):
    """What carries a request and its answer."""

    is_endless: bool

    async def taken(self) -> bool:
        """Wait until the client has taken what was sent to it; False: it has left."""

    def cut(self, reason: Ending) -> None:
        """End it at once, whatever it has to send."""


class Subscribing:
    """The route over one store and its feed. ``stopping`` ends the streams when the server stops.

    A stream on which nothing was sent for ``heartbeat_s`` gets a comment. Every ``look_interval_s`` it is seen which of
    them are due, and whose key was revoked or has expired.
    """

    def __init__(
        self,
        store: EventStore,
        feed: Feed,
        readers: Executor,
        stopping: asyncio.Event,
        access: Access,
        metrics: Metrics,
        *,
        heartbeat_s: float | None = None,
        look_interval_s: float | None = None,
    ) -> None:
        self.store = store
        self.feed = feed
        self.access = access
        self.heartbeat_s = HEARTBEAT_S if heartbeat_s is None else heartbeat_s
        self._readers = readers
        self._pages = asyncio.Semaphore(PAGES_MAX)
        self._stopping = stopping
        self._metrics = metrics
        self._look_interval_s = LOOK_INTERVAL_S if look_interval_s is None else look_interval_s
        self._streams: set[_Stream] = set()
        self._looking: asyncio.Task[None] | None = None
        self.router = APIRouter(dependencies=[Depends(each_parameter_once)])
        self.router.add_api_route("/subscribe", self.subscribe, methods=["GET"], **models.SUBSCRIBE)

    async def subscribe(
        self,
        request: Request,
        topic: Topic = None,
        after: Annotated[
            str, Query(description="Where to begin: behind this seq, `earliest`, or `latest`: with what comes now.")
        ] = "latest",
        last_event_id: Annotated[
            str | None, Header(description="The `id` of the last event that was seen; it counts before `after`.")
        ] = None,
    ) -> Response:
        """Events as they are committed, in the order of seq, after those that are there already. Has no end."""
        if request.scope["http_version"] != "1.1":
            raise Problem(
                Kind.VERSION,
                "a stream comes in chunks, which HTTP/1.0 does not know; a proxy in between may have to be told so",
                headers=[(b"upgrade", b"HTTP/1.1"), (b"connection", b"upgrade, close")],
            )
        grant = reader_of(request)
        require_readable(grant, topic)
        if after not in {"earliest", "latest"} and not wire.is_seq(after):
            raise InvalidQuery("after", "a seq, earliest or latest")

        def look() -> tuple[int, ports.Summary]:  # in this order: all of what is readable and not above newest is known
            return self.store.summary().head, self.store.summary(grant.readable)

        newest, summary = await self.read(look)
        told = start = newest
        if last_event_id:
            told = start = wire.open_position(last_event_id, "Last-Event-ID", summary)
        elif after == "latest":
            told = min(newest, summary.head)
        else:
            told = start = 0 if after == "earliest" else int(after)
            wire.require_not_above_head(start, summary)
        following = self.feed.following(topic, grant.readable, start, newest)
        return _Stream(self, following, grant, topic, summary.log_id, told)

    async def read(self, read: Callable[[], _Result]) -> _Result:
        """Read the store on a thread, once few others do."""
        async with self._pages:
            return await asyncio.get_running_loop().run_in_executor(self._readers, read)

    @property
    def is_stopping(self) -> bool:
        """Whether the server stops."""
        return self._stopping.is_set()

    def opened(self, stream: "_Stream") -> None:
        """Look after a stream from now on."""
        self._streams.add(stream)
        self._metrics.followers += 1
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())

    def closed(self, stream: "_Stream") -> None:
        """Look after it no more."""
        self._streams.discard(stream)
        self._metrics.followers -= 1

    async def _look(self) -> None:
        """Wake the streams that have something to do beside waiting for events, while there are any."""
        try:
            while self._streams and not self.is_stopping:
                try:
                    async with asyncio.timeout(self._look_interval_s):
                        await self._stopping.wait()
                except TimeoutError:
                    pass
                for stream in self._streams:
                    if stream.is_over or stream.heartbeat_is_due:
                        stream.wake()
        finally:
            self._looking = None


class _Stream(Response):
    """One answer. ``told`` is the seq behind which it begins, as the reader sees it."""

    def __init__(
        self,
        subscribing: Subscribing,
        following: AbstractAsyncContextManager[Follower],
        grant: Grant,
        topic: str | None,
        log_id: str,
        told: int,
    ) -> None:
        self.background = None
        self._subscribing = subscribing
        self._following = following
        self._grant = grant
        self._topic = topic
        self._log_id = log_id
        self._told = told
        self._left = False
        self._waits_for_client = False
        self._sent_at_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        subscribing = self._subscribing
        self._send = send
        self._connection: _Connection = scope["state"][CONNECTION]
        async with self._following as self._follower:
            watching = asyncio.create_task(self._watch(receive))
            subscribing.opened(self)
            self._connection.is_endless = True
            try:
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                # A client that is cut off before its first event goes on from here all the same.
                await self._give(b"retry: %d\n%b\n" % (RETRY_MS, self._id(self._told)))
                await self._run()
                await send({"type": "http.response.body", "body": b""})
            finally:
                self._connection.is_endless = False
                subscribing.closed(self)
                watching.cancel()

    @property
    def is_over(self) -> bool:
        """Whether it has to end: the client left, the server stops, or the key is good no more."""
        return self._left or self._subscribing.is_stopping or not self._subscribing.access.still_holds(self._grant)

    @property
    def heartbeat_is_due(self) -> bool:
        """Whether nothing was sent for long."""
        return asyncio.get_running_loop().time() - self._sent_at_s >= self._subscribing.heartbeat_s

    def wake(self) -> None:
        """Let it see what there is to do. When the server stops, it waits no more for its client to take anything."""
        if self._waits_for_client and self._subscribing.is_stopping:
            self._connection.cut(Ending.ANSWER_NOT_TAKEN)
        self._follower.wake()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._follower.wake()

    async def _run(self) -> None:
        while await self._taken() and not self.is_over:
            if self.heartbeat_is_due:
                await self._give(self._heartbeat())
            elif self._follower.is_behind:
                await self._read_by_itself()
            elif (chunk := self._follower.take()) is not None:
                await self._give(chunk)
                del chunk  # while the client takes it, the connection has it, and counts it
            else:
                await self._follower.wait()

    async def _read_by_itself(self) -> None:
        """Give a page of what lies between its position and where the feed has come."""
        follower, goal = self._follower, self._subscribing.feed.goal
        position = None
        if follower.position < goal.seq:
            query = ports.Query(
                topic=self._topic,
                after=follower.position,
                up_to=goal.seq,
                limit=PAGE_EVENTS,
                readable=self._grant.readable,
                bytes_max=PAGE_BYTES,
            )
            try:
                data, position = await self._subscribing.read(partial(self._page, query))
            except SekaliError as error:
                raise StreamCut(str(error)) from error
            if data:
                await self._give(data)
        if position is None:
            follower.arrive(goal)
        else:
            follower.position = position.seq

    def _page(self, query: ports.Query) -> tuple[bytes, Position | None]:
        page = self._subscribing.store.read(query)
        return b"".join(wire.events_sse(self._log_id, page.events)), page.next

    def _heartbeat(self) -> bytes:
        """Return a comment and how far the reader has come, which saves it to look through that when it comes back.

        Who may not read everything is not told: for them there are no other events.
        """
        return b":\n%b\n" % (self._id(self._follower.position) if self._grant.readable is None else b"")

    def _id(self, seq: int) -> bytes:
        return b"id: %b\n" % wire.position_id(self._log_id, seq).encode()

    async def _taken(self) -> bool:
        self._waits_for_client = True
        try:
            return await self._connection.taken()
        finally:
            self._waits_for_client = False

    async def _give(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._sent_at_s = asyncio.get_running_loop().time()
