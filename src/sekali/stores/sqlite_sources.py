"""What a commit adds to the figures of sources that number their events: which numbers came, as ranges without gaps.

``plan_sources`` makes runs of the numbers of new events, ``write_sources`` joins them with the ranges that are stored.
A source that counts on costs one row whatever the number of its events.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import apsw
import msgspec

from sekali.event import SOURCE_SEQ_MAX, SOURCE_SEQ_MIN
from sekali.stores.sqlite_lookup import Columns

Pair = tuple[int, str]  # topic_id and source
Range = tuple[int, int]  # first and last

# Of each run: the range that holds the number before it, or is the next before that, and those that begin up to the
# number behind it.
_TOUCHED = (
    "WITH run AS MATERIALIZED (SELECT key, value ->> 0 AS topic_id, value ->> 1 AS source, value ->> 2 AS before, "
    "value ->> 3 AS behind FROM json_each(?)) "
    "SELECT json_group_array(json_array(run.key, r.first, r.last)) FROM run CROSS JOIN source_ranges r "
    "ON r.topic_id = run.topic_id AND r.source = run.source AND r.last >= run.before AND r.first <= run.behind "
    "AND r.first >= coalesce((SELECT first FROM source_ranges WHERE topic_id = run.topic_id AND source = run.source "
    "AND first <= run.before ORDER BY first DESC LIMIT 1), run.before)"
)


@dataclass(frozen=True, slots=True)
class SourceWrites:
    """What new events tell of their sources.

    ``runs`` are the numbers of each source, rising and with a gap between any two runs, and ``numbered`` how many
    events had them. ``later`` counts events without a number after the first of the same source with one; ``earlier``
    all without one whose source may have numbered others before.
    """

    runs: dict[Pair, list[Range]]
    numbered: dict[Pair, int]
    later: dict[Pair, int]
    earlier: dict[Pair, int]

    @property
    def topics(self) -> set[int]:
        """The topics with numbers."""
        return {topic_id for topic_id, _ in self.runs}


def plan_sources(rows: Columns, numbered_topics: AbstractSet[int]) -> SourceWrites | None:
    """Look for numbers in new events. None where they change nothing.

    ``numbered_topics`` are those in which a source has numbered an event before.
    """
    if rows.source_seqs.count(None) == len(rows.source_seqs) and numbered_topics.isdisjoint(rows.topic_ids):
        return None
    given: dict[Pair, list[int | None]] = defaultdict(list)
    for pair, number in zip(zip(rows.topic_ids, rows.sources, strict=True), rows.source_seqs, strict=True):
        given[pair].append(number)
    writes = SourceWrites({}, {}, {}, {})
    for pair, some in given.items():
        numbers = [number for number in some if number is not None]
        if numbers:
            writes.runs[pair] = _runs(numbers)
            writes.numbered[pair] = len(numbers)
            writes.later[pair] = some[some.index(numbers[0]) :].count(None)
        if len(numbers) < len(some) and pair[0] in numbered_topics:
            writes.earlier[pair] = len(some) - len(numbers)
    return writes


def _runs(numbers: Iterable[int]) -> list[Range]:
    ordered = sorted(set(numbers))
    if ordered[-1] - ordered[0] == len(ordered) - 1:  # most often they count on
        return [(ordered[0], ordered[-1])]
    return _joined([(number, number) for number in ordered])


def write_sources(connection: apsw.Connection, writes: SourceWrites) -> None:
    """Add to the tables of sources, inside the transaction of the events."""
    if writes.earlier:  # before the sources that are new now, of which only the later ones count
        connection.execute(
            "UPDATE sources SET unnumbered = unnumbered + (f.value ->> 2) FROM json_each(?) f "
            "WHERE topic_id = (f.value ->> 0) AND source = (f.value ->> 1)",
            (_json([(*pair, count) for pair, count in writes.earlier.items()]),),
        )
    if not writes.runs:
        return
    gone: list[tuple[int, str, int]] = []
    changed: list[tuple[int, str, int, int]] = []
    added: list[tuple[int, str, int, int, int, int]] = []
    touched = _touched(connection, writes.runs)
    for pair, runs in writes.runs.items():
        old = touched[pair]
        joined = _joined([*old, *runs])
        changed += [(*pair, *one) for one in joined if one not in old]
        firsts = {first for first, _ in joined}
        gone += [(*pair, first) for first, _ in old if first not in firsts]
        received = sum(map(_length, joined)) - sum(map(_length, old))
        added.append((*pair, writes.numbered[pair], writes.later[pair], received, len(joined) - len(old)))
    if gone:
        connection.execute(
            "DELETE FROM source_ranges WHERE (topic_id, source, first) IN "
            "(SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?))",
            (_json(gone),),
        )
    connection.execute(
        "INSERT INTO source_ranges SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?) "
        "WHERE true ON CONFLICT DO UPDATE SET last = excluded.last",
        (_json(changed),),
    )
    connection.execute(
        "INSERT INTO sources SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5 "
        "FROM json_each(?) WHERE true ON CONFLICT DO UPDATE SET numbered = numbered + excluded.numbered, "
        "received = received + excluded.received, ranges = ranges + excluded.ranges",
        (_json(added),),
    )


def _touched(connection: apsw.Connection, runs: Mapping[Pair, Sequence[Range]]) -> dict[Pair, set[Range]]:
    """Return the stored ranges that runs overlap with or stand beside. All of them in one step."""
    pairs = [pair for pair, some in runs.items() for _ in some]
    ends = [
        (max(first - 1, SOURCE_SEQ_MIN), min(last + 1, SOURCE_SEQ_MAX))
        for some in runs.values()
        for first, last in some
    ]
    asked = [(*pair, *both) for pair, both in zip(pairs, ends, strict=True)]
    touched: dict[Pair, set[Range]] = defaultdict(set)
    for place, first, last in msgspec.json.decode(connection.execute(_TOUCHED, (_json(asked),)).get):
        touched[pairs[place]].add((first, last))
    return touched


def _joined(ranges: Sequence[Range]) -> list[Range]:
    """Return ranges with a gap between any two that hold the same numbers."""
    joined: list[Range] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((first, last))
    return joined


def _length(numbers: Range) -> int:
    return numbers[1] - numbers[0] + 1


def _json(rows: Sequence[object]) -> str:
    return msgspec.json.encode(rows).decode()
