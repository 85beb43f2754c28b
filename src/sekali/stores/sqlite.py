"""The log on one SQLite file, with the dedup index beside it. One connection does all writes, inside ``commit``."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import apsw
import numpy as np

from sekali.errors import CommitUnknown, StoreBroken, Unavailable
from sekali.event import Batch, Verdict
from sekali.ports import CONFLICT_BYTES_MAX, Conflict, Page, Progress, Query, Summary, TopicInfo, no_progress
from sekali.stores.dedup import RUN_KEYS, DedupIndex
from sekali.stores.identity import Hashes, HashIdentities, hash_identities
from sekali.stores.index_files import Files, FolderFiles
from sekali.stores.index_run import RunDamaged
from sekali.stores.sqlite_checkpoint import Checkpointer
from sekali.stores.sqlite_file import FolderLock, close_quietly, index_folder, make_folder, open_writer
from sekali.stores.sqlite_judge import Judge
from sekali.stores.sqlite_lookup import Rows
from sekali.stores.sqlite_read import Readers
from sekali.stores.sqlite_write import write


@dataclass(frozen=True, slots=True)
class Prepared:
    """Batches, their events together, and the hashes of all identities."""

    batches: Sequence[Batch]
    events: Batch
    hashes: Hashes


class SqliteStore:
    """An ``EventStore`` on one SQLite file, which it locks against other processes.

    ``clock_ns`` gives the wall clock in nanoseconds. Beyond ``topics_max`` topics an event of a new one is invalid.
    ``index_files`` are those of the dedup index, by default in a folder beside the file.

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
        hash_identities: HashIdentities = hash_identities,
        run_keys: int = RUN_KEYS,
    ) -> None:
        self._db_path = db_path
        self._clock_ns = clock_ns
        self._topics_max = topics_max
        self._conflict_bytes_max = conflict_bytes_max
        make_folder(db_path)
        self._lock = FolderLock(db_path)
        try:
            self._writer = open_writer(self._db_path)
            files = index_files or FolderFiles(index_folder(db_path))
        except BaseException:
            self._lock.release()
            raise
        self._index = DedupIndex(files, hash_identities=hash_identities, run_keys=run_keys)
        self._index_is_whole = False
        self._checkpointer: Checkpointer | None = None
        self._readers = Readers(db_path)

    def recover(self, progress: Progress = no_progress) -> None:
        self._index_is_whole = False
        self._close_writer()
        self._writer = open_writer(self._db_path)
        self._checkpointer = Checkpointer(self._db_path, self._writer)
        self._rows = Rows(self._writer)
        try:
            self._topic_ids: dict[str, int] = dict(iter(self._writer.execute("SELECT topic, topic_id FROM topics")))
            newest = self._writer.execute(
                "SELECT seq, processed_at_ns FROM events ORDER BY seq DESC LIMIT 1"
            ).fetchone()
            self._head: int
            self._processed_at_ns: int
            self._head, self._processed_at_ns = newest or (0, 0)
            self._conflict_bytes: int = self._writer.execute(
                "SELECT coalesce(sum(length(payload) + octet_length(source)), 0) FROM conflicts"
            ).get
            self._index.recover(_Source(self._writer), progress)
        except apsw.Error as error:
            raise StoreBroken(f"cannot read {self._db_path}: {error}") from error
        except (OSError, RunDamaged) as error:
            raise StoreBroken(f"cannot make the dedup index in {index_folder(self._db_path)}: {error}") from error
        self._index_is_whole = True

    def prepare(self, batches: Sequence[Batch]) -> Prepared:
        events = _together(batches)
        return Prepared(batches, events, self._index.hashes(events.topics, events.event_ids))

    def commit(self, prepared: Sequence[Prepared]) -> list[list[Verdict]]:
        batches = [batch for one in prepared for batch in one.batches]
        judge = Judge(
            batches,
            _together([one.events for one in prepared]),
            np.concatenate([_NO_HASHES, *(one.hashes for one in prepared)]),
        )
        try:
            self._index.make_room()
            candidates = self._index.lookup(judge.hashes)
        except (RunDamaged, OSError) as error:
            raise CommitUnknown(f"the dedup index fails: {error}") from error
        processed_at_ns = max(self._processed_at_ns, self._clock_ns())
        try:
            if self._checkpointer is not None:
                self._checkpointer.between_commits()
            self._writer.execute("BEGIN IMMEDIATE")
            judge.assign_topics(self._topic_ids, self._topics_max)
            judge.decide(*candidates, self._rows, self._head)
            rows = judge.new_rows()
            conflict_bytes = write(
                self._writer, judge, rows, processed_at_ns, self._conflict_bytes, self._conflict_bytes_max
            )
            self._writer.execute("COMMIT")
        except apsw.Error as error:
            with suppress(apsw.Error):  # after an I/O error SQLite may have rolled back by itself
                self._writer.execute("ROLLBACK")
            raise CommitUnknown(f"commit failed: {error}") from error
        self._index.add(judge.hashes[judge.is_new], judge.first_seq, processed_at_ns)
        if judge.new_count:
            self._rows.remember(judge.first_seq, rows)
            self._head += judge.new_count
            self._processed_at_ns = processed_at_ns
        self._conflict_bytes = conflict_bytes
        self._topic_ids.update(judge.new_topics)
        return _split(judge.verdicts(), list(map(len, batches)))

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

    def topics(self, after: str, limit: int) -> list[TopicInfo]:
        return self._readers.topics(after, limit)

    def conflicts(self, after: int, limit: int) -> list[Conflict]:
        return self._readers.conflicts(after, limit)

    def summary(self) -> Summary:
        return self._readers.summary()

    def close(self) -> None:
        self._index.close()
        self._readers.close()
        self._close_writer()
        self._lock.release()

    def _close_writer(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None
        close_quietly(self._writer)


class _Source:
    """The log as the dedup index sees it when it is made anew."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self.log_id, self.head = connection.execute(
            "SELECT log_id, (SELECT coalesce(max(seq), 0) FROM events) FROM log"
        ).get
        self._topics: dict[int, str] = dict(iter(connection.execute("SELECT topic_id, topic FROM topics")))

    def identities(self, first_seq: int, last_seq: int) -> tuple[Sequence[str], Sequence[str]]:
        rows = self._connection.execute(
            "SELECT topic_id, event_id FROM events WHERE seq BETWEEN ? AND ? ORDER BY seq", (first_seq, last_seq)
        ).fetchall()
        topic_ids, event_ids = zip(*rows, strict=True)
        return [self._topics[topic_id] for topic_id in topic_ids], event_ids

    def processed_at_ns(self, seq: int) -> int:
        return int(self._connection.execute("SELECT processed_at_ns FROM events WHERE seq = ?", (seq,)).get)


_NO_HASHES: Hashes = np.empty(0, np.uint64)


def _together(batches: Sequence[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    joined = Batch()
    for batch in batches:
        joined.topics += batch.topics
        joined.event_ids += batch.event_ids
        joined.timestamps_ns += batch.timestamps_ns
        joined.sources += batch.sources
        joined.source_seqs += batch.source_seqs
        joined.payloads += batch.payloads
    return joined


def _split(verdicts: list[Verdict], lengths: Sequence[int]) -> list[list[Verdict]]:
    return [verdicts[start:end] for start, end in pairwise(_ends(lengths))]


def _ends(lengths: Sequence[int]) -> Iterator[int]:
    end = 0
    yield end
    for length in lengths:
        end += length
        yield end
