"""The offline audit behind ``sekali verify``: does the file hold what the promise says?"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import apsw
import msgspec

from sekali import jsonvalue
from sekali.errors import StoreBroken
from sekali.event import event_id_fault
from sekali.stores.checksum import DAMAGE, content_hash, row_checksums
from sekali.stores.folder import FolderLock
from sekali.stores.high_water import HighWaterMark, MarkDamaged, mark_name, mark_of
from sekali.stores.index_files import FolderFiles
from sekali.stores.sqlite_file import close_quietly, open_reader
from sekali.stores.sqlite_source_rows import source_faults
from sekali.stores.sqlite_subscriptions_audit import subscription_faults
from sekali.topics import topic_fault

FAILURES_LISTED_MAX = 20
ROWS_AT_ONCE = 5000


@dataclass
class Check:
    """One thing that has to hold. ``failures`` lists the first few places where it does not."""

    name: str
    failures: list[str] = field(default_factory=list)
    failure_count: int = 0

    @property
    def ok(self) -> bool:
        """Whether it holds."""
        return self.failure_count == 0

    def fail(self, place: str) -> None:
        """Note a place where it does not hold."""
        self.failure_count += 1
        if len(self.failures) < FAILURES_LISTED_MAX:
            self.failures.append(place)


@dataclass
class Report:
    """What an audit found. ``ok`` when every check holds."""

    db_path: str
    log_id: str
    events: int
    checks: list[Check]

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    def document(self) -> dict[str, Any]:
        """Return the report as a JSON document."""
        checks = [{"name": check.name, "ok": check.ok, **asdict(check)} for check in self.checks]
        return {"ok": self.ok, "db_path": self.db_path, "log_id": self.log_id, "events": self.events, "checks": checks}


# Told how many of how many rows are done.
Progress = Callable[[int, int], None]


def audit(db_path: Path, progress: Progress) -> Report:
    """Check a store that no server has open.

    Raises:
        StartupError: a server has it open.
        StoreBroken: it cannot be opened, or is too damaged to be walked through.

    """
    if not db_path.is_file():
        raise StoreBroken(f"there is no store at {db_path}; name it with --db-path or DB_PATH")
    db_path = db_path.resolve()
    lock = FolderLock(db_path)
    try:
        return audit_file(db_path, progress, HighWaterMark(FolderFiles(db_path.parent), mark_name(db_path)))
    finally:
        lock.release()


def audit_file(db_path: Path, progress: Progress, high_water: HighWaterMark | None = None) -> Report:
    """Check a file that nobody writes to, and whether it holds all that its high-water mark tells of.

    Raises:
        StoreBroken: it cannot be opened, or is too damaged to be walked through.

    """
    connection = open_reader(db_path)
    try:
        connection.execute("BEGIN")  # one moment for all checks
        report = _audit(connection, db_path, progress)
        if high_water is not None:
            report.checks.append(_check_tail(connection, high_water))
        return report
    except (apsw.Error, *DAMAGE) as error:
        raise StoreBroken(f"{db_path} cannot be read through: {error}; restore a backup") from error
    finally:
        close_quietly(connection)


def _audit(connection: apsw.Connection, db_path: Path, progress: Progress) -> Report:
    log_id, events = connection.execute("SELECT log_id, (SELECT count(*) FROM events) FROM log").get
    checks = [
        _check_integrity(connection),
        _check_rows(connection, events, progress),
        _check_seqs(connection, events),
        _check_identities(connection),
        _check_counters(connection),
        _check_topics(connection),
        _check_sources(connection),
        _check_references(connection),
        _check_variants(connection),
        _check_subscriptions(connection),
    ]
    return Report(str(db_path), log_id, events, checks)


def _check_integrity(connection: apsw.Connection) -> Check:
    check = Check("SQLite finds no damage in the file")
    for (line,) in connection.execute(f"PRAGMA integrity_check({FAILURES_LISTED_MAX})"):
        if line != "ok":
            check.fail(line)
    return check


def _check_rows(connection: apsw.Connection, events: int, progress: Progress) -> Check:
    check = Check("every event can be read back as it was stored")
    done = 0
    processed_at_ns = 0
    for rows in _chunks(connection):
        # All of a chunk at once; only where that fails, one by one.
        if not (all(map(_is_text, rows)) and _has_checksums(rows)):
            for row in rows:
                if (fault := _row_fault(row)) is not None:
                    check.fail(f"seq {row[0]}: {fault}")
        for row in rows:
            if row[4] < processed_at_ns:
                check.fail(f"seq {row[0]}: processed_at is before that of the event before it")
            processed_at_ns = row[4]
        done += len(rows)
        progress(done, events)
    return check


def _chunks(connection: apsw.Connection) -> Iterator[list[tuple[Any, ...]]]:
    # Texts as blobs: a damaged one must not end the walk.
    cursor = connection.execute(
        "SELECT e.seq, CAST(t.topic AS BLOB), CAST(e.event_id AS BLOB), e.timestamp_ns, e.processed_at_ns, "
        "CAST(e.source AS BLOB), e.source_seq, e.payload, e.checksum "
        "FROM events e NOT INDEXED LEFT JOIN topics t ON t.topic_id = e.topic_id ORDER BY e.seq"
    )
    while rows := [row for row, _ in zip(cursor, range(ROWS_AT_ONCE), strict=False)]:
        yield rows


def _row_fault(row: tuple[Any, ...]) -> str | None:
    _, topic, event_id, _, _, source, _, payload, _ = row
    if topic is None:
        return "its topic is missing"
    if _utf8(topic) is None:
        return "its topic is damaged"
    if (text := _utf8(event_id)) is None or event_id_fault(text) is not None:
        return "the event_id is damaged"
    if _utf8(source) is None:
        return "the source is damaged"
    if not jsonvalue.is_readable([payload]):
        return "the payload is not JSON in UTF-8"
    return None if _has_checksums([row]) else "the checksum does not fit: a part of the row is damaged"


def _is_text(row: tuple[Any, ...]) -> bool:
    return row[1] is not None and all(_utf8(row[place]) is not None for place in (1, 2, 5))


def _has_checksums(rows: Sequence[tuple[Any, ...]]) -> bool:
    """Tell whether rows, whose texts are whole, are what was stored."""
    *columns, kept = (list(column) for column in zip(*rows, strict=True))
    for place in (1, 2, 5):
        columns[place] = [text.decode() for text in columns[place]]
    return row_checksums(*columns) == kept


def _utf8(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _check_seqs(connection: apsw.Connection, events: int) -> Check:
    check = Check("seq goes from 1 without a gap")
    first, last = connection.execute("SELECT min(seq), max(seq) FROM events").get
    if events and (first != 1 or last != events):
        check.fail(f"{events} events, the first has seq {first} and the last {last}")
    return check


def _check_identities(connection: apsw.Connection) -> Check:
    check = Check("every identity is there once")
    # NOT INDEXED: the proof must not rest on the index that is meant to ensure it.
    for count, seqs in connection.execute(
        "SELECT count(*), group_concat(seq) FROM events NOT INDEXED GROUP BY topic_id, event_id HAVING count(*) > 1"
    ):
        check.fail(f"the same identity {count} times: seq {seqs}")
    return check


def _check_counters(connection: apsw.Connection) -> Check:
    check = Check("the counters equal the rows")
    received, stored, duplicate, conflict = connection.execute(
        "SELECT received, stored, duplicate, conflict FROM log"
    ).get
    events, duplicates, variants = connection.execute(
        "SELECT (SELECT count(*) FROM events), (SELECT coalesce(sum(count), 0) FROM duplicates), "
        "(SELECT coalesce(sum(count), 0) FROM conflicts)"
    ).get
    if received != stored + duplicate + conflict:
        check.fail(f"received is {received}, and {stored} stored + {duplicate} duplicate + {conflict} conflict is not")
    if stored != events:
        check.fail(f"{stored} stored, and {events} events")
    if duplicate != duplicates:
        check.fail(f"{duplicate} duplicate, and {duplicates} by event")
    if conflict < variants:  # variants may have been dropped to save room
        check.fail(f"{conflict} conflict, and {variants} by variant")
    return check


def _check_topics(connection: apsw.Connection) -> Check:
    check = Check("the figures of each topic equal its rows")
    for name, *figures in connection.execute(
        "SELECT CAST(t.topic AS BLOB), t.stored, e.stored, t.first_seq, e.first_seq, t.last_seq, e.last_seq, "
        "t.last_timestamp_ns, e.last_timestamp_ns, t.duplicates, e.duplicates FROM topics t LEFT JOIN ("
        "SELECT e.topic_id, count(*) AS stored, min(e.seq) AS first_seq, max(e.seq) AS last_seq, "
        "max(e.timestamp_ns) AS last_timestamp_ns, coalesce(sum(d.count), 0) AS duplicates "
        "FROM events e NOT INDEXED LEFT JOIN duplicates d ON d.seq = e.seq GROUP BY e.topic_id"
        ") e ON e.topic_id = t.topic_id"
    ):
        topic = name.decode(errors="backslashreplace")
        if (fault := topic_fault(topic)) is not None:
            check.fail(f"{topic}: {fault}")
        if figures[0::2] != figures[1::2]:
            check.fail(f"{topic}: kept {figures[0::2]}, counted {figures[1::2]}")
    kept, counted = connection.execute(
        "SELECT (SELECT coalesce(sum(conflicts), 0) FROM topics), (SELECT conflict FROM log)"
    ).get
    if kept != counted:
        check.fail(f"{kept} conflicts by topic, and {counted} in all")
    return check


def _check_sources(connection: apsw.Connection) -> Check:
    check = Check("the numbers of each source are those of its rows")
    for fault in source_faults(connection):
        check.fail(fault)
    return check


def _check_references(connection: apsw.Connection) -> Check:
    check = Check("every duplicate count, variant and topic belongs to an event")
    for table, column, target in (
        ("duplicates", "seq", "events"),
        ("conflicts", "seq", "events"),
        ("events", "topic_id", "topics"),
    ):
        for (value,) in connection.execute(
            f"SELECT DISTINCT {column} FROM {table} WHERE {column} NOT IN (SELECT {column} FROM {target})"
        ):
            check.fail(f"{table}: there is no {column} {value} in {target}")
    return check


def _check_variants(connection: apsw.Connection) -> Check:
    check = Check("every variant can be read back as it was stored")
    for seq, source, payload, kept in connection.execute(
        "SELECT seq, CAST(source AS BLOB), payload, content_hash FROM conflicts ORDER BY number"
    ):
        try:
            fits = content_hash(source, payload) == kept
        except (msgspec.MsgspecError, RecursionError, *DAMAGE):
            fits = False
        if not fits:
            check.fail(f"a variant of seq {seq} is damaged")
    return check


def _check_subscriptions(connection: apsw.Connection) -> Check:
    check = Check("subscriptions fit the log")
    for fault in subscription_faults(connection):
        check.fail(fault)
    return check


def _check_tail(connection: apsw.Connection, high_water: HighWaterMark) -> Check:
    check = Check("the log holds all that its high-water mark tells of")
    try:
        mark = high_water.read()
    except (MarkDamaged, OSError) as error:
        check.fail(f"the mark cannot be read: {error!r}")
    else:
        if mark is not None and (missing := mark.missing_in(mark_of(connection))) is not None:
            check.fail(missing)
    return check
