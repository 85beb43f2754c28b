"""The dedup index by itself, in a process of its own: ``python -m sekali.bench.index_load``, a job on standard input.

Random 64-bit hashes in batches of 4,000: 3,200 that are absent, and 800 that are among the last 10,000. One line of
JSON a point on standard output, the last one after the merges have come to their end.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from sekali.bench import proc
from sekali.bench.events import mix
from sekali.bench.pauses import WATCH
from sekali.ports import no_progress
from sekali.stores.dedup import DedupIndex
from sekali.stores.index_files import FolderFiles

BATCH = 4000
NEW = 3200
RECENT = 10_000
QUIET_S = 0.5
QUIET_BUSY = 0.1  # of a core; a merge uses half of one


class IndexJob(msgspec.Struct, frozen=True):
    """Add at least ``keys`` keys to an index in ``folder``, with a point after each ``every`` looked up."""

    folder: str
    keys: int
    every: int


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What has happened since the point before.

    ``keys`` are stored, ``looked_up`` were looked up since, of which four in five were added. ``busy_s`` is the time in
    the index's calls; making hashes and checking answers, some 5 % more, is not in it.
    """

    keys: int
    looked_up: int
    busy_s: float
    private_bytes: int  # beyond what the process had before it opened the index
    disk_bytes: int


class EmptyLog:
    """A log without events: the index has nothing to make anew."""

    log_id = "bench"
    head = 0

    def identities(self, first_seq: int, last_seq: int) -> tuple[Sequence[str], Sequence[str]]:
        """There are none."""
        return [], []

    def processed_at_ns(self, seq: int) -> int:
        """There is none."""
        return 0


def run(job: IndexJob) -> None:
    """Fill the index; a wrong answer ends the process."""
    WATCH.start()
    folder = Path(job.folder)
    random = np.random.default_rng(1)
    # What the loop makes for itself is not the index's memory.
    batch = _batch(0, random)
    before_bytes = proc.private_bytes(os.getpid())
    index = DedupIndex(FolderFiles(folder))
    index.recover(EmptyLog(), no_progress)
    keys, looked_up, busy_s = 0, 0, 0.0
    while keys < job.keys:
        hashes, expected = batch
        begun_s = time.perf_counter()
        index.make_room()
        positions, seqs = index.lookup(hashes)
        index.add(hashes[:NEW], keys + 1, keys + 1)
        busy_s += WATCH.since_s(begun_s)
        if dict(zip(positions.tolist(), seqs.tolist(), strict=True)) != expected:
            raise SystemExit(f"the index is wrong at {keys:,} keys: {len(positions)} found, {len(expected)} expected")
        keys, looked_up = keys + NEW, looked_up + len(hashes)
        if looked_up >= job.every:
            _write_point(folder, before_bytes, keys, looked_up, busy_s)
            looked_up, busy_s = 0, 0.0
        batch = _batch(keys, random)
    _wait_for_merges()
    _write_point(folder, before_bytes, keys, looked_up, busy_s)
    index.close()


def _write_point(folder: Path, before_bytes: int, keys: int, looked_up: int, busy_s: float) -> None:
    point = Point(
        keys=keys,
        looked_up=looked_up,
        busy_s=busy_s,
        private_bytes=proc.private_bytes(os.getpid()) - before_bytes,
        disk_bytes=proc.folder_bytes(folder),
    )
    sys.stdout.write(msgspec.json.encode(point).decode() + "\n")
    sys.stdout.flush()


def _wait_for_merges() -> None:
    """Wait until the index has nothing left to do, so that what it keeps can be told from what a merge needs."""
    while True:
        before_s = proc.cpu_s(os.getpid())
        time.sleep(QUIET_S)
        if proc.cpu_s(os.getpid()) - before_s < QUIET_BUSY * QUIET_S:
            return


def _batch(keys: int, random: np.random.Generator) -> tuple[NDArray[np.uint64], dict[int, int]]:
    """Return hashes [BATCH], the new ones first, and for each place of a hash that is known its seq."""
    recent = random.integers(max(keys - RECENT, 0), keys, BATCH - NEW) if keys else np.empty(0, np.int64)
    numbers = np.concatenate([np.arange(keys, keys + NEW), recent])
    expected = dict(zip(range(NEW, len(numbers)), (recent + 1).tolist(), strict=True))
    return mix(numbers.astype(np.uint64)), expected


if __name__ == "__main__":
    run(msgspec.json.decode(sys.stdin.buffer.read(), type=IndexJob))
