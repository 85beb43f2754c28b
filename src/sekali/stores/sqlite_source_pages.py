"""Reading the figures of sources that number their events: what came of the numbers, and what did not."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import apsw

from sekali.ports import MISSING_RANGES_MAX, PAGE_RANGES_MAX, SourceInfo, SourceQuery
from sekali.stores.sqlite_conditions import find_topic_ids, one_of, where_all
from sekali.topics import is_pattern

_RANGES = "FROM source_ranges WHERE topic_id = s.topic_id AND source = s.source ORDER BY first"
_SOURCES = (
    f"SELECT s.topic_id, t.topic, s.source, (SELECT first {_RANGES} LIMIT 1), (SELECT last {_RANGES} DESC LIMIT 1), "
    "s.numbered, s.unnumbered, s.received, s.ranges FROM topics t CROSS JOIN sources s ON s.topic_id = t.topic_id"
)
# The ranges of numbers from ?3 to ?4: that which holds ?3 or is the next before it, and those that begin up to ?4.
_BEFORE = "FROM source_ranges WHERE topic_id = ?1 AND source = ?2 AND first <= ?3 ORDER BY first DESC LIMIT 1"
_INSIDE = (
    "FROM source_ranges WHERE topic_id = ?1 AND source = ?2 AND first <= ?4 AND last >= ?3 "
    f"AND first >= coalesce((SELECT first {_BEFORE}), ?3)"
)
_COUNT = (
    "SELECT count(*), coalesce(sum(min(last, ?4) - max(first, ?3) + 1), 0), coalesce(min(first) <= ?3, 0), "
    f"coalesce(max(last) >= ?4, 0) {_INSIDE}"
)


def read_sources(connection: apsw.Connection, query: SourceQuery) -> list[SourceInfo]:
    """See ``EventStore.sources``."""
    after_topic, after_source = query.after
    conditions: list[tuple[str, Any]] = [
        ("t.topic >= ?", after_topic),
        # Nothing stands between a text and the same with a NUL behind it.
        ("s.source >= iif(t.topic = ?, ?, '')", (after_topic, after_source + "\0")),
    ]
    if query.topic is not None and not is_pattern(query.topic):
        conditions.append(("t.topic = ?", query.topic))
    if query.topic is not None or query.readable is not None:
        # With the plus it is no way to find topics, which would then have to be sorted by name.
        conditions.append(one_of("+t.topic_id", find_topic_ids(connection, query.topic, query.readable)))
    if query.source is not None:
        conditions.append(("s.source = ?", query.source))
    where, bindings = where_all(conditions)
    found: list[SourceInfo] = []
    listed = 0
    for row in connection.execute(f"{_SOURCES} {where} ORDER BY t.topic, s.source LIMIT ?", (*bindings, query.limit)):
        found.append(_source(connection, row, query))
        listed += len(found[-1].missing_ranges)
        if listed > PAGE_RANGES_MAX:
            break
    return found


def _source(connection: apsw.Connection, row: Any, query: SourceQuery) -> SourceInfo:
    topic_id, topic, source, lowest, highest, numbered, unnumbered, of_all, ranges = row
    first, last = query.range_of(lowest, highest)
    asked = (topic_id, source, first, last)
    received, begins, ends = of_all, first >= lowest, last <= highest
    if first > lowest or last < highest:  # a part of it has to be counted
        ranges, received, begins, ends = connection.execute(_COUNT, asked).get
    missing_count = ranges + 1 - begins - ends
    missing: list[tuple[int, int]] = []
    if missing_count:
        inside = connection.execute(f"SELECT first, last {_INSIDE} ORDER BY first", asked)
        missing = list(islice(_gaps(inside, first, last), MISSING_RANGES_MAX))
    return SourceInfo(
        topic,
        source,
        lowest,
        highest,
        received,
        last - first + 1 - received,
        missing,
        missing_count,
        numbered - of_all,
        unnumbered,
    )


def _gaps(ranges: Iterable[tuple[int, int]], first: int, last: int) -> Iterator[tuple[int, int]]:
    """Yield what ranges leave out from ``first`` to ``last``."""
    for begin, end in ranges:
        if begin > first:
            yield first, begin - 1
        first = end + 1
    if first <= last:
        yield first, last
