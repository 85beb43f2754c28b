"""The reading routes. Queries run on threads; answers are encoded there too, in pages of bounded size."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from sekali import ports
from sekali.api import models, wire
from sekali.api.access import Access, require_everything, require_topic
from sekali.api.body import Body, ByteBudget, Receive, Scope, Send, header, read_whole
from sekali.api.connections import Connections
from sekali.api.negotiation import is_ndjson
from sekali.api.paging import begin, page_of_events, page_response
from sekali.api.parameters import GRANT, Cursor, Limit, Source, Topic, each_parameter_once, reader_of, require_readable
from sekali.api.problems import Kind, Problem
from sekali.api.sources import Sources
from sekali.consumer import Consumer
from sekali.errors import InvalidQuery, StoreBroken, Unavailable
from sekali.event import Outcome, event_id_fault
from sekali.keys import Grant
from sekali.metrics import Metrics
from sekali.ports import PAGE_BYTES_MAX, EventStore, Order, Position
from sekali.push.pushing import Pushing
from sekali.settings import ServerSettings
from sekali.subscriptions.manager import Subscriptions
from sekali.timestamps import parse_timestamp
from sekali.topics import is_pattern, topic_fault

NDJSON = "application/x-ndjson"
TAKEN = "taken"  # in a request's state: wait until the client has taken what was sent to it
CONNECTION = "connection"  # in a request's state: what carries it and its answer
Taken = Callable[[], Awaitable[bool]]  # False: it has left
Write = Callable[[bytes, bool], Awaitable[None]]  # a part of an answer, and whether it is the last
STREAM_PAGE_EVENTS = 2000
READS_MAX = 8  # under way, or done and not yet taken over by their connections; each is 8 MiB at most
STATS_TOPICS_MAX = 1000

_Result = TypeVar("_Result")


class StreamCut(Exception):
    """A stream cannot go on; the connection is cut without the final chunk, so that the reader notices."""


class _Stream(Response):
    """An answer that is written while it is made.

    Starlette's own cancels a task where the client leaves, and what that held, pages of 8 MiB, waits for the collector
    of reference cycles.
    """

    media_type = NDJSON

    def __init__(self, write_all: Callable[[Write], Awaitable[None]]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._write_all = write_all

    async def __call__(self, _: Scope, __: Receive, send: Send) -> None:
        async def write(body: bytes, is_last: bool) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": not is_last})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._write_all(write)


class _ExistsIn(msgspec.Struct, forbid_unknown_fields=True):
    topic: str
    event_ids: list[str]


class Reading:
    """The reading routes over one store. ``stopping`` ends the streams when the server stops."""

    def __init__(
        self,
        store: EventStore,
        consumer: Consumer,
        metrics: Metrics,
        budget: ByteBudget,
        connections: Connections,
        subscriptions: Subscriptions,
        pushing: Pushing,
        readers: Executor,
        stopping: asyncio.Event,
        access: Access,
        settings: ServerSettings,
    ) -> None:
        self._store = store
        self._consumer = consumer
        self._metrics = metrics
        self._budget = budget
        self._connections = connections
        self._subscriptions = subscriptions
        self._pushing = pushing
        self._readers = readers
        self._reads = asyncio.Semaphore(READS_MAX)
        self._stopping = stopping
        self._access = access
        self._settings = settings
        self.router = APIRouter(dependencies=[Depends(each_parameter_once)])
        for path, endpoint, extra in (
            ("/events", self.events, models.EVENTS),
            ("/topics", self.topics, models.TOPICS),
            ("/conflicts", self.conflicts, models.CONFLICTS),
            ("/stats", self.stats, models.STATS),
            ("/healthz", self.healthz, models.HEALTH),
            ("/metrics", self.metrics, models.METRICS),
            ("/sources", Sources(store, self._read).sources, models.SOURCES),
        ):
            self.router.add_api_route(path, endpoint, methods=["GET"], **extra)
        self.router.add_api_route("/exists", self.exists, methods=["POST"], **models.EXISTS)

    async def _read(self, read: Callable[[], _Result]) -> _Result:
        """Read on a thread. What comes of it may be large, so few are made before the connections take them over."""
        async with self._reads:
            return await asyncio.get_running_loop().run_in_executor(self._readers, read)

    async def events(
        self,
        request: Request,
        topic: Topic = None,
        source: Source = None,
        since: Annotated[str | None, Query(description="Event time, inclusive, RFC 3339.")] = None,
        until: Annotated[str | None, Query(description="Event time, exclusive, RFC 3339.")] = None,
        after: Annotated[int, Query(ge=0, le=2**63 - 1, description="Only events with a higher seq.")] = 0,
        event_id: Annotated[str | None, Query(description="Exactly this id; with an exact topic.")] = None,
        order: Annotated[Order, Query(description="By seq or by event time; `-` newest first.")] = Order.SEQ,
        limit: Limit = 1000,
        cursor: Cursor = None,
    ) -> Response:
        """Events that match all conditions, as a page (JSON array) or as a stream of everything (NDJSON)."""
        grant = reader_of(request)
        require_readable(grant, topic)
        query = ports.Query(
            topic=topic,
            source=source,
            since_ns=_time("since", since),
            until_ns=_time("until", until),
            after=after,
            event_id=_event_id(event_id, topic),
            order=order,
            limit=limit,
            readable=grant.readable,
        )
        if _wants_ndjson(request):
            query, summary = await self._read(lambda: begin(self._store, query, cursor))
            up_to = summary.head if query.up_to is None else query.up_to
            taken = request.scope["state"][TAKEN]
            query = replace(query, limit=STREAM_PAGE_EVENTS, up_to=up_to)
            return _Stream(partial(self._stream, query, grant, taken))

        def read() -> tuple[bytes, wire.Cursor | None]:
            page, following = page_of_events(self._store, query, cursor)
            return wire.events_json(page.events), following

        return page_response(request, *await self._read(read))

    async def _stream(self, query: ports.Query, grant: Grant, taken: Taken, write: Write) -> None:
        """Write everything that matches, page by page; each page is a short transaction of its own.

        The next page is read once the client has taken this one: for a client that does not, no more than one is held.
        """

        def read(query: ports.Query) -> tuple[bytes, Position | None]:
            page = self._store.read(query)
            return wire.events_ndjson(page.events), page.next

        while await taken():
            body, position = await self._read(partial(read, query))
            if self._stopping.is_set():
                raise StreamCut("the server is stopping")
            if not self._access.still_holds(grant):
                raise StreamCut("the key was revoked or has expired")
            await write(body, position is None)
            del body  # while the client takes it, the connection has it
            if position is None:
                return
            query = replace(query, position=position)

    async def topics(
        self,
        request: Request,
        limit: Limit = 1000,
        cursor: Cursor = None,
    ) -> Response:
        """Topics by name, with what each holds."""
        readable = reader_of(request).readable

        def read() -> tuple[bytes, wire.Cursor | None]:
            summary = self._store.summary(readable)
            after = "" if cursor is None else wire.open_cursor(cursor, "topics", (str,), summary).position[0]
            topics = self._store.topics(str(after), limit, readable)
            full = len(topics) == limit
            return wire.topics_json(topics), wire.cursor(summary, "topics", topics[-1].topic) if full else None

        return page_response(request, *await self._read(read))

    async def conflicts(
        self,
        request: Request,
        limit: Limit = 1000,
        cursor: Cursor = None,
    ) -> Response:
        """Variants that were refused because their identity was taken, oldest first."""
        readable = reader_of(request).readable

        def read() -> tuple[bytes, wire.Cursor | None]:
            summary = self._store.summary(readable)
            after = 0 if cursor is None else wire.open_cursor(cursor, "conflicts", (int,), summary).position[0]
            conflicts = self._store.conflicts(int(after), limit, readable)
            full = len(conflicts) == limit or sum(len(conflict.payload) for conflict in conflicts) > PAGE_BYTES_MAX
            following = wire.cursor(summary, "conflicts", conflicts[-1].number) if full else None
            return wire.conflicts_json(conflicts), following

        return page_response(request, *await self._read(read))

    async def exists(self, request: Request) -> Response:
        """Which of these ids does the topic not hold yet? A publisher resumes with those after an outage."""
        settings, grant = self._settings, reader_of(request)
        if is_ndjson(header(request.scope, b"content-type")):
            raise Problem(Kind.MEDIA, "ask with application/json, one question in a request")
        with Body(self._budget, settings.body_bytes_max) as body:
            question = _exists_question(await read_whole(body, request.scope, request.receive), settings)
            require_topic(grant, question.topic)
            missing = await self._read(lambda: self._store.missing(question.topic, question.event_ids))
        return json_response({"missing": missing})

    async def stats(self, request: Request) -> Response:
        """The figures of this process and of the log; for a key that may not read everything, those of its topics."""
        readable = reader_of(request).readable
        summary, topics = await self._read(
            lambda: (self._store.summary(readable), self._store.topics("", STATS_TOPICS_MAX, readable))
        )
        of_log = {
            "unique_processed": summary.lifetime.stored,
            "topics": [topic.topic for topic in topics],
            "topics_count": summary.topics_count,
            "log_id": summary.log_id,
            "lifetime": summary.lifetime,
        }
        return json_response(of_log if readable is not None else of_log | self._figures())

    def _figures(self) -> dict[str, Any]:
        """Return the figures of the process, which tell of everybody's events."""
        metrics = self._metrics
        stored, duplicate, conflict, invalid = (metrics.outcomes[outcome] for outcome in Outcome)
        received = stored + duplicate + conflict
        return {
            "received": received,
            "duplicate_dropped": duplicate + conflict,
            "uptime_seconds": round(metrics.uptime_s, 3),
            "queue_depth": self._consumer.events_waiting,
            "workers": self._settings.consumer_workers,
            "db_path": str(self._settings.db_path),
            "conflicts": conflict,
            "invalid": invalid,
            "duplicate_rate": round((duplicate + conflict) / received, 6) if received else 0.0,
            "throughput": round(metrics.throughput, 3),
            "latency_ms": metrics.latency_ms(),
            "freshness_seconds": round(self._consumer.oldest_waiting_s, 6),
        }

    async def healthz(self, request: Request) -> Response:
        """200 when the server can commit, else 503; with the reason and figures where a key is shown or none needed."""
        trouble, is_known = self._consumer.trouble, request.scope[GRANT] is not None
        if trouble is not None:
            raise Problem(Kind.UNAVAILABLE, trouble if is_known else "the server cannot commit", extra={"ok": False})
        return json_response({"ok": True} | ({"uptime_seconds": round(self._metrics.uptime_s, 3)} if is_known else {}))

    async def metrics(self, request: Request) -> Response:
        """Prometheus metrics. When the store cannot be read they are there without the figures of the log."""
        require_everything(request.scope[GRANT])
        gauges = {
            "sekali_queue_events": self._consumer.events_waiting,
            "sekali_queue_bytes": self._budget.held,
            "sekali_connections": self._connections.open,
            "sekali_connection_bytes": self._connections.bytes_held,
            "sekali_oldest_waiting_seconds": self._consumer.oldest_waiting_s,
            "sekali_followers": self._metrics.followers,
            "sekali_healthy": float(self._consumer.trouble is None),
            "sekali_uptime_seconds": self._metrics.uptime_s,
        }
        of_subscriptions: dict[str, dict[str, float]] = {}
        try:
            summary = await self._read(self._store.summary)
            of_subscriptions = {
                name: values | self._pushing.samples(name)
                for name, values in (await self._subscriptions.samples()).items()
            }
            gauges["sekali_subscriptions"] = len(await self._subscriptions.all())
        except (StoreBroken, Unavailable):
            pass
        else:
            gauges["sekali_log_events"] = summary.lifetime.stored
            gauges["sekali_log_topics"] = summary.topics_count
        gauges |= {f"sekali_store_{name}": value for name, value in (await self._read(self._store.gauges)).items()}
        text = self._metrics.scrape(gauges, of_subscriptions)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def json_response(document: Any, status: int = 200) -> Response:
    """Answer with a JSON document."""
    return Response(msgspec.json.encode(document), status, media_type="application/json")


