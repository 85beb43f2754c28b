"""What the tests of the dedup index share: a log to derive it from, hashes that collide, and what must be found."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from threading import Event, current_thread
from typing import Self

import numpy as np

from sekali.stores import identity
from sekali.stores.dedup import DedupIndex
from sekali.stores.identity import Hashes, HashIdentities
from sekali.stores.index_files import Files
from sekali.stores.index_run import RunDamaged
from sekali.testing import FaultyDisk, Operation

LOG_ID = "0123456789abcdef0123456789abcdef"
TOPIC = "topic"
DEADLINE_S = 60  # only ever reached by a test that fails
RUN_KEYS = 4  # so that a few events already make runs, and merges of runs


class ListLog:
    """A log in memory. ``ranges_read`` are the ranges of seqs whose identities were asked for."""

    def __init__(self, log_id: str = LOG_ID) -> None:
        self.log_id = log_id
        self.head = 0
        self.ranges_read: list[tuple[int, int]] = []
        self.event_ids: list[str] = []
        self._times_ns: list[int] = []

    def append(self, event_ids: Sequence[str], at_ns: int) -> None:
        """Store events of one commit."""
        self.event_ids += event_ids
        self._times_ns += [at_ns] * len(event_ids)
        self.head += len(event_ids)

    def copy(self) -> "ListLog":
        """Return the same log, to be changed on its own."""
        copy = ListLog(self.log_id)
        copy.head, copy.event_ids, copy._times_ns = self.head, self.event_ids.copy(), self._times_ns.copy()
        return copy

    def cut_back(self, head: int) -> None:
        """Return to an older state, as from a copy of it."""
        del self.event_ids[head:], self._times_ns[head:]
        self.head = head

    def identities(self, first_seq: int, last_seq: int) -> tuple[Sequence[str], Sequence[str]]:
        assert 1 <= first_seq <= last_seq <= self.head
        self.ranges_read.append((first_seq, last_seq))
        return [TOPIC] * (last_seq - first_seq + 1), self.event_ids[first_seq - 1 : last_seq]

    def processed_at_ns(self, seq: int) -> int:
        assert 1 <= seq <= self.head
        return self._times_ns[seq - 1]


def weak_hashes(distinct: int) -> HashIdentities:
    """Return a hash with so few values that nearly all identities collide; the lowest and the highest are in use."""

    def hash_weakly(topics: Sequence[str], event_ids: Sequence[str], key: int) -> Hashes:
        step = np.uint64((2**64 - 1) // (distinct - 1))
        return identity.hash_identities(topics, event_ids, key) % np.uint64(distinct) * step

    return hash_weakly


def same_hashes(topics: Sequence[str], event_ids: Sequence[str], _: int) -> Hashes:
    """Hash with the same key in every run of a test."""
    return identity.hash_identities(topics, event_ids, 0)


def ignore_progress(done: int, total: int) -> None:
    """Tell nobody."""


class Story:
    """An index on some files, the log it is derived from, and what is done to them. Merges do not pause."""

    def __init__(
        self,
        files: Files | None = None,
        log: ListLog | None = None,
        *,
        run_keys: int = RUN_KEYS,
        hash_identities: HashIdentities = same_hashes,
    ) -> None:
        self.files: Files = FaultyDisk() if files is None else files
        self.log = ListLog() if log is None else log
        self.run_keys = run_keys
        self._hash_identities = hash_identities
        self.index = self._make_index()

    def _make_index(self) -> DedupIndex:
        return DedupIndex(self.files, run_keys=self.run_keys, hash_identities=self._hash_identities, merge_share=1)

    @property
    def disk(self) -> FaultyDisk:
        """The files, as what can fail."""
        assert isinstance(self.files, FaultyDisk)
        return self.files

    def recover(self) -> int:
        """Recover, and return how many rows of the log were read for it."""
        self.log.ranges_read.clear()
        self.index.recover(self.log, ignore_progress)
        return sum(last - first + 1 for first, last in self.log.ranges_read)

    def reopen(self, files: Files | None = None) -> int:
        """Start again as another process would, maybe on other files; see ``recover``."""
        self.index.close()
        self.files = self.files if files is None else files
        self.index = self._make_index()
        return self.recover()

    def append(self, count: int, at_ns: int | None = None) -> None:
        """Do to log and index what a commit of new events does."""
        self.index.make_room()
        first_seq = self.log.head + 1
        # By the time too, so that other histories have other ids.
        at_ns = first_seq if at_ns is None else at_ns
        event_ids = [f"{seq} {at_ns}" for seq in range(first_seq, first_seq + count)]
        self.log.append(event_ids, at_ns)
        self.index.add(self.hashes(event_ids), first_seq, at_ns)

    def append_and_settle(self, times: int) -> None:
        """Store so many events one by one, each after all writing and merging is done: always in the same steps."""
        for _ in range(times):
            self.append(1)
            self.index.settle()

    def hashes(self, event_ids: Sequence[str]) -> Hashes:
        return self.index.hashes([TOPIC] * len(event_ids), event_ids)

    def assert_exact(self) -> None:
        """The candidates for an identity are all events with its hash, each of them once, and no others."""
        asked = [*self.log.event_ids, "not", "there"]
        hashes = self.hashes(asked)
        seqs: defaultdict[int, list[int]] = defaultdict(list)
        for seq, value in enumerate(hashes[: self.log.head].tolist(), 1):
            seqs[value].append(seq)
        expected = [(place, seq) for place, value in enumerate(hashes.tolist()) for seq in seqs[value]]
        positions, found = self.index.lookup(hashes)
        assert sorted(zip(positions.tolist(), found.tolist(), strict=True)) == expected

    def assert_whole(self) -> None:
        """Every event is among the candidates for its identity: as ``assert_exact``, and fast."""
        hashes = self.hashes(self.log.event_ids)
        positions, seqs = self.index.lookup(hashes)
        assert np.unique(positions[seqs == positions + 1]).tolist() == list(range(self.log.head))

    def settles(self) -> bool:
        """Wait until all is written and merged, and tell whether that can be done."""
        try:
            self.index.settle()
        except OSError:
            return False
        return True

    def assert_noticed(self) -> None:
        """Damage is noticed when a file is opened, or when it is read, and repaired from the log."""
        noticed = self.reopen() > 0
        try:
            self.assert_exact()
        except RunDamaged:
            assert not noticed
            noticed = self.recover() > 0
            self.assert_exact()
        assert noticed

    def __enter__(self) -> Self:
        self.recover()
        return self

    def __exit__(self, *_: object) -> None:
        self.index.close()


def filled(times: int, *, run_keys: int = RUN_KEYS) -> tuple[ListLog, dict[str, bytes]]:
    """Return a log with so many events, and the files that its index leaves after a clean stop."""
    files = FaultyDisk()
    with Story(files, run_keys=run_keys) as story:
        story.append_and_settle(times)
    return story.log, files.contents()


def hold(files: FaultyDisk, wanted: Callable[[str], bool], thread: str = "sekali-index") -> tuple[Event, Event]:
    """Hold a thread before an operation, as written in ``trace``. Return what tells that it waits, and what ends it."""
    held, go_on = Event(), Event()

    def before(operation: Operation, name: str) -> None:
        if current_thread().name == thread and wanted(f"{operation} {name}"):
            held.set()
            assert go_on.wait(DEADLINE_S)

    files.before = before
    return held, go_on


def run_name(first_seq: int, last_seq: int) -> str:
    return f"{first_seq:016x}-{last_seq:016x}.run"


def run_ranges(names: Iterable[str]) -> list[tuple[int, int]]:
    """Return the ranges of seqs of the runs among the names of files, in order."""
    ranges = [name.removesuffix(".run").split("-") for name in names if name.endswith(".run")]
    return sorted((int(first, 16), int(last, 16)) for first, last in ranges)
