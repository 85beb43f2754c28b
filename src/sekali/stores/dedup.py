"""The dedup index: from the hash of an identity to the seqs that may hold it. Derived from the log, and only a hint.

Log-structured: the newest keys are in a hash table in memory; a full table is frozen, sorted and written as a run by a
thread of the index's own, which also merges runs, at a bounded share of one core. Runs and tables each cover a range
of seqs, together all of them, so whatever is missing, damaged or of another log is dropped and made again from the log.
"""

import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from typing import Protocol

import numpy as np
import structlog

from sekali.ports import Progress
from sekali.stores.identity import Hashes, HashIdentities, hash_identities
from sekali.stores.index_files import Files
from sekali.stores.index_merge import choose_merge, merge, write_sorted
from sekali.stores.index_run import Run, RunDamaged, RunId, filter_masks, read_run_id
from sekali.stores.index_table import HashTable, Positions, Seqs, join

RUN_KEYS = 512 * 1024  # of a table, and so of a run fresh from memory
FROZEN_MAX = 4  # tables that may wait to be written; beyond, commits wait
MERGE_SHARE = 0.5  # of one core's time
RETRY_S = 1.0
RETRY_S_MAX = 60.0  # while no commit waits for it: a merge that fails on a full disk has written a lot
ROWS_AT_ONCE = 64 * 1024

log = structlog.get_logger("sekali.index")


class Log(Protocol):
    """What the index is derived from: events with seqs from 1 to ``head``, without gaps."""

    log_id: str
    head: int

    def identities(self, first_seq: int, last_seq: int) -> tuple[Sequence[str], Sequence[str]]:
        """Return topics and event ids of a range of seqs, both ends inclusive, in order."""

    def processed_at_ns(self, seq: int) -> int:
        """Return when the event was stored."""


class _Table:
    """A hash table and the range of seqs it covers, which starts at ``first_seq``."""

    def __init__(self, first_seq: int, keys_max: int) -> None:
        self.keys = HashTable(first_seq, keys_max)
        self.first_seq = first_seq
        self.processed_at_ns = 0  # of its last event

    @property
    def last_seq(self) -> int:
        return self.first_seq + len(self.keys) - 1


