"""The rows of one commit: events, counts of duplicates, variants in conflict, figures of topics and of the log."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain

import apsw
import msgspec
import numpy as np

from sekali import jsonvalue
from sekali.stores.sqlite_judge import Judge, Variant
from sekali.stores.sqlite_lookup import Columns

# A statement takes and gives back the interpreter lock once, whatever its number of rows. More rows than this and its
# text would be too long for apsw's cache of prepared statements (16 KiB).
ROWS_PER_STATEMENT_MAX = 512
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


def write(
    connection: apsw.Connection,
    judge: Judge,
    rows: Columns,
    processed_at_ns: int,
    conflict_bytes: int,
    conflict_bytes_max: int,
) -> int:
    """Write ``rows`` and what else the judge decided, and return how many bytes of variants are kept after it."""
    if judge.new_topics:
        connection.executemany(
            "INSERT INTO topics VALUES (?, ?, 0, 0, 0, ?, 0, ?)",
            [(topic_id, topic, _INT64_MAX, _INT64_MIN) for topic, topic_id in judge.new_topics.items()],
        )
    if judge.new_count:
        _write_events(connection, rows, processed_at_ns)
    if judge.duplicate_seqs:
        connection.execute(
            "INSERT INTO duplicates SELECT value, 1, ? FROM carray(?) WHERE true ON CONFLICT (seq) DO UPDATE "
            "SET count = count + 1, last_at_ns = excluded.last_at_ns",
            (processed_at_ns, apsw.carray(np.sort(judge.duplicate_seqs))),
        )
    if judge.variants:
        conflict_bytes = _write_variants(connection, judge.variants, processed_at_ns, conflict_bytes)
        conflict_bytes = _drop_oldest_variants(connection, conflict_bytes, conflict_bytes_max)
    counts = (judge.new_count, len(judge.duplicate_seqs), len(judge.variants))
    if sum(counts):
        _write_topic_figures(connection, judge, rows)
    connection.execute(
        "UPDATE log SET received = received + ?, stored = stored + ?, duplicate = duplicate + ?, "
        "conflict = conflict + ?",
        (sum(counts), *counts),
    )
    return conflict_bytes


def _write_events(connection: apsw.Connection, rows: Columns, processed_at_ns: int) -> None:
    start = 0
    for size in _statement_sizes(len(rows.topic_ids)):
        chunk = zip(*[column[start : start + size] for column in rows], strict=True)
        connection.execute(_insert_events(size), (processed_at_ns, *chain.from_iterable(chunk)))
        start += size


def _statement_sizes(rows: int) -> Iterator[int]:
    """Cut a number of rows into powers of two, so that there are few statements to prepare."""
    size = ROWS_PER_STATEMENT_MAX
    while rows:
        if rows >= size:
            yield size
            rows -= size
        else:
            size //= 2


@cache
def _insert_events(rows: int) -> str:
    # seq is the next one by itself; processed_at, ?1, is the same for all rows.
    return "INSERT INTO events VALUES (NULL,?2,?,?,?1,?,?,?)" + ",(NULL,?,?,?,?1,?,?,?)" * (rows - 1)


def _write_topic_figures(connection: apsw.Connection, judge: Judge, rows: Columns) -> None:
    """Add what is new to each topic's counts, seqs and latest event time, in one statement."""
    figures: dict[int, list[int]] = {}
    if judge.new_count:
        topic_ids = np.array(rows.topic_ids)
        order = np.argsort(topic_ids, kind="stable")
        topic_ids = topic_ids[order]
        starts = np.flatnonzero(np.diff(topic_ids, prepend=0))
        ends = np.append(starts[1:], len(order))
        latest_ns = np.maximum.reduceat(np.array(rows.timestamps_ns)[order], starts)
        seqs = order + judge.first_seq
        columns = (topic_ids[starts], ends - starts, seqs[starts], seqs[ends - 1], latest_ns)
        for topic_id, count, first_seq, last_seq, time_ns in zip(*(column.tolist() for column in columns), strict=True):
            figures[topic_id] = [topic_id, count, 0, 0, first_seq, last_seq, time_ns]
    for place, again in (
        (2, Counter(judge.duplicate_topic_ids)),
        (3, Counter(variant.topic_id for variant in judge.variants)),
    ):
        for topic_id, count in again.items():
            figures.setdefault(topic_id, [topic_id, 0, 0, 0, _INT64_MAX, 0, _INT64_MIN])[place] = count
    connection.execute(
        "UPDATE topics SET stored = stored + (f.value ->> 1), duplicates = duplicates + (f.value ->> 2), "
        "conflicts = conflicts + (f.value ->> 3), first_seq = min(first_seq, f.value ->> 4), "
        "last_seq = max(last_seq, f.value ->> 5), last_timestamp_ns = max(last_timestamp_ns, f.value ->> 6) "
        "FROM json_each(?) f WHERE topic_id = (f.value ->> 0)",
        (msgspec.json.encode(list(figures.values())).decode(),),
    )


def _write_variants(
    connection: apsw.Connection, variants: Sequence[Variant], processed_at_ns: int, conflict_bytes: int
) -> int:
    for seq, _, source, payload in variants:
        content_hash = hashlib.sha256(source.encode() + b"\0" + jsonvalue.canonical(payload)).digest()
        connection.execute(
            "UPDATE conflicts SET count = count + 1, last_at_ns = ? WHERE seq = ? AND content_hash = ?",
            (processed_at_ns, seq, content_hash),
        )
        if not connection.changes():
            connection.execute(
                "INSERT INTO conflicts (seq, content_hash, source, payload, count, first_at_ns, last_at_ns) "
                "VALUES (?, ?, ?, ?, 1, ?, ?)",
                (seq, content_hash, source, payload, processed_at_ns, processed_at_ns),
            )
            conflict_bytes += len(payload) + len(source.encode())
    return conflict_bytes


def _drop_oldest_variants(connection: apsw.Connection, conflict_bytes: int, conflict_bytes_max: int) -> int:
    while conflict_bytes > conflict_bytes_max:
        conflict_bytes -= connection.execute(
            "DELETE FROM conflicts WHERE number = (SELECT min(number) FROM conflicts) "
            "RETURNING length(payload) + octet_length(source)"
        ).get
    return conflict_bytes
