"""The log on one SQLite file, with the dedup index beside it. One connection does all writes, inside ``commit``."""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import apsw

from sekali.delivery import Change, DeadLetter, Figures, PendingLane, Subscription
from sekali.errors import CommitUnknown, DiskFull, StartupError, StoreBroken, Unavailable
from sekali.event import Batch, Verdict
from sekali.ports import (
    CONFLICT_BYTES_MAX,
    Conflict,
    Page,
    Progress,
    Query,
    Readable,
    SourceInfo,
    SourceQuery,
    Summary,
    TopicInfo,
    no_progress,
)
from sekali.stores import sqlite_subscriptions
from sekali.stores.checksum import DAMAGE
from sekali.stores.dedup import RUN_KEYS, DedupIndex
from sekali.stores.folder import FolderLock, free_bytes, index_folder, make_folder, refuse_network_file_system
from sekali.stores.high_water import HighWaterMark, Mark, MarkDamaged, mark_name, mark_of
from sekali.stores.identity import HashIdentities, hash_identities
from sekali.stores.index_files import Files, FolderFiles
from sekali.stores.index_run import RunDamaged
from sekali.stores.sqlite_checkpoint import Checkpointer
from sekali.stores.sqlite_file import close_quietly, open_reader, open_writer
from sekali.stores.sqlite_judge import Judge, together
from sekali.stores.sqlite_log import LogSource
from sekali.stores.sqlite_lookup import Rows
from sekali.stores.sqlite_read import READ_TIMEOUT_S, Readers
from sekali.stores.sqlite_schema import begin_another_log
from sekali.stores.sqlite_source_pages import read_sources
from sekali.stores.sqlite_write import SeqsDiffer, Writes, plan, write


@dataclass(frozen=True, slots=True)
class Prepared:
    """Batches that are judged, and all that is left to write."""

    writes: Writes
    verdicts: list[list[Verdict]]


@dataclass(frozen=True, slots=True)
class PreparedChanges:
    """Changes of subscriptions."""

    changes: Sequence[Change]


