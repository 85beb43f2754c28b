"""Pages that fit together while events arrive: by event time of one moment, by seq up to whatever has come."""

import base64
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from batches import commit
from sekali.api.paging import page_of_events
from sekali.errors import InvalidQuery
from sekali.event import Batch
from sekali.ports import EventStore, Order, Query
from sekali.stores import sqlite_read
from sekali.stores.memory import MemoryStore
from sekali.stores.sqlite import SqliteStore
from sekali.testing import FakeClock
from sekali.topics import matches

BY_TIME = [Order.TIMESTAMP, Order.TIMESTAMP_DESCENDING]
LATE_PAGES = 30
# Few topics and times, so that many events stand at one place.
events = st.lists(st.tuples(st.sampled_from(["a", "a/b", "c"]), st.integers(-3, 3)), max_size=12)
queries = st.builds(
    Query,
    topic=st.sampled_from([None, "a", "a/**", "**"]),
    since_ns=st.none() | st.integers(-3, 0),
    until_ns=st.none() | st.integers(0, 3),
    after=st.integers(0, 2),
    order=st.sampled_from(BY_TIME),
    limit=st.integers(1, 5),
    readable=st.sampled_from([None, ("a", "a/*")]),
)


class Log:
    """A store, and beside it all that was put into it: (seq, topic, time)."""

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self.rows: list[tuple[int, str, int]] = []

    def add(self, sent: list[tuple[str, int]]) -> None:
        made = Batch()
        for topic, time_ns in sent:
            self.rows.append((len(self.rows) + 1, topic, time_ns))
            made.topics.append(topic)
            made.event_ids.append(str(len(self.rows)))
            made.timestamps_ns.append(time_ns)
            made.sources.append("")
            made.source_seqs.append(None)
            made.payloads.append(b"0")
        commit(self.store, made)

    def expected(self, query: Query) -> list[int]:
        """Return the seqs that match, in the order asked for, as the log is now."""
        found = [
            (time_ns, seq)
            for seq, topic, time_ns in self.rows
            if (query.topic is None or matches(query.topic, topic))
            and (query.readable is None or any(matches(pattern, topic) for pattern in query.readable))
            and (query.since_ns is None or time_ns >= query.since_ns)
            and (query.until_ns is None or time_ns < query.until_ns)
            and seq > query.after
        ]
        return [seq for _, seq in sorted(found, reverse=query.order.descending)]


def pages(store: EventStore, query: Query) -> Iterator[list[int]]:
    token: str | None = None
    while True:
        page, cursor = page_of_events(store, query, token)
        yield [event.seq for event in page.events]
        if cursor is None:
            return
        token = cursor.token()


def check_late_events(
    store: EventStore, before: list[tuple[str, int]], query: Query, late: list[tuple[str, int]]
) -> int:
    """Read page by page, with late events before each of the later pages; return how many pages there were."""
    log = Log(store)
    log.add([("a", 0), ("a", 0), *before])  # so that the first two seqs are there to be asked for
    expected = log.expected(query)
    seen: list[int] = []
    count = 0
    for page in pages(store, query):
        seen += page
        count += 1
        assert len(seen) <= len(expected), "what came late is shown"
        if count < LATE_PAGES:  # who is ever faster than the reader keeps it from the end
            log.add(late)
    assert seen == expected
    return count


@settings(max_examples=300, deadline=None, print_blob=True)
@given(before=events, query=queries, late=events)
def test_pages_by_time_are_those_of_the_moment_of_the_first(
    before: list[tuple[str, int]], query: Query, late: list[tuple[str, int]]
) -> None:
    store = MemoryStore(FakeClock(), topics_max=5)
    count = check_late_events(store, before, query, late)
    # Nothing that came late has pushed others out of a page.
    assert count == max(-(-len(Log.expected(_first(before), query)) // query.limit), 1)


def _first(before: list[tuple[str, int]]) -> Log:
    log = Log(MemoryStore(FakeClock(), topics_max=5))
    log.add([("a", 0), ("a", 0), *before])
    return log


@settings(max_examples=25, deadline=None, print_blob=True)
@given(before=events, query=queries, late=events, window=st.integers(1, 20))
def test_pages_by_time_of_the_sqlite_store(
    before: list[tuple[str, int]], query: Query, late: list[tuple[str, int]], window: int
) -> None:
    """Whether what came late is less than a page may look at, or more."""
    with tempfile.TemporaryDirectory(prefix="sekali-pages-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite_read, "SCAN_ROWS_MAX", window)
        store = SqliteStore(Path(folder) / "store.db", FakeClock(), topics_max=5)
        try:
            store.recover()
            check_late_events(store, before, query, late)
        finally:
            store.close()


@pytest.fixture
def store() -> EventStore:
    return MemoryStore(FakeClock(), topics_max=5)


def test_pages_by_seq_go_on_to_what_has_come(store: EventStore) -> None:
    log = Log(store)
    log.add([("a", 5)] * 3)
    seen = []
    for number, page in enumerate(pages(store, Query(limit=2))):
        seen.append(page)
        if number == 0:
            log.add([("a", 1)])
    assert seen == [[1, 2], [3, 4]]


@pytest.mark.parametrize("order", BY_TIME)
def test_every_cursor_by_time_keeps_the_head_of_the_first_page(store: EventStore, order: Order) -> None:
    log = Log(store)
    log.add([("a", time_ns) for time_ns in range(6)])
    token = None
    heads = []
    for _ in range(2):
        _, cursor = page_of_events(store, Query(order=order, limit=2), token)
        assert cursor is not None
        heads.append(cursor.head)
        token = cursor.token()
        log.add([("a", 3)])
    assert heads == [6, 6] and store.summary().head == 8


@pytest.mark.parametrize("place", ["head", "seq", "time"])
@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30])
def test_a_cursor_with_a_number_that_no_store_knows_is_refused(store: EventStore, place: str, number: int) -> None:
    Log(store).add([("a", 1)] * 3)
    _, cursor = page_of_events(store, Query(limit=1), None)
    assert cursor is not None
    document = {"head": cursor.head, "seq": cursor.position[0], "time": cursor.position[1]} | {place: number}
    forged = json.dumps([cursor.log_id, document["head"], cursor.listing, [document["seq"], document["time"]]])
    with pytest.raises(InvalidQuery, match="not a cursor"):
        page_of_events(store, Query(limit=1), base64.urlsafe_b64encode(forged.encode()).decode())


def test_ties_are_in_the_order_of_seq(store: EventStore) -> None:
    log = Log(store)
    log.add([("a", 1), ("c", 1), ("a", 0), ("a", 1)])
    assert [seq for page in pages(store, Query(order=Order.TIMESTAMP, limit=1)) for seq in page] == [3, 1, 2, 4]
