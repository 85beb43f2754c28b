"""The newest keys of the dedup index: a hash table in numpy arrays, filled and searched in batches."""

import numpy as np
import numpy.typing as npt

from sekali.stores.identity import Hashes

Seqs = npt.NDArray[np.int64]
Positions = npt.NDArray[np.intp]


class HashTable:
    """Hashes to seqs with open addressing and linear probing; a hash may be there any number of times.

    It holds ``keys_max`` keys in twice as many slots, rounded up to a power of two, of 16 bytes each. One thread adds;
    lookups by other threads need a lock.
    """

    def __init__(self, keys_max: int) -> None:
        slots = 1 << (2 * keys_max - 1).bit_length()
        self._mask = np.uint64(slots - 1)
        self._hashes: Hashes = np.zeros(slots, np.uint64)
        self._seqs: Seqs = np.zeros(slots, np.int64)  # 0: the slot is empty
        self._count = 0
        self.keys_max = keys_max

    def __len__(self) -> int:
        return self._count

    def add(self, hashes: Hashes, seqs: Seqs) -> None:
        """Add keys; there must be room for them. Seqs are above 0 and each is added once."""
        self._count += len(hashes)
        assert self._count <= self.keys_max
        slots = hashes & self._mask
        while len(hashes):
            free = np.flatnonzero(self._seqs[slots] == 0)
            free_slots, free_seqs = slots[free], seqs[free]
            self._seqs[free_slots] = free_seqs
            won = self._seqs[free_slots] == free_seqs  # of those that met in one slot, one
            placed = free[won]
            self._hashes[free_slots[won]] = hashes[placed]
            left = np.ones(len(hashes), np.bool_)
            left[placed] = False
            hashes, seqs = hashes[left], seqs[left]
            slots = (slots[left] + np.uint64(1)) & self._mask

    def find(self, hashes: Hashes) -> tuple[Positions, Seqs]:
        """Return every key with one of the hashes, as positions among ``hashes`` and seqs."""
        found: list[tuple[Positions, Seqs]] = []
        slots = hashes & self._mask
        positions = np.arange(len(hashes))
        while len(positions):
            seqs = self._seqs[slots]
            taken = seqs != 0  # the first empty slot ends the search
            positions, slots, seqs = positions[taken], slots[taken], seqs[taken]
            hit = self._hashes[slots] == hashes[positions]
            if hit.any():
                found.append((positions[hit], seqs[hit]))
            slots = (slots + np.uint64(1)) & self._mask
        return join(found)

    def items(self) -> tuple[Hashes, Seqs]:
        """Return all keys and their seqs, in no order."""
        taken = self._seqs != 0
        return self._hashes[taken], self._seqs[taken]


def join(found: list[tuple[Positions, Seqs]]) -> tuple[Positions, Seqs]:
    """Put the results of several lookups together."""
    if len(found) == 1:
        return found[0]
    if not found:
        return np.empty(0, np.intp), np.empty(0, np.int64)
    return np.concatenate([positions for positions, _ in found]), np.concatenate([seqs for _, seqs in found])
