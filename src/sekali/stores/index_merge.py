"""Merging runs of the dedup index, in slices of bounded size so that it takes little memory and can pause."""

from collections.abc import Generator, Sequence

import numpy as np

from sekali.stores.identity import Hashes
from sekali.stores.index_files import Files
from sekali.stores.index_run import BLOCK_KEYS, Run, RunId, RunWriter
from sekali.stores.index_table import Seqs

FANOUT = 4
SLICE_KEYS = 128 * 1024
RUN_LENGTH_MAX = 2**32  # what the offsets in a run can tell apart


def choose_merge(lengths: Sequence[int], run_keys: int) -> slice | None:
    """Choose which neighbours among runs of these lengths to merge, or None.

    Runs are of one class when their lengths in units of ``run_keys`` have the same power of ``FANOUT``; as soon as
    there are ``FANOUT`` of a class with none larger between them they become one of the next, along with what is
    smaller among them. So there are few runs, and a key is rewritten a logarithmic number of times (size-tiered
    compaction).
    """
    classes = [_size_class(length, run_keys) for length in lengths]
    for number in sorted(set(classes)):
        start = 0
        for larger in [place for place, other in enumerate(classes) if other > number] + [len(classes)]:
            enough = classes[start:larger].count(number) >= FANOUT
            if enough and sum(lengths[start:larger]) <= RUN_LENGTH_MAX:
                return slice(start, larger)
            start = larger + 1
    return None


def _size_class(length: int, run_keys: int) -> int:
    # Half a unit of slack: a run is flushed a little before or after it has reached its size.
    size, number = run_keys * FANOUT // 2, 0
    while length > size:
        size, number = size * FANOUT, number + 1
    return number


def write_sorted(files: Files, name: str, run_id: RunId, hashes: Hashes, seqs: Seqs) -> None:
    """Write a run of keys in any order."""
    order = np.argsort(hashes)
    writer = RunWriter(files, name, run_id)
    try:
        writer.append(hashes[order], (seqs[order] - run_id.first_seq).astype(np.uint32))
        writer.finish()
    except BaseException:
        writer.abandon()
        raise


def merge(files: Files, name: str, runs: Sequence[Run]) -> Generator[None, None, None]:
    """Write neighbouring runs as one, a slice at each step of the iterator; the run exists after the last step.

    Closed before that, or failed, it leaves nothing.
    """
    first, last = runs[0].run_id, runs[-1].run_id
    run_id = RunId(first.log_id, first.key, first.first_seq, last.last_seq, last.stamp)
    slices = -(-len(run_id) // SLICE_KEYS)
    readers = [_SliceReader(run) for run in runs]
    writer = RunWriter(files, name, run_id)
    try:
        for number in range(1, slices + 1):
            bound = (number << 64) // slices
            parts = [reader.take_below(bound) for reader in readers]
            hashes = np.concatenate([part_hashes for part_hashes, _ in parts])
            seqs = np.concatenate([part_seqs for _, part_seqs in parts])
            order = np.argsort(hashes)
            writer.append(hashes[order], (seqs[order] - run_id.first_seq).astype(np.uint32))
            yield
        writer.finish()
    except BaseException:
        writer.abandon()
        raise


class _SliceReader:
    """Reads a run from its start to its end, up to one hash after another."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._block = 0  # the next one to read
        self._rest: tuple[Hashes, Seqs] = (np.empty(0, np.uint64), np.empty(0, np.int64))

    def take_below(self, bound: int) -> tuple[Hashes, Seqs]:
        """Return all keys below ``bound`` that were not taken yet. ``1 << 64`` is above every hash."""
        run = self._run
        last = bound > np.iinfo(np.uint64).max
        end = run.blocks if last else int(np.searchsorted(run.fences, np.uint64(bound), "left"))
        hashes, seqs = self._rest
        if end > self._block:
            more_hashes, more_seqs = run.read_blocks(self._block, end)
            hashes, seqs = np.concatenate([hashes, more_hashes]), np.concatenate([seqs, more_seqs])
            self._block = end
        cut = len(hashes) if last else int(np.searchsorted(hashes, np.uint64(bound), "left"))
        self._rest = hashes[cut:], seqs[cut:]
        return hashes[:cut], seqs[:cut]


assert SLICE_KEYS % BLOCK_KEYS == 0
