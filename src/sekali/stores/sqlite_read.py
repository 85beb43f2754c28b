"""Reading the SQLite log in short transactions of bounded rows and bytes, so that no reader holds the WAL back."""

import queue
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import msgspec
import numpy as np

from sekali.errors import StoreBroken, TookTooLong
from sekali.ports import (
    PAGE_BYTES_MAX,
    Conflict,
    Lifetime,
    Page,
    Position,
    Query,
    Readable,
    StoredEvent,
    Summary,
    TopicInfo,
    Unreadable,
)
from sekali.stores.checksum import DAMAGE, content_hash, row_checksums
from sekali.stores.index_table import Seqs
from sekali.stores.sqlite_conditions import find_topic_ids, of_topics, one_of, where_all
from sekali.stores.sqlite_file import close_quietly, open_reader

SCAN_ROWS_MAX = 50_000
READ_TIMEOUT_S = 10.0
STEPS_BETWEEN_LOOKS = 20_000  # of SQLite's virtual machine: some tenths of a millisecond
READERS_IDLE_MAX = 16

_EVENT_COLUMNS = (
    "e.seq, t.topic, e.event_id, e.timestamp_ns, e.processed_at_ns, e.source, e.source_seq, e.payload, "
    "coalesce(d.count, 0), d.last_at_ns, e.checksum"
)
_PAYLOAD = 7  # its place among these
_EVENT_JOINS = "CROSS JOIN topics t ON t.topic_id = e.topic_id LEFT JOIN duplicates d ON d.seq = e.seq"


class Readers:
    """A pool of read-only connections. Safe for any number of threads, each using one connection at a time.

    A reader that is still there after ``timeout_s`` is ended: the write-ahead log cannot start over before it.
    """

    def __init__(self, db_path: Path, vfs: str | None = None, *, timeout_s: float = READ_TIMEOUT_S) -> None:
        self._db_path = db_path
        self._vfs = vfs
        self._timeout_s = timeout_s
        self._idle: queue.LifoQueue[apsw.Connection] = queue.LifoQueue(READERS_IDLE_MAX)

    @contextmanager
    def snapshot(self) -> Iterator[apsw.Connection]:
        """Lend a connection inside a read transaction.

        Raises:
            StoreBroken: SQLite cannot read the file.
            TookTooLong: it was in use for more than ``timeout_s``.

        """
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = open_reader(self._db_path, self._vfs)
        ends_at_s = time.monotonic() + self._timeout_s
        connection.set_progress_handler(lambda: time.monotonic() > ends_at_s, STEPS_BETWEEN_LOOKS)
        try:
            with connection:
                yield connection
        except apsw.InterruptError as error:
            close_quietly(connection)
            raise TookTooLong(
                f"the query took longer than {self._timeout_s:g} s (READ_TIMEOUT_S) and was ended; ask for less at "
                "a time"
            ) from error
        except (apsw.Error, *DAMAGE) as error:
            close_quietly(connection)
            raise StoreBroken(f"cannot read {self._db_path}: {error}; run sekali verify") from error
        except BaseException:
            close_quietly(connection)
            raise
        try:
            self._idle.put_nowait(connection)
        except queue.Full:
            close_quietly(connection)

    def close(self) -> None:
        """Close what is idle. May be called twice."""
        while True:
            try:
                close_quietly(self._idle.get_nowait())
            except queue.Empty:
                return

    def read(self, query: Query, candidates: list[int] | None) -> Page:
        """See ``EventStore.read``. ``candidates`` are seqs of all events that may match, where that is known."""
        with self.snapshot() as connection:
            scan = _plan(connection, query, candidates)
            return Page([], None) if scan is None else _read_page(connection, query, scan)

    def missing(self, topic: str, event_ids: Sequence[str], candidates: Seqs) -> list[str]:
        """See ``EventStore.missing``. ``candidates`` are the seqs of all events that may have one of the ids."""
        if not len(candidates):
            return list(event_ids)
        with self.snapshot() as connection:
            found = {
                event_id
                for (event_id,) in connection.execute(
                    "SELECT e.event_id FROM carray(?) c CROSS JOIN events e ON e.seq = c.value "
                    "WHERE e.topic_id = (SELECT topic_id FROM topics WHERE topic = ?)",
                    (apsw.carray(np.unique(candidates)), topic),
                )
            }
        return [event_id for event_id in event_ids if event_id not in found]

    def topics(self, after: str, limit: int, readable: Readable = None) -> list[TopicInfo]:
        """See ``EventStore.topics``."""
        with self.snapshot() as connection:
            where, bindings = where_all([("topic > ?", after), *of_topics(connection, "topic_id", readable)])
            return [
                TopicInfo(*row)
                for row in connection.execute(
                    "SELECT topic, stored, duplicates, conflicts, first_seq, last_seq, last_timestamp_ns "
                    f"FROM topics {where} ORDER BY topic LIMIT ?",
                    (*bindings, limit),
                )
            ]

    def conflicts(self, after: int, limit: int, readable: Readable = None) -> list[Conflict]:
        """See ``EventStore.conflicts``."""
        found: list[Conflict] = []
        size = 0
        with self.snapshot() as connection:
            where, bindings = where_all([("c.number > ?", after), *of_topics(connection, "e.topic_id", readable)])
            # Texts as blobs: a damaged one must not end the walk.
            for row in connection.execute(
                "SELECT c.number, c.seq, t.topic, CAST(e.event_id AS BLOB), CAST(c.source AS BLOB), c.payload, "
                "c.count, c.first_at_ns, c.last_at_ns, c.content_hash "
                "FROM conflicts c CROSS JOIN events e ON e.seq = c.seq "
                f"CROSS JOIN topics t ON t.topic_id = e.topic_id {where} ORDER BY c.number LIMIT ?",
                (*bindings, limit),
            ):
                found.append(_conflict(row))
                size += len(found[-1].payload)
                if size > PAGE_BYTES_MAX:
                    break
        return found

    def summary(self, readable: Readable = None) -> Summary:
        """See ``EventStore.summary``."""
        with self.snapshot() as connection:
            if readable is not None:
                return _readable_summary(connection, readable)
            row = connection.execute(
                "SELECT log_id, (SELECT coalesce(max(seq), 0) FROM events), "
                "(SELECT coalesce(max(topic_id), 0) FROM topics), received, stored, duplicate, conflict FROM log"
            ).get
        log_id, head, topics_count, *counts = row
        return Summary(log_id, head, topics_count, Lifetime(*counts))