def _wants_ndjson(request: Request) -> bool:
    """Whether to stream. A client of an HTTP before 1.1 does not know chunks and gets pages, whatever it asks for."""
    media_types = [part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")]
    return NDJSON in media_types and request.scope["http_version"] == "1.1"


def _time(parameter: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_timestamp(text)
    except ValueError as error:
        raise InvalidQuery(parameter, str(error)) from None


def _event_id(event_id: str | None, topic: str | None) -> str | None:
    if event_id is None:
        return None
    if topic is None or is_pattern(topic):
        raise InvalidQuery("event_id", "needs an exact topic beside it, because an identity is (topic, event_id)")
    if (fault := event_id_fault(event_id)) is not None:
        raise InvalidQuery("event_id", fault)
    return event_id


def _exists_question(body: bytes, settings: ServerSettings) -> _ExistsIn:
    try:
        question = msgspec.json.decode(body, type=_ExistsIn)
    except msgspec.ValidationError as error:
        raise Problem(Kind.INVALID_QUERY, f'{error}; send {{"topic": …, "event_ids": […]}}') from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(Kind.NOT_JSON, f"the document is not JSON: {error}") from None
    if len(question.event_ids) > settings.batch_events_max:
        raise Problem(Kind.TOO_LARGE, f"more than {settings.batch_events_max} ids in one request (BATCH_EVENTS_MAX)")
    if (fault := topic_fault(question.topic)) is not None:
        raise InvalidQuery("topic", fault)
    return question
