"""The rows of a commit: events, counts of duplicates, variants in conflict, figures of topics and of the log.

``plan`` puts them together before the commit's turn comes, ``write`` hands them to SQLite.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import apsw
import msgspec
import numpy as np

from sekali.stores.checksum import content_hash, row_checksums
from sekali.stores.index_table import Seqs
from sekali.stores.sqlite_judge import Judge, Variant
from sekali.stores.sqlite_lookup import Columns
from sekali.stores.sqlite_sources import SourceWrites, plan_sources, write_sources

# A statement takes and gives back the interpreter lock once, whatever its number of rows. More rows than this and its
# text would be too long for apsw's cache of prepared statements (16 KiB).
ROWS_PER_STATEMENT_MAX = 1000
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class Writes:
    """What one group of batches adds to the file."""

    topics: list[tuple[int, str, int, int]]  # topic_id, topic, and what first_seq and last_timestamp_ns start from
    inserts: list[tuple[str, tuple[Any, ...]]]  # statements that insert events, with their values
    duplicate_seqs: Seqs
    variants: Sequence[Variant]
    figures: str  # of topics, as JSON
    sources: SourceWrites | None
    counts: tuple[int, int, int]  # stored, duplicate, conflict
    processed_at_ns: int
    last_seq: int  # of the log once it is written; SQLite gives seqs out, and has to come to the same


class SeqsDiffer(Exception):
    """What was judged does not fit what is stored: groups were written in another order than they were judged."""


def plan(judge: Judge, rows: Columns, processed_at_ns: int, numbered_topics: AbstractSet[int]) -> Writes:
    """Put together what the judge decided; ``rows`` are the new events. For ``numbered_topics`` see plan_sources."""
    last_seq = judge.first_seq + judge.new_count - 1
    _, event_ids, timestamps_ns, sources, source_seqs, payloads = rows
    checksums = row_checksums(
        range(judge.first_seq, last_seq + 1),
        judge.new_topic_names(),
        event_ids,
        timestamps_ns,
        processed_at_ns,
        sources,
        source_seqs,
        payloads,
    )
    return Writes(
        [(topic_id, topic, _INT64_MAX, _INT64_MIN) for topic, topic_id in judge.new_topics.items()],
        list(_inserts(rows, checksums, processed_at_ns)),
        np.sort(np.array(judge.duplicate_seqs, np.int64)),
        judge.variants,
        _figures(judge, rows),
        plan_sources(rows, numbered_topics),
        (judge.new_count, len(judge.duplicate_seqs), len(judge.variants)),
        processed_at_ns,
        last_seq,
    )


def _inserts(rows: Columns, checksums: Sequence[int], processed_at_ns: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    start, left, size = 0, len(rows.topic_ids), ROWS_PER_STATEMENT_MAX
    while left:
        if left >= size:  # 1000, 500, 250, … rows, so that there are few statements to prepare
            chunk = zip(*[column[start : start + size] for column in (*rows, checksums)], strict=True)
            yield _insert(size), (processed_at_ns, *chain.from_iterable(chunk))
            start, left = start + size, left - size
        else:
            size //= 2


@cache
def _insert(rows: int) -> str:
    # seq is the next one by itself; processed_at, ?1, is the same for all rows.
    return (
        "INSERT INTO events SELECT NULL,column1,column2,column3,?1,column4,column5,column6,column7 "
        f"FROM (VALUES (?2,?,?,?,?,?,?){',(?,?,?,?,?,?,?)' * (rows - 1)})"
    )


def _figures(judge: Judge, rows: Columns) -> str:
    """Return what is to be added to each topic: counts, seqs and latest event time."""
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
    return msgspec.json.encode(list(figures.values())).decode()


def write(connection: apsw.Connection, groups: Sequence[Writes], conflict_bytes: int, conflict_bytes_max: int) -> int:
    """Write all groups of a commit, and return how many bytes of variants are kept after it."""
    for writes in groups:
        conflict_bytes += _write_group(connection, writes)
    conflict_bytes -= _drop_oldest_variants(connection, conflict_bytes - conflict_bytes_max)
    counts = [sum(writes.counts[place] for writes in groups) for place in range(3)]
    connection.execute(
        "UPDATE log SET received = received + ?, stored = stored + ?, duplicate = duplicate + ?, "
        "conflict = conflict + ?, commits = commits + 1",
        (sum(counts), *counts),
    )
    return conflict_bytes


def _write_group(connection: apsw.Connection, writes: Writes) -> int:
    """Write one group, and return how many bytes of variants it added."""
    if writes.topics:
        connection.executemany("INSERT INTO topics VALUES (?, ?, 0, 0, 0, ?, 0, ?)", writes.topics)
    for statement, values in writes.inserts:
        connection.execute(statement, values)
    if writes.inserts and connection.last_insert_rowid() != writes.last_seq:
        raise SeqsDiffer(f"the last event got seq {connection.last_insert_rowid()}, and {writes.last_seq} was told")
    if len(writes.duplicate_seqs):
        connection.execute(
            "INSERT INTO duplicates SELECT value, 1, ? FROM carray(?) WHERE true ON CONFLICT (seq) DO UPDATE "
            "SET count = count + 1, last_at_ns = excluded.last_at_ns",
            (writes.processed_at_ns, apsw.carray(writes.duplicate_seqs)),
        )
    connection.execute(
        "UPDATE topics SET stored = stored + (f.value ->> 1), duplicates = duplicates + (f.value ->> 2), "
        "conflicts = conflicts + (f.value ->> 3), first_seq = min(first_seq, f.value ->> 4), "
        "last_seq = max(last_seq, f.value ->> 5), last_timestamp_ns = max(last_timestamp_ns, f.value ->> 6) "
        "FROM json_each(?) f WHERE topic_id = (f.value ->> 0)",
        (writes.figures,),
    )
    if writes.sources is not None:
        write_sources(connection, writes.sources)
    return _write_variants(connection, writes.variants, writes.processed_at_ns)


def _write_variants(connection: apsw.Connection, variants: Sequence[Variant], processed_at_ns: int) -> int:
    added = 0
    for seq, _, source, payload in variants:
        variant_hash = content_hash(source.encode(), payload)
        connection.execute(
            "UPDATE conflicts SET count = count + 1, last_at_ns = ? WHERE seq = ? AND content_hash = ?",
            (processed_at_ns, seq, variant_hash),
        )
        if not connection.changes():
            connection.execute(
                "INSERT INTO conflicts (seq, content_hash, source, payload, count, first_at_ns, last_at_ns) "
                "VALUES (?, ?, ?, ?, 1, ?, ?)",
                (seq, variant_hash, source, payload, processed_at_ns, processed_at_ns),
            )
            added += len(payload) + len(source.encode())
    return added


def _drop_oldest_variants(connection: apsw.Connection, surplus: int) -> int:
    """Drop variants until so many bytes are gone, and return how many are."""
    dropped = 0
    while dropped < surplus:
        dropped += connection.execute(
            "DELETE FROM conflicts WHERE number = (SELECT min(number) FROM conflicts) "
            "RETURNING length(payload) + octet_length(source)"
        ).get
    return dropped
