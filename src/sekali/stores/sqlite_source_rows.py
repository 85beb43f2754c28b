"""Sources and their numbers as the rows of events tell: to fill the tables of an older file, and to check them."""

from collections.abc import Iterator
from heapq import merge
from itertools import groupby, repeat
from operator import itemgetter
from typing import Any

import apsw

_RangeRow = tuple[int, bytes, int, int]  # topic_id, source, first and last number

# Of each source with a number: events with one, and those without that come after the first with one.
_COUNTS = (
    "SELECT e.topic_id, e.source, count(e.source_seq) AS numbered, "
    "sum(e.source_seq IS NULL AND e.seq > f.first_seq) AS unnumbered FROM events e NOT INDEXED CROSS JOIN ("
    "SELECT topic_id, source, min(seq) AS first_seq FROM events NOT INDEXED WHERE source_seq IS NOT NULL "
    "GROUP BY topic_id, source) f ON f.topic_id = e.topic_id AND f.source = e.source GROUP BY e.topic_id, e.source"
)
_FIGURES = (
    f"WITH counts AS ({_COUNTS}), ranges AS (SELECT topic_id, source, sum(last - first + 1) AS received, "
    "count(*) AS ranges FROM source_ranges GROUP BY topic_id, source) "
    "SELECT topic_id, source, numbered, unnumbered, received, ranges "
    "FROM counts JOIN ranges USING (topic_id, source)"
)


def fill_sources(connection: apsw.Connection) -> None:
    """Fill the empty tables. An event whose source was damaged before is not counted: nobody knows whose it was."""
    whole = (row for row in _ranges_of_events(connection) if _is_text(row[1]))
    connection.executemany("INSERT INTO source_ranges VALUES (?, CAST(? AS TEXT), ?, ?)", whole)
    connection.execute(f"INSERT INTO sources {_FIGURES}")


def source_faults(connection: apsw.Connection) -> Iterator[str]:
    """Say what in the tables is not what the rows of events tell."""
    ranges: Any = connection.execute(
        "SELECT topic_id, CAST(source AS BLOB), first, last FROM source_ranges ORDER BY topic_id, source, first"
    )
    for (topic_id, source, first, last), place in _differences(_ranges_of_events(connection), ranges):
        yield f"{_name(connection, topic_id, source)}: {place} are the numbers {first} to {last}"
    columns = "topic_id, CAST(source AS BLOB), numbered, unnumbered, received, ranges"
    counted, kept = (
        connection.execute(f"SELECT {columns} FROM {rows} ORDER BY topic_id, source")
        for rows in (f"({_FIGURES})", "sources")
    )
    for (topic_id, source, *figures), place in _differences(counted, kept):
        yield f"{_name(connection, topic_id, source)}: {place} are {figures}"


def _differences(counted: Iterator[Any], kept: Iterator[Any]) -> Iterator[tuple[Any, str]]:
    """Yield what only one of two sorted walks has, and which."""
    both = merge(zip(counted, repeat("counted"), strict=False), zip(kept, repeat("kept"), strict=False))
    for row, found in groupby(both, key=itemgetter(0)):
        places = [place for _, place in found]
        if len(places) == 1:
            yield row, places[0]


def _ranges_of_events(connection: apsw.Connection) -> Iterator[_RangeRow]:
    """Yield the ranges without gaps of each source's numbers, in order."""
    rows: Any = connection.execute(
        "SELECT topic_id, CAST(source AS BLOB), source_seq FROM events NOT INDEXED WHERE source_seq IS NOT NULL "
        "ORDER BY topic_id, CAST(source AS BLOB), source_seq"
    )
    for (topic_id, source), found in groupby(rows, key=itemgetter(0, 1)):
        numbers = map(itemgetter(2), found)
        first = last = next(numbers)
        for number in numbers:
            if number > last + 1:
                yield topic_id, source, first, last
                first = number
            last = number
        yield topic_id, source, first, last


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _name(connection: apsw.Connection, topic_id: int, source: bytes) -> str:
    found = connection.execute("SELECT CAST(topic AS BLOB) FROM topics WHERE topic_id = ?", (topic_id,)).get
    topic = f"topic_id {topic_id}" if found is None else found.decode(errors="backslashreplace")
    return f"{topic}, source {source.decode(errors='backslashreplace')!r}"
