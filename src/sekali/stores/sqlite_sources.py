"""What a commit adds to the figures of sources that number their events: which numbers came, as ranges without gaps.

``plan_sources`` makes runs of the numbers of new events, ``write_sources`` joins them with the ranges that are stored.
A source that counts on costs one row whatever the number of its events.
"""

from collections import defaultdict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import apsw
import msgspec
import numpy as np
import numpy.typing as npt

from sekali.event import SOURCE_SEQ_MAX, SOURCE_SEQ_MIN
from sekali.stores.sqlite_lookup import Columns

Pair = tuple[int, str]  # topic_id and source
Range = tuple[int, int]  # first and last
_Places = npt.NDArray[np.intp]

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

    ``runs`` are those of one source after the other, rising and with a gap between any two. ``counts`` are of each
    source with runs: events with a number, and those without that come after the first with one. ``unnumbered`` counts
    all events without a number, of sources that may have had one before.
    """

    runs: list[tuple[Pair, Range]]
    counts: dict[Pair, tuple[int, int]]
    unnumbered: dict[Pair, int]

    @property
    def topics(self) -> set[int]:
        """The topics with runs."""
        return {topic_id for topic_id, _ in self.counts}


def plan_sources(rows: Columns, numbered_topics: AbstractSet[int]) -> SourceWrites | None:
    """Look for numbers in new events. None where they change nothing.

    ``numbered_topics`` are those in which a source has numbered an event before.
    """
    none_count = rows.source_seqs.count(None)
    if none_count == len(rows.source_seqs) and numbered_topics.isdisjoint(rows.topic_ids):
        return None
    of_events = list(zip(rows.topic_ids, rows.sources, strict=True))
    pairs = list(dict.fromkeys(of_events))
    places = {pair: place for place, pair in enumerate(pairs)}
    owners = np.array([places[pair] for pair in of_events])
    later, unnumbered = [0] * len(pairs), {}
    if none_count == 0:
        numbers = np.array(rows.source_seqs, np.int64)
    else:
        numbers = np.array([number for number in rows.source_seqs if number is not None], np.int64)
        has_number = np.array([number is not None for number in rows.source_seqs])
        later = _later(owners, has_number, len(pairs))
        without = np.bincount(owners[~has_number], minlength=len(pairs)).tolist()
        unnumbered = {pair: n for pair, n in zip(pairs, without, strict=True) if n and pair[0] in numbered_topics}
        owners = owners[has_number]
    numbered = np.bincount(owners, minlength=len(pairs)).tolist()
    counts = {pair: (n, after) for pair, n, after in zip(pairs, numbered, later, strict=True) if n}
    return SourceWrites(_runs(pairs, owners, numbers), counts, unnumbered)


def _later(owners: _Places, has_number: npt.NDArray[np.bool_], pair_count: int) -> list[int]:
    """Count for each pair the events without a number that come after its first with one."""
    positions = np.arange(len(owners))
    first_at = np.full(pair_count, len(owners))
    np.minimum.at(first_at, owners[has_number], positions[has_number])
    is_later = ~has_number & (positions > first_at[owners])
    counts: list[int] = np.bincount(owners[is_later], minlength=pair_count).tolist()
    return counts


def _runs(pairs: Sequence[Pair], owners: _Places, numbers: npt.NDArray[np.int64]) -> list[tuple[Pair, Range]]:
    if not len(numbers):
        return []
    order = np.lexsort((numbers, owners))
    owners, numbers = owners[order], numbers[order]
    # Unsigned, because the distance of two numbers may be too large for a signed one.
    distances = np.diff(numbers.view(np.uint64))
    starts = np.flatnonzero(np.concatenate(([True], (owners[1:] != owners[:-1]) | (distances > 1))))
    ends = np.append(starts[1:], len(numbers)) - 1
    columns = (owners[starts].tolist(), numbers[starts].tolist(), numbers[ends].tolist())
    return [(pairs[place], (first, last)) for place, first, last in zip(*columns, strict=True)]


def write_sources(connection: apsw.Connection, writes: SourceWrites) -> None:
    """Add to the tables of sources, inside the transaction of the events."""
    if writes.unnumbered:  # before the sources that are new now: theirs are counted from their first number on
        connection.execute(
            "UPDATE sources SET unnumbered = unnumbered + (f.value ->> 2) FROM json_each(?) f "
            "WHERE topic_id = (f.value ->> 0) AND source = (f.value ->> 1)",
            (_json([(*pair, count) for pair, count in writes.unnumbered.items()]),),
        )
    if not writes.runs:
        return
    runs: dict[Pair, list[Range]] = defaultdict(list)
    for pair, run in writes.runs:
        runs[pair].append(run)
    gone: list[tuple[int, str, int]] = []
    changed: list[tuple[int, str, int, int]] = []
    added: list[tuple[int, str, int, int, int, int]] = []
    touched = _touched(connection, writes.runs)
    for pair, new in runs.items():
        old = touched[pair]
        joined = _joined([*old, *new])
        changed += [(*pair, *one) for one in joined if one not in old]
        firsts = {first for first, _ in joined}
        gone += [(*pair, first) for first, _ in old if first not in firsts]
        received = sum(map(_length, joined)) - sum(map(_length, old))
        added.append((*pair, *writes.counts[pair], received, len(joined) - len(old)))
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


def _touched(connection: apsw.Connection, runs: Sequence[tuple[Pair, Range]]) -> dict[Pair, set[Range]]:
    """Return the stored ranges that runs overlap with or stand beside. All of them in one step."""
    asked = [(*pair, max(first - 1, SOURCE_SEQ_MIN), min(last + 1, SOURCE_SEQ_MAX)) for pair, (first, last) in runs]
    found = connection.execute(_TOUCHED, (_json(asked),)).get
    touched: dict[Pair, set[Range]] = defaultdict(set)
    for place, first, last in msgspec.json.decode(found):
        touched[runs[place][0]].add((first, last))
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