class SqliteStore:
    """An ``EventStore`` on one SQLite file, which it locks against other processes.

    ``clock_ns`` gives the wall clock in nanoseconds. Beyond ``topics_max`` topics an event of a new one is invalid.
    Nothing is stored while the disk has less than ``disk_free_bytes_min`` left. A log that lacks what its high-water
    mark tells of is opened only with ``accept_lost_tail``, as another log.
    ``index_files`` are those of the dedup index, by default in a folder beside the file; ``mark_files`` hold the
    high-water mark, by default beside the file too; ``vfs`` names the SQLite VFS that the file is opened with.

    Raises:
        StartupError: the file or its folder cannot be used, or the log lost its end; the message says what to do.
        StoreBroken: SQLite cannot open the file.

    """

    def __init__(
        self,
        db_path: Path,
        clock_ns: Callable[[], int],
        *,
        topics_max: int,
        conflict_bytes_max: int = CONFLICT_BYTES_MAX,
        disk_free_bytes_min: int = 0,
        read_timeout_s: float = READ_TIMEOUT_S,
        accept_lost_tail: bool = False,
        index_files: Files | None = None,
        mark_files: Files | None = None,
        vfs: str | None = None,
        hash_identities: HashIdentities = hash_identities,
        run_keys: int = RUN_KEYS,
    ) -> None:
        db_path = db_path.resolve()  # through a link it is the same store, with the same lock and index
        self._db_path = db_path
        self._vfs = vfs
        self._clock_ns = clock_ns
        self._topics_max = topics_max
        self._conflict_bytes_max = conflict_bytes_max
        self._disk_free_bytes_min = disk_free_bytes_min
        make_folder(db_path)
        refuse_network_file_system(db_path.parent)
        self._lock = FolderLock(db_path)
        try:
            self._high_water = HighWaterMark(mark_files or FolderFiles(db_path.parent), mark_name(db_path))
            self._writer = self._open(accept_lost_tail=accept_lost_tail)
            files = index_files or FolderFiles(index_folder(db_path))
        except BaseException:
            self._lock.release()
            raise
        self._index = DedupIndex(files, hash_identities=hash_identities, run_keys=run_keys)
        self._index_is_whole = False
        self._judging = threading.Lock()  # held while what comes next is decided, and while that starts over
        self._checkpointer: Checkpointer | None = None
        self._rows: Rows | None = None
        self._committed: Mark | None = None  # how far the log has come for certain
        self._readers = Readers(db_path, vfs, timeout_s=read_timeout_s)

    def _open(self, *, accept_lost_tail: bool) -> apsw.Connection:
        """Open the file for the first time, where it holds all that the high-water mark tells of."""
        try:
            mark = self._high_water.read()
        except MarkDamaged:
            if not accept_lost_tail:
                raise StartupError(
                    f"{mark_name(self._db_path)} beside {self._db_path} is damaged, so that nobody can tell whether "
                    "the log has lost its end: run sekali verify, and then start once with --accept-lost-tail"
                ) from None
            mark = None
        except OSError as error:
            raise StartupError(f"cannot read {mark_name(self._db_path)}: {error.strerror}") from None
        may_be_new = accept_lost_tail or mark is None or not mark.received
        writer = open_writer(self._db_path, self._vfs, may_be_new=may_be_new)
        try:
            missing = None if mark is None else mark.missing_in(mark_of(writer))
            if missing is not None:
                if not accept_lost_tail:
                    raise StartupError(
                        f"{self._db_path} has lost its end: {missing}. What is missing was acknowledged: put the newer "
                        "file back, together with the one that ends in -wal, or restore a backup; to go on without, "
                        "start once with --accept-lost-tail"
                    )
                begin_another_log(writer)
        except (apsw.Error, *DAMAGE) as error:
            close_quietly(writer)
            raise StoreBroken(f"cannot read {self._db_path}: {error}; run sekali verify") from error
        except StartupError:
            close_quietly(writer)
            raise
        return writer

    def recover(self, progress: Progress = no_progress) -> None:
        self._lock.require_owner()
        self._require_space()
        with self._judging:
            self._index_is_whole = False
            self._close_writer()
            self._writer = open_writer(self._db_path, self._vfs, may_be_new=False)
            try:
                self._checkpointer = Checkpointer(self._db_path, self._writer, self._vfs)
                self._read_state()
                self._index.recover(LogSource(self._writer), progress)
            except (apsw.Error, *DAMAGE) as error:
                raise StoreBroken(f"cannot read {self._db_path}: {error}; run sekali verify") from error
            except (OSError, RunDamaged) as error:
                raise StoreBroken(f"cannot make the dedup index in {index_folder(self._db_path)}: {error}") from error
            self._index_is_whole = True

    def _read_state(self) -> None:
        self._rows = Rows(open_reader(self._db_path, self._vfs))
        self._topic_ids: dict[str, int] = dict(iter(self._writer.execute("SELECT topic, topic_id FROM topics")))
        found = mark_of(self._writer)
        if self._committed is not None and self._committed.log_id != found.log_id:
            raise StoreBroken(f"{self._db_path} was replaced by another store; stop the server before that")
        if self._committed is not None and (missing := self._committed.missing_in(found)) is not None:
            raise StoreBroken(f"{self._db_path} has lost its end: {missing}; restore a backup")
        self._committed = found
        self._numbered_topics: set[int] = {
            topic_id for (topic_id,) in self._writer.execute("SELECT DISTINCT topic_id FROM sources")
        }
        newest = self._writer.execute("SELECT processed_at_ns FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        self._head = found.head
        self._processed_at_ns: int = newest[0] if newest else 0
        self._rows.committed_seq = self._head
        self._conflict_bytes: int = self._writer.execute(
            "SELECT coalesce(sum(length(payload) + octet_length(source)), 0) FROM conflicts"
        ).get

    def prepare(self, batches: Sequence[Batch]) -> Prepared:
        """Judge batches as if all that was prepared before were committed; if that fails, ``recover`` forgets all."""
        self._require_space()
        if not self._judging.acquire(blocking=False):
            raise Unavailable("the store is recovering; send the request again")
        try:
            return self._judge(batches)
        except (RunDamaged, apsw.Error) as error:
            raise CommitUnknown(f"the dedup index or the file cannot be read: {error}") from error
        finally:
            self._judging.release()

    def _require_space(self) -> None:
        if not self._disk_free_bytes_min:
            return
        # What is in the write-ahead log has its place on the disk twice, until that starts over.
        pending = self._checkpointer.pending_bytes if self._checkpointer is not None else 0
        if (free := free_bytes(self._db_path.parent) - pending) < self._disk_free_bytes_min:
            raise DiskFull(
                f"the disk of {self._db_path.parent} has {max(free, 0) >> 20} MiB left, and "
                f"{self._disk_free_bytes_min >> 20} MiB are kept free (DISK_FREE_BYTES_MIN): make room, and publishing "
                "goes on by itself"
            )

    def _judge(self, batches: Sequence[Batch]) -> Prepared:
        assert self._rows is not None, "recover comes first"
        events = together(batches)
        judge = Judge(batches, events, self._index.hashes(events.topics, events.event_ids))
        candidates = self._index.lookup(judge.hashes)
        judge.assign_topics(self._topic_ids, self._topics_max)
        judge.decide(*candidates, self._rows, self._head)
        rows = judge.new_rows()
        processed_at_ns = max(self._processed_at_ns, self._clock_ns())
        writes = plan(judge, rows, processed_at_ns, self._numbered_topics)
        ends = list(accumulate(map(len, batches), initial=0))
        verdicts = judge.verdicts()
        prepared = Prepared(writes, [verdicts[start:end] for start, end in pairwise(ends)])
        # From here on the next group is judged as if this one were stored.
        try:
            if judge.new_count:
                self._rows.remember(judge.first_seq, rows)
                self._index.add(judge.hashes[judge.is_new], judge.first_seq, processed_at_ns)
                self._head, self._processed_at_ns = writes.last_seq, processed_at_ns
            self._topic_ids.update(judge.new_topics)
            if writes.sources is not None:
                self._numbered_topics.update(writes.sources.topics)
        except Exception as error:  # half done is worse than not: everything has to start over
            raise CommitUnknown(f"an internal error: {error!r}") from error
        return prepared

    def prepare_changes(self, changes: Sequence[Change]) -> PreparedChanges:
        return PreparedChanges(changes)

    def commit(self, prepared: Sequence[Prepared | PreparedChanges]) -> list[list[Verdict]]:
        self._lock.require_owner()
        batches = [one for one in prepared if isinstance(one, Prepared)]
        try:
            self._index.make_room()
            if self._checkpointer is not None:
                self._checkpointer.between_commits()
            self._writer.execute("BEGIN IMMEDIATE")
            self._conflict_bytes = write(
                self._writer, [one.writes for one in batches], self._conflict_bytes, self._conflict_bytes_max
            )
            for one in prepared:
                if isinstance(one, PreparedChanges):
                    sqlite_subscriptions.apply(self._writer, one.changes)
            self._writer.execute("COMMIT")
        except (apsw.Error, OSError, RunDamaged, SeqsDiffer) as error:
            with suppress(apsw.Error):  # after an I/O error SQLite may have rolled back by itself
                self._writer.execute("ROLLBACK")
            raise CommitUnknown(f"commit failed: {error}") from error
        if batches:
            self._remember_committed([one.writes for one in batches])
        return [verdicts for one in batches for verdicts in one.verdicts]

    def _remember_committed(self, groups: Sequence[Writes]) -> None:
        assert self._rows is not None and self._committed is not None, "recover comes first"
        head = self._rows.committed_seq = groups[-1].last_seq
        received = self._committed.received + sum(sum(writes.counts) for writes in groups)
        self._committed = Mark(self._committed.log_id, head, received)
        self._high_water.advance(self._committed)

    def read(self, query: Query) -> Page:
        return self._readers.read(query, self._candidates(query))

    def _candidates(self, query: Query) -> list[int] | None:
        """Return the seqs that may be what a reader asks for, or None where only a scan can tell."""
        if query.seqs is not None:
            return list(query.seqs)
        if query.event_id is None or query.topic is None or not self._index_is_whole:
            return None
        try:
            _, seqs = self._index.lookup(self._index.hashes([query.topic], [query.event_id]))
        except RunDamaged:
            return None
        return [int(seq) for seq in seqs]

    def missing(self, topic: str, event_ids: Sequence[str]) -> list[str]:
        if not self._index_is_whole:
            raise Unavailable("the dedup index is being made; try again")
        try:
            _, seqs = self._index.lookup(self._index.hashes([topic] * len(event_ids), event_ids))
        except RunDamaged as damage:
            raise Unavailable(f"the dedup index fails: {damage}") from damage
        return self._readers.missing(topic, event_ids, seqs)

    def topics(self, after: str, limit: int, readable: Readable = None) -> list[TopicInfo]:
        return self._readers.topics(after, limit, readable)

    def sources(self, query: SourceQuery) -> list[SourceInfo]:
        with self._readers.snapshot() as connection:
            return read_sources(connection, query)

    def conflicts(self, after: int, limit: int, readable: Readable = None) -> list[Conflict]:
        return self._readers.conflicts(after, limit, readable)

    def summary(self, readable: Readable = None) -> Summary:
        return self._readers.summary(readable)

    def subscriptions(self) -> list[Subscription]:
        with self._readers.snapshot() as connection:
            return sqlite_subscriptions.subscriptions(connection)

    def pending(self, name: str) -> tuple[int, list[PendingLane]]:
        with self._readers.snapshot() as connection:
            return sqlite_subscriptions.pending(connection, name)

    def figures(self, name: str, lag_max: int) -> Figures:
        with self._readers.snapshot() as connection:
            return sqlite_subscriptions.figures(connection, name, lag_max)

    def dead_letters(self, name: str, after: int, limit: int, seqs: Sequence[int] | None = None) -> list[DeadLetter]:
        with self._readers.snapshot() as connection:
            return sqlite_subscriptions.dead_letters(connection, name, after, limit, seqs)

    def first_seq_at(self, processed_at_ns: int) -> int:
        with self._readers.snapshot() as connection:
            return sqlite_subscriptions.first_seq_at(connection, processed_at_ns)

    def gauges(self) -> Mapping[str, float]:
        gauges: dict[str, float] = {}
        with suppress(OSError):
            gauges["disk_free_bytes"] = free_bytes(self._db_path.parent)
            gauges["wal_bytes"] = self._db_path.with_name(self._db_path.name + "-wal").stat().st_size
        return gauges

    def close(self) -> None:
        self._index.close()
        self._readers.close()
        self._close_writer()
        self._high_water.close()
        self._lock.release()

    def _close_writer(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None
        if self._rows is not None:
            self._rows.close()
        close_quietly(self._writer)
