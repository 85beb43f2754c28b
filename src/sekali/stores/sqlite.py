"""The log on one SQLite file, with the dedup index beside it. One connection does all writes, inside ``commit``."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import apsw

from sekali.errors import CommitUnknown, StoreBroken, Unavailable
from sekali.event import Batch, Verdict
from sekali.ports import CONFLICT_BYTES_MAX, Conflict, Page, Progress, Query, Readable, Summary, TopicInfo, no_progress
from sekali.stores.dedup import RUN_KEYS, DedupIndex
from sekali.stores.identity import HashIdentities, hash_identities
from sekali.stores.index_files import Files, FolderFiles
from sekali.stores.index_run import RunDamaged
from sekali.stores.sqlite_checkpoint import Checkpointer
from sekali.stores.sqlite_file import FolderLock, close_quietly, index_folder, make_folder, open_reader, open_writer
from sekali.stores.sqlite_judge import Judge, together
from sekali.stores.sqlite_log import LogSource
from sekali.stores.sqlite_lookup import Rows
from sekali.stores.sqlite_read import Readers
from sekali.stores.sqlite_write import SeqsDiffer, Writes, plan, write


@dataclass(frozen=True, slots=True)
class Prepared:
    """Batches that are judged, and all that is left to write."""

    writes: Writes
    verdicts: list[list[Verdict]]


class SqliteStore:
    """An ``EventStore`` on one SQLite file, which it locks against other processes.

    ``clock_ns`` gives the wall clock in nanoseconds. Beyond ``topics_max`` topics an event of a new one is invalid.
    ``index_files`` are those of the dedup index, by default in a folder beside the file. ``vfs`` names the SQLite VFS
    that the file is opened with, by default the system's own.

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
        index_files: Files | None = None,
        vfs: str | None = None,
        hash_identities: HashIdentities = hash_identities,
        run_keys: int = RUN_KEYS,
    ) -> None:
        self._db_path = db_path
        self._vfs = vfs
        self._clock_ns = clock_ns
        self._topics_max = topics_max
        self._conflict_bytes_max = conflict_bytes_max
        make_folder(db_path)
        self._lock = FolderLock(db_path)
        try:
            self._writer = open_writer(db_path, vfs)
            files = index_files or FolderFiles(index_folder(db_path))
        except BaseException:
            self._lock.release()
            raise
        self._index = DedupIndex(files, hash_identities=hash_identities, run_keys=run_keys)
        self._index_is_whole = False
        self._judging = threading.Lock()  # held while what comes next is decided, and while that starts over
        self._checkpointer: Checkpointer | None = None
        self._rows: Rows | None = None
        self._readers = Readers(db_path, vfs)

    def recover(self, progress: Progress = no_progress) -> None:
        with self._judging:
            self._index_is_whole = False
            self._close_writer()
            self._writer = open_writer(self._db_path, self._vfs)
            self._checkpointer = Checkpointer(self._db_path, self._writer, self._vfs)
            try:
                self._read_state()
                self._index.recover(LogSource(self._writer), progress)
            except apsw.Error as error:
                raise StoreBroken(f"cannot read {self._db_path}: {error}") from error
            except (OSError, RunDamaged) as error:
                raise StoreBroken(f"cannot make the dedup index in {index_folder(self._db_path)}: {error}") from error
            self._index_is_whole = True

    def _read_state(self) -> None:
        self._rows = Rows(open_reader(self._db_path, self._vfs))
        self._topic_ids: dict[str, int] = dict(iter(self._writer.execute("SELECT topic, topic_id FROM topics")))
        newest = self._writer.execute("SELECT seq, processed_at_ns FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        self._head: int
        self._processed_at_ns: int
        self._head, self._processed_at_ns = newest or (0, 0)
        self._rows.committed_seq = self._head
        self._conflict_bytes: int = self._writer.execute(
            "SELECT coalesce(sum(length(payload) + octet_length(source)), 0) FROM conflicts"
        ).get

    def prepare(self, batches: Sequence[Batch]) -> Prepared:
        """Judge batches as if all that was prepared before were committed; if that fails, ``recover`` forgets all."""
        if not self._judging.acquire(blocking=False):
            raise Unavailable("the store is recovering; send the request again")
        try:
            return self._judge(batches)
        except (RunDamaged, apsw.Error) as error:
            raise CommitUnknown(f"the dedup index or the file cannot be read: {error}") from error
        finally:
            self._judging.release()

    def _judge(self, batches: Sequence[Batch]) -> Prepared:
        assert self._rows is not None, "recover comes first"
        events = together(batches)
        judge = Judge(batches, events, self._index.hashes(events.topics, events.event_ids))
        candidates = self._index.lookup(judge.hashes)
        judge.assign_topics(self._topic_ids, self._topics_max)
        judge.decide(*candidates, self._rows, self._head)
        rows = judge.new_rows()
        processed_at_ns = max(self._processed_at_ns, self._clock_ns())
        writes = plan(judge, rows, processed_at_ns)
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
        except Exception as error:  # half done is worse than not: everything has to start over
            raise CommitUnknown(f"an internal error: {error!r}") from error
        return prepared

    def commit(self, prepared: Sequence[Prepared]) -> list[list[Verdict]]:
        try:
            self._index.make_room()
            if self._checkpointer is not None:
                self._checkpointer.between_commits()
            self._writer.execute("BEGIN IMMEDIATE")
            self._conflict_bytes = write(
                self._writer, [one.writes for one in prepared], self._conflict_bytes, self._conflict_bytes_max
            )
            self._writer.execute("COMMIT")
        except (apsw.Error, OSError, RunDamaged, SeqsDiffer) as error:
            with suppress(apsw.Error):  # after an I/O error SQLite may have rolled back by itself
                self._writer.execute("ROLLBACK")
            raise CommitUnknown(f"commit failed: {error}") from error
        if prepared and self._rows is not None:
            self._rows.committed_seq = prepared[-1].writes.last_seq
        return [verdicts for one in prepared for verdicts in one.verdicts]

    def read(self, query: Query) -> Page:
        return self._readers.read(query, self._candidates(query))

    def _candidates(self, query: Query) -> list[int] | None:
        """Return the seqs that may have the identity a reader asks for, or None where only a scan can tell."""
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

    def conflicts(self, after: int, limit: int, readable: Readable = None) -> list[Conflict]:
        return self._readers.conflicts(after, limit, readable)

    def summary(self, readable: Readable = None) -> Summary:
        return self._readers.summary(readable)

    def close(self) -> None:
        self._index.close()
        self._readers.close()
        self._close_writer()
        self._lock.release()

    def _close_writer(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None
        if self._rows is not None:
            self._rows.close()
        close_quietly(self._writer)