def _readable_summary(connection: apsw.Connection, readable: tuple[str, ...]) -> Summary:
    where, bindings = where_all(of_topics(connection, "topic_id", readable))
    row = connection.execute(
        "SELECT (SELECT log_id FROM log), coalesce(max(last_seq), 0), count(*), coalesce(sum(stored), 0), "
        f"coalesce(sum(duplicates), 0), coalesce(sum(conflicts), 0) FROM topics {where}",
        bindings,
    ).get
    log_id, head, topics_count, *counts = row
    return Summary(log_id, head, topics_count, Lifetime(sum(counts), *counts))


@dataclass(frozen=True, slots=True)
class _Scan:
    """A walk along one index. ``bounds`` are met by the index itself, ``filters`` row by row."""

    index: str
    key: tuple[str, ...]
    direction: str
    bounds: list[tuple[str, Any]]
    filters: list[tuple[str, Any]]

    @property
    def order(self) -> str:
        return ", ".join(f"e.{column} {self.direction}" for column in self.key)

    def beyond(self, position: tuple[int, ...], comparison: str) -> tuple[str, tuple[int, ...]]:
        columns, marks = ", ".join(f"e.{column}" for column in self.key), ", ".join("?" * len(self.key))
        return f"({columns}) {comparison} ({marks})", position


def _plan(connection: apsw.Connection, query: Query, candidates: list[int] | None) -> _Scan | None:
    """Choose the index to walk. None where nothing can match."""
    bounds: list[tuple[str, Any]] = []
    filters: list[tuple[str, Any]] = []
    one_topic = False
    if query.topic is not None or query.readable is not None:
        topic_ids = find_topic_ids(connection, query.topic, query.readable)
        if not topic_ids:
            return None
        one_topic = len(topic_ids) == 1
        if one_topic:
            bounds.append(("e.topic_id = ?", topic_ids[0]))
        else:
            filters.append(one_of("e.topic_id", topic_ids))
    by_time = query.order.by_time
    time_conditions = bounds if by_time and candidates is None else filters
    if query.since_ns is not None:
        time_conditions.append(("e.timestamp_ns >= ?", query.since_ns))
    if query.until_ns is not None:
        time_conditions.append(("e.timestamp_ns < ?", query.until_ns))
    seq_conditions = filters if by_time else bounds
    if query.after:
        seq_conditions.append(("e.seq > ?", query.after))
    if query.up_to is not None:
        newest = connection.execute("SELECT max(seq) FROM events").get or 0
        # By time what came later stands among the rest: few rows are skipped, of many only a window is looked at.
        skips_many = by_time and newest - query.up_to > SCAN_ROWS_MAX
        (filters if skips_many else bounds).append(("e.seq <= ?", query.up_to))
    if query.source is not None:
        filters.append(("e.source = ?", query.source))
    if query.event_id is not None:
        filters.append(("e.event_id = ?", query.event_id))
    if candidates is not None:
        bounds.append(one_of("e.seq", candidates))
    index = _index(by_time=by_time, one_topic=one_topic, by_seq=candidates is not None)
    key = ("timestamp_ns", "seq") if by_time else ("seq",)
    return _Scan(index, key, "DESC" if query.order.descending else "ASC", bounds, filters)


