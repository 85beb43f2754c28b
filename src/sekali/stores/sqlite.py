"""The log on one SQLite file. One connection does all writes, inside ``commit``; readers have their own."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import apsw

from sekali import jsonvalue
from sekali.errors import CommitUnknown
from sekali.event import Batch, Outcome, Verdict
from sekali.ports import CONFLICT_BYTES_MAX, Conflict, Page, Query, Summary, TopicInfo
from sekali.stores.sqlite_file import FolderLock, close_quietly, make_folder, open_writer
from sekali.stores.sqlite_read import Readers

# One statement for many rows: each statement takes and gives back the interpreter lock once.
ROWS_PER_STATEMENT = 100


class _First(NamedTuple):
    """The event that holds an identity."""

    seq: int
    source: str
    payload: bytes


class _Row(NamedTuple):
    """A row of events, its columns in the table's order."""

    seq: int
    topic_id: int
    event_id: str
    timestamp_ns: int
    processed_at_ns: int
    source: str
    source_seq: int | None
    payload: bytes


@dataclass(slots=True)
class _Changes:
    """What one transaction adds. It becomes the store's memory only after the commit."""

    head: int
    processed_at_ns: int
    conflict_bytes: int
    new_topics: dict[str, int] = field(default_factory=dict)
    rows: list[_Row] = field(default_factory=list)
    firsts: dict[tuple[int, str], _First] = field(default_factory=dict)
    duplicates: Counter[int] = field(default_factory=Counter)
    variants: list[tuple[int, str, bytes]] = field(default_factory=list)
    counts: Counter[tuple[int, Outcome]] = field(default_factory=Counter)


