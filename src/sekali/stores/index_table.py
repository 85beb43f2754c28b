"""The newest keys of the dedup index: a hash table in numpy arrays, filled and searched in batches."""

import numpy as np
import numpy.typing as npt

from sekali.stores.identity import Hashes

Seqs = npt.NDArray[np.int64]
Positions = npt.NDArray[np.intp]


class HashTable:
    """Hashes of consecutive seqs, from ``first_seq`` on, with open addressing and linear probing.

    A hash may be there any number of times. It holds ``keys_max`` keys: 8 bytes for each hash, and 4 for each slot, of
    which there are twice as many, rounded up to a power of two. One thread adds; lookups by others need a lock.
    """

    def __init__(self, first_seq: int, keys_max: int) -> None:
        slots = 1 << (2 * keys_max - 1).bit_length()
        self.first_seq = first_seq
        self.keys_max = keys_max
        self._count = 0
        self._hashes: Hashes = np.empty(keys_max, np.uint64)  # in the order of the seqs
        self._slots: npt.NDArray[np.int32] = np.zeros(slots, np.int32)  # 1 + place in hashes; 0: empty
        self._mask = np.uint64(slots - 1)

    def __len__(self) -> int:
        return self._count

    def add(self, hashes: Hashes) -> None:
        """Add the hashes of the next seqs; there must be room for them."""
        start, end = self._count, self._count + len(hashes)
        assert end <= self.keys_max
        self._hashes[start:end] = hashes
        self._count = end
        entries = np.arange(start + 1, end + 1, dtype=np.int32)
        slots = hashes & self._mask
        while len(entries):
            free = self._slots[slots] == 0
            self._slots[slots[free]] = entries[free]
            left = np.flatnonzero(self._slots[slots] != entries)  # of those that met in one slot, one has it
            entries, slots = entries[left], (slots[left] + np.uint64(1)) & self._mask

    def find(self, hashes: Hashes) -> tuple[Positions, Seqs]:
        """Return every key with one of the hashes, as positions among ``hashes`` and seqs."""
        found: list[tuple[Positions, Seqs]] = []
        slots = hashes & self._mask
        positions = np.arange(len(hashes))
        while len(positions):
            entries = self._slots[slots]
            taken = np.flatnonzero(entries)  # the first empty slot ends the search
            positions, slots, entries = positions[taken], slots[taken], entries[taken]
            hit = np.flatnonzero(self._hashes[entries - 1] == hashes[positions])
            if len(hit):
                found.append((positions[hit], entries[hit].astype(np.int64) + (self.first_seq - 1)))
            slots = (slots + np.uint64(1)) & self._mask
        return join(found)

    def items(self) -> tuple[Hashes, Seqs]:
        """Return all keys and their seqs."""
        return self._hashes[: self._count], np.arange(self.first_seq, self.first_seq + self._count)


def join(found: list[tuple[Positions, Seqs]]) -> tuple[Positions, Seqs]:
    """Put the results of several lookups together."""
    if len(found) == 1:
        return found[0]
    if not found:
        return np.empty(0, np.intp), np.empty(0, np.int64)
    return np.concatenate([positions for positions, _ in found]), np.concatenate([seqs for _, seqs in found])