def _index(*, by_time: bool, one_topic: bool, by_seq: bool) -> str:
    if by_seq:
        return "NOT INDEXED"
    if by_time:
        return "INDEXED BY events_by_topic_time" if one_topic else "INDEXED BY events_by_time"
    return "INDEXED BY events_by_topic" if one_topic else "NOT INDEXED"


def _read_page(connection: apsw.Connection, query: Query, scan: _Scan) -> Page:
    conditions = list(scan.bounds)
    if query.position is not None:
        position = (query.position.timestamp_ns, query.position.seq) if query.order.by_time else (query.position.seq,)
        conditions.append(scan.beyond(position, "<" if query.order.descending else ">"))
    window_end = _window_end(connection, scan, conditions) if scan.filters else None
    if window_end is not None:
        conditions.append(scan.beyond(window_end, ">=" if query.order.descending else "<="))
    where, bindings = where_all(conditions + scan.filters)
    statement = f"FROM events e {scan.index} {_EVENT_JOINS} {where} ORDER BY {scan.order} LIMIT ?"
    try:
        rows = connection.execute(f"SELECT {_EVENT_COLUMNS} {statement}", (*bindings, query.limit + 1))
        found, is_cut = _take(rows, query)
        events, cut_at = _checked(found), Position(found[-1][0], found[-1][3]) if is_cut else None
    except DAMAGE:  # find out which row, and give the others
        rows = connection.execute(f"SELECT e.seq, e.timestamp_ns {statement}", (*bindings, query.limit + 1))
        events, cut_at = _read_damaged(connection, rows, query.limit)
    if cut_at is not None:
        return Page(events, cut_at)
    if window_end is not None:
        return Page(events, Position(window_end[-1], window_end[0] if query.order.by_time else 0))
    return Page(events, None)


def _window_end(connection: apsw.Connection, scan: _Scan, conditions: list[tuple[str, Any]]) -> tuple[int, ...] | None:
    """Return the key of the last row that one page may look at, or None if the index ends before it."""
    where, bindings = where_all(conditions)
    columns = ", ".join(f"e.{column}" for column in scan.key)
    row = connection.execute(
        f"SELECT {columns} FROM events e {scan.index} {where} ORDER BY {scan.order} LIMIT 1 OFFSET {SCAN_ROWS_MAX - 1}",
        bindings,
    ).fetchone()
    return None if row is None else tuple(row)


def _take(rows: Iterator[Any], query: Query) -> tuple[list[Any], bool]:
    """Take rows up to the page's limits; also tell whether there was one more."""
    found: list[Any] = []
    size = 0
    for row in rows:
        if len(found) == query.limit or size > query.bytes_max:
            return found, True
        found.append(row)
        size += len(row[_PAYLOAD])
    return found, False


def _checked(rows: Sequence[Any]) -> list[StoredEvent | Unreadable]:
    """Make events of rows, but of those that are not what was stored.

    What was stored had been seen to be valid, so an equal checksum is all that has to be seen again.
    """
    if not rows:
        return []
    *columns, _, _, kept = zip(*rows, strict=True)
    seqs, topics, event_ids, timestamps_ns, processed_at_ns, sources, source_seqs, payloads = columns
    found = row_checksums(seqs, topics, event_ids, timestamps_ns, processed_at_ns, sources, source_seqs, payloads)
    if found == list(kept):
        return [StoredEvent(*row[:-1]) for row in rows]
    return [
        StoredEvent(*row[:-1])
        if checksum == row[-1]
        else Unreadable(row[0], "the checksum does not fit: the row is damaged")
        for row, checksum in zip(rows, found, strict=True)
    ]


def _conflict(row: Any) -> Conflict:
    number, seq, topic, event_id, source, payload, count, first_at_ns, last_at_ns, kept = row
    try:
        damaged = content_hash(source, payload) != kept
        texts = event_id.decode(), source.decode()
    except (msgspec.MsgspecError, RecursionError, *DAMAGE):
        damaged, texts = True, ("", "")
    return Conflict(number, seq, topic, *texts, payload, count, first_at_ns, last_at_ns, damaged)


def _read_damaged(
    connection: apsw.Connection, rows: Iterator[Any], limit: int
) -> tuple[list[StoredEvent | Unreadable], Position | None]:
    keys = list(rows)
    events: list[StoredEvent | Unreadable] = []
    for seq, _ in keys[:limit]:
        try:
            row = connection.execute(
                f"SELECT {_EVENT_COLUMNS} FROM events e {_EVENT_JOINS} WHERE e.seq = ?",
                (seq,),
            ).fetchone()
            assert row is not None  # it was found in the same transaction
            events.extend(_checked([row]))
        except DAMAGE as error:
            events.append(Unreadable(seq, f"the row is damaged: {error}"))
    return events, Position(*keys[limit - 1]) if len(keys) > limit else None