class SqliteStore:
    """An ``EventStore`` on one SQLite file, which it locks against other processes.

    ``clock_ns`` gives the wall clock in nanoseconds. Beyond ``topics_max`` topics an event of a new one is invalid.

    Raises:
        StartupError: the file or its folder cannot be used; the message says what to do.
        StoreBroken: SQLite cannot open the file.

    """

    def __init__(
        self,
        db_path: Path,
        clock_ns: Callable[[], int],
        *,
        topics_max: int,
        conflict_bytes_max: int = CONFLICT_BYTES_MAX,
    ) -> None:
        self._db_path = db_path
        self._clock_ns = clock_ns
        self._topics_max = topics_max
        self._conflict_bytes_max = conflict_bytes_max
        make_folder(db_path)
        self._lock = FolderLock(db_path)
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        self._readers = Readers(db_path)

    def _open(self) -> None:
        self._writer = open_writer(self._db_path)
        self._topic_ids: dict[str, int] = dict(iter(self._writer.execute("SELECT topic, topic_id FROM topics")))
        newest = self._writer.execute("SELECT seq, processed_at_ns FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        self._head: int
        self._processed_at_ns: int
        self._head, self._processed_at_ns = newest or (0, 0)
        self._conflict_bytes: int = self._writer.execute(
            "SELECT coalesce(sum(length(payload) + octet_length(source)), 0) FROM conflicts"
        ).get

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def commit(self, prepared: Sequence[Batch]) -> list[list[Verdict]]:
        changes = _Changes(self._head, max(self._processed_at_ns, self._clock_ns()), self._conflict_bytes)
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            verdicts = [self._judge_batch(batch, changes) for batch in prepared]
            self._write(changes)
            self._writer.execute("COMMIT")
        except apsw.Error as error:
            with suppress(apsw.Error):  # after an I/O error SQLite may have rolled back by itself
                self._writer.execute("ROLLBACK")
            raise CommitUnknown(f"commit failed: {error}") from error
        if changes.rows:
            self._head, self._processed_at_ns = changes.head, changes.processed_at_ns
        self._conflict_bytes = changes.conflict_bytes
        self._topic_ids.update(changes.new_topics)
        return verdicts

    def _judge_batch(self, batch: Batch, changes: _Changes) -> list[Verdict]:
        refused = self._make_topics(batch, changes)
        if refused and batch.all_or_nothing:
            other = Verdict(Outcome.INVALID, error="event: not stored, because another item of the request is invalid")
            return [self._refusal() if topic in refused else other for topic in batch.topics]
        topic_ids = [self._topic_ids.get(topic) or changes.new_topics.get(topic, 0) for topic in batch.topics]
        self._look_up(topic_ids, batch.event_ids, changes)
        return [
            self._judge(key, position, batch, changes) if key[0] else self._refusal()
            for position, key in enumerate(zip(topic_ids, batch.event_ids, strict=True))
        ]

    def _make_topics(self, batch: Batch, changes: _Changes) -> set[str]:
        """Give ids to the topics that are new, and return those for which there is no room."""
        new = [
            topic
            for topic in dict.fromkeys(batch.topics)
            if topic not in self._topic_ids and topic not in changes.new_topics
        ]
        count = len(self._topic_ids) + len(changes.new_topics)
        room = max(self._topics_max - count, 0)
        if new[room:] and batch.all_or_nothing:
            return set(new[room:])
        changes.new_topics.update({topic: count + 1 + place for place, topic in enumerate(new[:room])})
        return set(new[room:])

    def _refusal(self) -> Verdict:
        return Verdict(Outcome.INVALID, error=f"topic: the store already holds {self._topics_max} topics (TOPICS_MAX)")

    def _look_up(self, topic_ids: list[int], event_ids: list[str], changes: _Changes) -> None:
        """Put the events that hold one of the identities into ``changes.firsts``, unless they are there."""
        wanted = [key for key in zip(topic_ids, event_ids, strict=True) if key not in changes.firsts]
        for start in range(0, len(wanted), ROWS_PER_STATEMENT):
            keys = wanted[start : start + ROWS_PER_STATEMENT]
            marks = ",".join(["(?,?)"] * len(keys))
            for topic_id, event_id, *first in self._writer.execute(
                f"WITH wanted AS (VALUES {marks}) "
                "SELECT e.topic_id, e.event_id, e.seq, e.source, e.payload "
                "FROM wanted CROSS JOIN events e INDEXED BY events_by_identity "
                "ON e.topic_id = wanted.column1 AND e.event_id = wanted.column2",
                list(chain.from_iterable(keys)),
            ):
                changes.firsts[topic_id, event_id] = _First(*first)

    def _judge(self, key: tuple[int, str], position: int, batch: Batch, changes: _Changes) -> Verdict:
        source, payload = batch.sources[position], batch.payloads[position]
        first = changes.firsts.get(key)
        if first is None:
            changes.head += 1
            changes.firsts[key] = first = _First(changes.head, source, payload)
            changes.rows.append(
                _Row(
                    first.seq,
                    *key,
                    batch.timestamps_ns[position],
                    changes.processed_at_ns,
                    source,
                    batch.source_seqs[position],
                    payload,
                )
            )
            outcome = Outcome.STORED
        elif first.source == source and jsonvalue.equal(first.payload, payload):
            changes.duplicates[first.seq] += 1
            outcome = Outcome.DUPLICATE
        else:
            changes.variants.append((first.seq, source, payload))
            outcome = Outcome.CONFLICT
        changes.counts[key[0], outcome] += 1
        return Verdict(outcome, first.seq)

    def _write(self, changes: _Changes) -> None:
        self._write_topics(changes)
        for start in range(0, len(changes.rows), ROWS_PER_STATEMENT):
            rows = changes.rows[start : start + ROWS_PER_STATEMENT]
            self._writer.execute(
                "INSERT INTO events VALUES " + ",".join(["(?,?,?,?,?,?,?,?)"] * len(rows)),
                list(chain.from_iterable(rows)),
            )
        self._writer.executemany(
            "INSERT INTO duplicates VALUES (?, ?, ?) ON CONFLICT (seq) DO UPDATE "
            "SET count = count + excluded.count, last_at_ns = excluded.last_at_ns",
            [(seq, count, changes.processed_at_ns) for seq, count in changes.duplicates.items()],
        )
        if changes.variants:
            self._write_variants(changes)
        totals: Counter[Outcome] = Counter()
        for (_, outcome), count in changes.counts.items():
            totals[outcome] += count
        self._writer.execute(
            "UPDATE log SET received = received + ?, stored = stored + ?, duplicate = duplicate + ?, "
            "conflict = conflict + ?",
            (totals.total(), *(totals[outcome] for outcome in _COUNTED)),
        )

    def _write_topics(self, changes: _Changes) -> None:
        self._writer.executemany(
            "INSERT INTO topics VALUES (?, ?, 0, 0, 0, ?, 0, ?)",
            [(topic_id, topic, 2**63 - 1, -(2**63)) for topic, topic_id in changes.new_topics.items()],
        )
        stored: dict[int, tuple[int, int, int]] = {}  # first seq, last seq, latest event time of what is new
        for row in changes.rows:
            first, _, latest_ns = stored.get(row.topic_id, (row.seq, row.seq, row.timestamp_ns))
            stored[row.topic_id] = (first, row.seq, max(latest_ns, row.timestamp_ns))
        self._writer.executemany(
            "UPDATE topics SET stored = stored + ?, duplicates = duplicates + ?, conflicts = conflicts + ?, "
            "first_seq = min(first_seq, ?), last_seq = max(last_seq, ?), last_timestamp_ns = max(last_timestamp_ns, ?) "
            "WHERE topic_id = ?",
            [
                (
                    *(changes.counts[topic_id, outcome] for outcome in _COUNTED),
                    *stored.get(topic_id, (2**63 - 1, 0, -(2**63))),
                    topic_id,
                )
                for topic_id in {topic_id for topic_id, _ in changes.counts}
            ],
        )

    def _write_variants(self, changes: _Changes) -> None:
        for seq, source, payload in changes.variants:
            content_hash = hashlib.sha256(source.encode() + b"\0" + jsonvalue.canonical(payload)).digest()
            self._writer.execute(
                "UPDATE conflicts SET count = count + 1, last_at_ns = ? WHERE seq = ? AND content_hash = ?",
                (changes.processed_at_ns, seq, content_hash),
            )
            if not self._writer.changes():
                self._writer.execute(
                    "INSERT INTO conflicts (seq, content_hash, source, payload, count, first_at_ns, last_at_ns) "
                    "VALUES (?, ?, ?, ?, 1, ?, ?)",
                    (seq, content_hash, source, payload, changes.processed_at_ns, changes.processed_at_ns),
                )
                changes.conflict_bytes += len(payload) + len(source.encode())
        while changes.conflict_bytes > self._conflict_bytes_max:
            changes.conflict_bytes -= self._writer.execute(
                "DELETE FROM conflicts WHERE number = (SELECT min(number) FROM conflicts) "
                "RETURNING length(payload) + octet_length(source)"
            ).get

    def reopen(self) -> None:
        close_quietly(self._writer)
        self._open()

    def read(self, query: Query) -> Page:
        return self._readers.read(query)

    def missing(self, topic: str, event_ids: Sequence[str]) -> list[str]:
        return self._readers.missing(topic, event_ids)

    def topics(self, after: str, limit: int) -> list[TopicInfo]:
        return self._readers.topics(after, limit)

    def conflicts(self, after: int, limit: int) -> list[Conflict]:
        return self._readers.conflicts(after, limit)

    def summary(self) -> Summary:
        return self._readers.summary()

    def close(self) -> None:
        self._readers.close()
        close_quietly(self._writer)
        self._lock.release()


_COUNTED = (Outcome.STORED, Outcome.DUPLICATE, Outcome.CONFLICT)
