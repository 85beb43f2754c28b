"""The service that one would write today, for comparison: FastAPI, a pydantic model an event, an ``asyncio.Queue``.

A consumer takes what is in the queue, does one INSERT OR IGNORE an event, and one commit with fsync a request; then
the request is answered. Run by uvicorn. ``BENCH_DB_PATH`` is its SQLite file. ``BENCH_QUEUE_OF`` is ``events``, where
each event goes through the queue by itself and each statement to a thread, so that the event loop never waits for the
disk, as such services and aiosqlite do; or ``requests``, where a request goes through the queue as a whole and its
statements are run where they are, which is faster and stops everything else meanwhile.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

QUEUE_MAX = 10_000


class Event(BaseModel):
    """An event as it is published."""

    topic: str = Field(min_length=1, max_length=255)
    event_id: str = Field(min_length=1, max_length=512)
    timestamp: datetime
    source: str = ""
    payload: dict[str, Any]


class Answer(BaseModel):
    """What became of a request's events, in the words of Sekali's own answer."""

    received: int
    stored: int
    duplicate: int
    conflict: int = 0
    invalid: int = 0


class Request:
    """A request that waits: how many of its events are not yet inserted, and how many were new."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.left = len(events)
        self.stored = 0
        self.answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()


Work = tuple[list[Event], Request]  # events to insert, of a request


def open_database(path: str) -> sqlite3.Connection:
    """Open the database, with fsync at every commit."""
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS events (topic TEXT, event_id TEXT, timestamp TEXT, source TEXT, payload TEXT, "
        "PRIMARY KEY (topic, event_id))"
    )
    return connection


def insert(connection: sqlite3.Connection, event: Event) -> int:
    """Insert an event where it is new; return how many rows that made."""
    return connection.execute(
        "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?)",
        (
            event.topic,
            event.event_id,
            event.timestamp.isoformat(),
            event.source,
            event.model_dump_json(include={"payload"}),
        ),
    ).rowcount


async def consume(queue: "asyncio.Queue[Work]", connection: sqlite3.Connection, *, on_threads: bool) -> None:
    """Store what is in the queue; once a request's last event is stored, commit and answer it."""
    while True:
        events, request = await queue.get()
        for event in events:
            if on_threads:
                request.stored += await asyncio.to_thread(insert, connection, event)
            else:
                request.stored += insert(connection, event)
        request.left -= len(events)
        if not request.left:
            if on_threads:
                await asyncio.to_thread(connection.commit)
            else:
                connection.commit()
            request.answered.set_result(request.stored)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    connection = open_database(os.environ["BENCH_DB_PATH"])
    app.state.of_events = os.environ["BENCH_QUEUE_OF"] == "events"
    app.state.queue = asyncio.Queue(QUEUE_MAX)
    consumer = asyncio.create_task(consume(app.state.queue, connection, on_threads=app.state.of_events))
    yield
    consumer.cancel()
    connection.close()


app = FastAPI(lifespan=_lifespan)


@app.post("/publish")
async def publish(events: list[Event]) -> Answer:
    """Store events and answer once they are durable."""
    request = Request(events)
    for work in [[event] for event in events] if app.state.of_events else [events]:
        await app.state.queue.put((work, request))
    stored = await request.answered
    return Answer(received=len(events), stored=stored, duplicate=len(events) - stored)