class DedupIndex:
    """Finds candidates for identities. ``recover`` comes first.

    ``recover``, ``add`` and ``close`` are called one after the other; any thread may call the other methods. Events may
    be added before they are committed: ``recover`` drops what the log does not hold.
    """

    def __init__(
        self,
        files: Files,
        *,
        run_keys: int = RUN_KEYS,
        hash_identities: HashIdentities = hash_identities,
        merge_share: float = MERGE_SHARE,
    ) -> None:
        self._files = files
        self._run_keys = run_keys
        self._hash_identities = hash_identities
        self._merge_share = merge_share
        self._key: int | None = None
        self._log_id = b""
        self._changed = threading.Condition()  # guards what is below
        self._table = _Table(1, run_keys)
        self._frozen: tuple[_Table, ...] = ()
        self._runs: tuple[Run, ...] = ()
        self._fault: OSError | RunDamaged | None = None
        self._retry_s = RETRY_S
        self._idle = False
        self._closing = False
        self._thread: threading.Thread | None = None

    def hashes(self, topics: Sequence[str], event_ids: Sequence[str]) -> Hashes:
        """Return the hashes of identities. They hold until the index is closed."""
        if self._key is None:
            raise RuntimeError("recover comes first")
        return self._hash_identities(topics, event_ids, self._key)

    def lookup(self, hashes: Hashes) -> tuple[Positions, Seqs]:
        """Return all candidates: positions among ``hashes`` and the seqs of events that may have that identity.

        Raises:
            RunDamaged: a run cannot be read. It has been dropped; ``recover`` makes it again.

        """
        with self._changed:
            if isinstance(self._fault, RunDamaged):
                raise self._fault
            tables, runs = self._frozen, self._runs
            found = [self._table.keys.find(hashes)]
        found += [table.keys.find(hashes) for table in tables]
        if runs:
            masks = filter_masks(hashes)
            for run in runs:
                try:
                    found.append(run.find(hashes, masks))
                except RunDamaged as damage:
                    self._drop(damage, run)
                    raise
        return join(found)

    def make_room(self) -> None:
        """Wait until the next ``add`` has room in memory.

        Raises:
            OSError: what is in memory cannot be written.
            RunDamaged: a run could not be read for a merge; ``recover`` makes it again.

        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._frozen) < FROZEN_MAX or self._fault is not None)
            if len(self._frozen) >= FROZEN_MAX and self._fault is not None:
                raise self._fault

    def add(self, hashes: Hashes, first_seq: int, processed_at_ns: int) -> None:
        """Add the events that were stored last, of which the first has ``first_seq``."""
        if not len(hashes):
            return
        with self._changed:
            assert first_seq == self._table.last_seq + 1
            if len(self._table.keys) + len(hashes) > self._table.keys.keys_max:
                self._freeze(max(self._run_keys, len(hashes)))
            self._table.keys.add(hashes)
            self._table.processed_at_ns = processed_at_ns

    def _freeze(self, keys_max: int) -> None:
        if len(self._table.keys):
            self._frozen += (self._table,)
            self._changed.notify_all()
        self._table = _Table(self._table.last_seq + 1, keys_max)

    def recover(self, source: Log, progress: Progress) -> None:
        """Open what is there and make the rest from the log: what memory held, and runs that are missing or damaged.

        Until it ends, lookups raise ``RunDamaged``.

        Raises:
            OSError: a file cannot be written.

        """
        self.close()
        with self._changed:
            self._fault = RunDamaged("the dedup index", "it is being made from the log")
        self._log_id = source.log_id.encode()
        runs = self._open_runs(source)
        with self._changed:
            self._frozen, self._runs = (), tuple(runs)
            self._table = _Table(runs[-1].run_id.last_seq + 1 if runs else 1, self._run_keys)
        self._fill_gaps(source, progress)
        with self._changed:
            self._fault = None
        self._closing = False
        self._thread = threading.Thread(target=self._maintain, name="sekali-index", daemon=True)
        self._thread.start()

    def _open_runs(self, source: Log) -> list[Run]:
        """Open the runs that are of this log, from the oldest; of two that overlap the longer one."""
        found: list[Run] = []
        for name in sorted(self._files.names()):
            try:
                if not name.endswith(".run"):
                    raise RunDamaged(name, "it was not finished")
                self._require_own(read_run_id(self._files, name), source, name)
                found.append(Run(self._files, name))
            except RunDamaged as reason:
                self._remove(reason)
        found.sort(key=lambda run: (run.run_id.first_seq, -len(run.run_id)))
        runs: list[Run] = []
        for run in found:
            if runs and run.run_id.first_seq <= runs[-1].run_id.last_seq:
                self._remove(RunDamaged(run.name, f"{runs[-1].name} holds it too"))
            else:
                runs.append(run)
        if self._key is None:
            self._key = secrets.randbits(64)
        return runs

    def _require_own(self, run_id: RunId, source: Log, name: str) -> None:
        if run_id.log_id != self._log_id:
            raise RunDamaged(name, "it is of another log")
        if run_id.last_seq > source.head or run_id.stamp != source.processed_at_ns(run_id.last_seq):
            raise RunDamaged(name, "it is of a later state of the log")
        if self._key is None:
            self._key = run_id.key
        if run_id.key != self._key:
            raise RunDamaged(name, "it has another key than the other runs")

    def _remove(self, reason: RunDamaged) -> None:
        log.warning("dropping a file of the dedup index", reason=str(reason))
        with suppress(FileNotFoundError):
            self._files.remove(reason.name)

    def _drop(self, damage: RunDamaged, run: Run | None = None) -> None:
        """Give up a run that cannot be read, and every answer until ``recover``.

        ``run`` is the one that a lookup found damaged, which may have been replaced while it was read.
        """
        with self._changed:
            if run is not None and run not in self._runs:
                return
            with suppress(OSError):
                self._remove(damage)  # before anybody can call ``recover``
            self._fault = damage
            self._changed.notify_all()

    def _fill_gaps(self, source: Log, progress: Progress) -> None:
        gaps: list[tuple[int, int]] = []
        next_seq = 1
        for run in self._runs:
            gaps.append((next_seq, run.run_id.first_seq - 1))
            next_seq = run.run_id.last_seq + 1
        # What the table can hold needs no run.
        in_table = (source.head - next_seq + 1) % self._run_keys
        gaps.append((next_seq, source.head - in_table))
        total = sum(last - first + 1 for first, last in gaps) + in_table
        done = 0
        for first, last in gaps:
            for start in range(first, last + 1, self._run_keys):
                end = min(start + self._run_keys - 1, last)
                hashes = np.concatenate(list(self._read_hashes(source, start, end)))
                self._add_run(
                    self._write_run(start, end, source.processed_at_ns(end), hashes, np.arange(start, end + 1))
                )
                done += len(hashes)
                progress(done, total)
        self._table = _Table(source.head - in_table + 1, self._run_keys)
        for hashes in self._read_hashes(source, self._table.first_seq, source.head):
            self.add(hashes, self._table.last_seq + 1, 0)
            done += len(hashes)
            progress(done, total)
        if in_table:
            self._table.processed_at_ns = source.processed_at_ns(source.head)

    def _read_hashes(self, source: Log, first_seq: int, last_seq: int) -> Iterator[Hashes]:
        for start in range(first_seq, last_seq + 1, ROWS_AT_ONCE):
            yield self.hashes(*source.identities(start, min(start + ROWS_AT_ONCE - 1, last_seq)))

    def _write_run(self, first_seq: int, last_seq: int, processed_at_ns: int, hashes: Hashes, seqs: Seqs) -> Run:
        assert self._key is not None
        run_id = RunId(self._log_id, self._key, first_seq, last_seq, processed_at_ns)
        name = _run_name(first_seq, last_seq)
        write_sorted(self._files, name, run_id, hashes, seqs)
        return Run(self._files, name)

    def _add_run(self, run: Run) -> None:
        with self._changed:
            self._runs = tuple(sorted((*self._runs, run), key=lambda other: other.run_id.first_seq))

    # On the index's own thread.

    def _maintain(self) -> None:
        while not self._closing:
            try:
                if self._frozen:
                    self._flush(self._frozen[0])
                elif (chosen := choose_merge([len(run.run_id) for run in self._runs], self._run_keys)) is not None:
                    self._merge(self._runs[chosen])
                else:
                    with self._changed:
                        self._idle = True
                        self._changed.notify_all()
                        self._changed.wait_for(lambda: self._closing or self._frozen)
                        self._idle = False
            except RunDamaged as damage:
                self._drop(damage)
                return
            except OSError as fault:
                log.error("the dedup index cannot be written", reason=str(fault))
                self._wait_with(fault)
            except Exception as error:  # a defect of ours, or no memory: no commit may wait for ever
                log.exception("the dedup index cannot be written")
                self._wait_with(OSError(f"an internal error: {error!r}"))

    def _wait_with(self, fault: OSError) -> None:
        with self._changed:
            if not isinstance(self._fault, RunDamaged):
                self._fault = fault
            self._changed.notify_all()
            table_waits = bool(self._frozen)
            pause_s = RETRY_S if table_waits else self._retry_s
            self._retry_s = min(2 * self._retry_s, RETRY_S_MAX)
            self._changed.wait_for(lambda: self._closing or (self._frozen and not table_waits), pause_s)

    def _end_fault(self) -> None:
        """Note that writing works. What a lookup found damaged stays so."""
        self._retry_s = RETRY_S
        if isinstance(self._fault, OSError):
            self._fault = None
        self._changed.notify_all()

    def _flush(self, table: _Table) -> None:
        run = self._write_run(table.first_seq, table.last_seq, table.processed_at_ns, *table.keys.items())
        with self._changed:
            self._runs += (run,)
            self._frozen = self._frozen[1:]
            self._end_fault()

    def _merge(self, runs: tuple[Run, ...]) -> None:
        name = _run_name(runs[0].run_id.first_seq, runs[-1].run_id.last_seq)
        started_at_s = time.thread_time()
        with closing(merge(self._files, name, runs)) as steps:
            for _ in steps:
                if self._frozen:
                    self._flush(self._frozen[0])  # first, because commits may come to wait for it
                pause_s = (time.thread_time() - started_at_s) * (1 / self._merge_share - 1)
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, pause_s)
                if self._closing:
                    return
                started_at_s = time.thread_time()
        merged = Run(self._files, name)
        with self._changed:
            start = self._runs.index(runs[0])
            self._runs = (*self._runs[:start], merged, *self._runs[start + len(runs) :])
            self._end_fault()
        for run in runs:
            with suppress(OSError):  # what stays behind is dropped by the next ``recover``
                self._files.remove(run.name)

    def settle(self) -> None:
        """Wait until full tables are written and no runs are left to merge: for tests and benchmarks.

        Raises:
            OSError: that cannot be written.
            RunDamaged: a run cannot be read.

        """
        with self._changed:
            self._changed.wait_for(lambda: self._fault is not None or (self._idle and not self._frozen))
            if self._fault is not None:
                raise self._fault

    def close(self) -> None:
        """Stop the index's thread. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def _run_name(first_seq: int, last_seq: int) -> str:
    return f"{first_seq:016x}-{last_seq:016x}.run"
