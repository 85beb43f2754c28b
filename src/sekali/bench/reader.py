"""A reader over one connection that is kept open: pages by every road, and the export of everything."""

import contextlib
import http.client
import time
from collections.abc import Callable, Iterator
from typing import Self

import numpy as np

from sekali.bench.children import BenchFailed
from sekali.bench.events import TOPICS, EventMaker
from sekali.bench.large import Kept
from sekali.bench.pauses import WATCH

PAGE = 100
_DRAWN = 512
_SPAN_NS = 1_000_000_000  # of event time that a page is cut from: far more events than a page takes
_READ_BYTES = 1 << 20

STATS, ALL_TOPICS = "/stats", "/topics"
BY_TOPIC = "/events of a topic"
BY_TIME = "/events by event time"
BY_TIME_AND_TOPIC = "/events of a topic by event time"
BY_IDENTITY = "/events by identity"


def draw_paths(kept: Kept, random: np.random.Generator) -> Iterator[list[tuple[str, str]]]:
    """Draw rounds of requests for ever: each a list of (kind, path), of events evenly from the older half.

    From there on are always events enough for a page.
    """
    maker = EventMaker(kept.seed, kept.id_kind)
    while True:
        numbers = random.integers(0, kept.events // 2, _DRAWN)
        columns = maker.columns(numbers)
        for number, topic_number, event_id, time_ns in zip(
            numbers.tolist(), columns.topic_numbers, columns.event_ids, columns.timestamps_ns, strict=True
        ):
            topic = TOPICS[topic_number]
            span = f"order=timestamp&since={_rfc3339(time_ns)}&until={_rfc3339(time_ns + _SPAN_NS)}&limit={PAGE}"
            yield [
                (STATS, "/stats"),
                (ALL_TOPICS, "/topics"),
                (BY_TOPIC, f"/events?topic={topic}&after={number}&limit={PAGE}"),
                (BY_TIME, f"/events?{span}"),
                (BY_TIME_AND_TOPIC, f"/events?topic={topic}&{span}"),
                (BY_IDENTITY, f"/events?topic={topic}&event_id={event_id}"),
            ]


_EVENTS_WANTED = {BY_TOPIC: PAGE, BY_TIME: PAGE, BY_TIME_AND_TOPIC: PAGE, BY_IDENTITY: 1}


class Reader:
    """Asks one thing after the other over one connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def timed_ms(self, kind: str, path: str) -> float:
        """Return how long one answer took, the client's part included.

        Raises:
            BenchFailed: it is not what it must be.

        """
        begun_s = time.perf_counter()
        self._connection.request("GET", path)
        response = self._connection.getresponse()
        body = response.read()
        taken_ms = 1000 * WATCH.since_s(begun_s)
        if response.status != 200:
            raise BenchFailed(f"GET {path} is {response.status}: {body[:500].decode(errors='replace')}")
        wanted = _EVENTS_WANTED.get(kind)
        if wanted is not None and (found := body.count(b'"event_id":')) != wanted:
            raise BenchFailed(f"GET {path} has {found} events, not {wanted}")
        return taken_ms

    def export(self, events_max: int, ended: Callable[[], bool]) -> tuple[int, float]:
        """Read everything as NDJSON, until ``events_max`` events are there or ``ended``; return events and seconds.

        Raises:
            BenchFailed: it is refused, or ends too early.

        """
        begun_s = time.perf_counter()
        self._connection.request("GET", "/events", headers={"Accept": "application/x-ndjson"})
        with contextlib.closing(self._connection.getresponse()) as response:
            if response.status != 200:
                raise BenchFailed(f"the export is {response.status}")
            events = 0
            while events < events_max and not ended():
                data = response.read1(_READ_BYTES)
                if not data:
                    raise BenchFailed(f"the export ended after {events:,} events of {events_max:,}")
                events += data.count(b"\n")
        taken_s = WATCH.since_s(begun_s)
        self._connection.close()
        return events, taken_s


def _rfc3339(time_ns: int) -> str:
    return f"{np.datetime64(time_ns, 'ns')}Z"
