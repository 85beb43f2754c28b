"""A run: keys of a range of seqs on disk, sorted by hash, never changed. Written once, by a flush or a merge.

Layout, all little-endian: blocks of 256 hashes (8 bytes) and 256 offsets of seqs from the run's first (4 bytes), the
last one filled up with zeros; a register-blocked Bloom filter (Putze, Sanders, Singler: Cache-, Hash- and
Space-Efficient Bloom Filters, 2007); the first hash of each block; the XXH3 checksum of each block; a trailer with the
checksum of the three parts before it and one of its own. A run is valid with its trailer, or not at all.
"""

import struct
from contextlib import suppress
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from sekali.stores.identity import Hashes
from sekali.stores.index_files import Files, OpenFile
from sekali.stores.index_table import Positions, Seqs, join

BLOCK_KEYS = 256
BLOCK_BYTES = BLOCK_KEYS * 12
_OFFSETS_AT = BLOCK_KEYS * 8
# With 21 bits a key, and 6 of the 64 bits of one word set for each, about one absent key in 590 passes (24: in 910).
FILTER_BITS_PER_KEY = 21
FILTER_BITS_SET = 6
SYNC_BYTES = 8 * 1024 * 1024  # written at most between two syncs, so that a sync of the log never waits for more
_READ_BYTES = 8 * 1024 * 1024
_MAGIC = b"SEKARUN1"
_TRAILER = struct.Struct("<8s32sQQQQQQ")  # magic, RunId, words of the filter, checksum of the parts
_CHECKSUM = struct.Struct("<Q")
TRAILER_BYTES = _TRAILER.size + _CHECKSUM.size

Offsets = npt.NDArray[np.uint32]


class RunDamaged(Exception):
    """A run cannot be read, or does not hold what was written. Carries the run's ``name``."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.name = name


@dataclass(frozen=True, slots=True)
class RunId:
    """What a run is about: of which log, hashed with which key, which seqs (inclusive).

    ``stamp`` is taken from the event at ``last_seq``: another log, or a later history of this one, has another.
    """

    log_id: bytes
    key: int
    first_seq: int
    last_seq: int
    stamp: int

    def __len__(self) -> int:
        return self.last_seq - self.first_seq + 1


def filter_masks(hashes: Hashes) -> Hashes:
    """Return the bits of each hash within its word of a filter, the same for every run."""
    one, six_bits = np.uint64(1), np.uint64(63)
    masks = one << (hashes & six_bits)
    for number in range(1, FILTER_BITS_SET):
        masks |= one << ((hashes >> np.uint64(6 * number)) & six_bits)
    return masks


def _filter_words(hashes: Hashes, words: int) -> npt.NDArray[np.uint64]:
    # The upper half of the hash, scaled to the number of words: in the order of the hashes.
    return ((hashes >> np.uint64(32)) * np.uint64(words)) >> np.uint64(32)


def _block_checksums(blocks: memoryview) -> list[int]:
    return [xxhash.xxh3_64_intdigest(blocks[at : at + BLOCK_BYTES]) for at in range(0, len(blocks), BLOCK_BYTES)]


class RunWriter:
    """Writes a run from its keys in order. It has its name, and counts, only after ``finish``."""

    def __init__(self, files: Files, name: str, run_id: RunId) -> None:
        self._files = files
        self._name = name
        self._run_id = run_id
        self._file = files.create(name + ".partial")
        self._filter: Hashes = np.zeros(-(-len(run_id) * FILTER_BITS_PER_KEY // 64), np.uint64)
        self._fences: list[Hashes] = []
        self._checksums: list[int] = []
        self._rest: tuple[Hashes, Offsets] = (np.empty(0, np.uint64), np.empty(0, np.uint32))
        self._unsynced = 0
        self._written = 0

    def append(self, hashes: Hashes, offsets: Offsets) -> None:
        """Write keys, all of which come behind those before them."""
        if not len(hashes):
            return
        self._written += len(hashes)
        words = _filter_words(hashes, len(self._filter))
        starts = np.flatnonzero(np.diff(words, prepend=words[0] ^ np.uint64(1)))
        self._filter[words[starts]] |= np.bitwise_or.reduceat(filter_masks(hashes), starts)
        hashes = np.concatenate([self._rest[0], hashes])
        offsets = np.concatenate([self._rest[1], offsets])
        whole = len(hashes) // BLOCK_KEYS * BLOCK_KEYS
        self._write_blocks(hashes[:whole], offsets[:whole])
        self._rest = hashes[whole:], offsets[whole:]

    def _write_blocks(self, hashes: Hashes, offsets: Offsets) -> None:
        blocks = np.empty((len(hashes) // BLOCK_KEYS, BLOCK_BYTES), np.uint8)
        blocks[:, :_OFFSETS_AT] = hashes.reshape(-1, BLOCK_KEYS).view(np.uint8)
        blocks[:, _OFFSETS_AT:] = offsets.reshape(-1, BLOCK_KEYS).view(np.uint8)
        self._fences.append(hashes[::BLOCK_KEYS].copy())  # a view would keep all of the hashes
        view = blocks.reshape(-1).data
        self._checksums += _block_checksums(view)
        for start in range(0, len(view), SYNC_BYTES):
            self._append(view[start : start + SYNC_BYTES])

    def _append(self, data: bytes | memoryview) -> None:
        self._file.append(data)
        self._unsynced += len(data)
        if self._unsynced >= SYNC_BYTES:
            self._file.sync()
            self._unsynced = 0

    def finish(self) -> None:
        """Write what is left, make it durable, and give the run its name."""
        assert self._written == len(self._run_id)
        hashes, offsets = self._rest
        if len(hashes):
            fill = BLOCK_KEYS - len(hashes)
            self._write_blocks(np.pad(hashes, (0, fill)), np.pad(offsets, (0, fill)))
        checksum = xxhash.xxh3_64()
        for part in (self._filter, np.concatenate(self._fences), np.array(self._checksums, np.uint64)):
            for start in range(0, len(part), SYNC_BYTES // 8):
                data = part[start : start + SYNC_BYTES // 8].data.cast("B")
                checksum.update(data)
                self._append(data)
        trailer = _TRAILER.pack(_MAGIC, *astuple(self._run_id), len(self._filter), checksum.intdigest())
        self._append(trailer + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(trailer)))
        self._file.sync()
        self._file.close()
        self._files.rename(self._name + ".partial", self._name)

    def abandon(self) -> None:
        """Leave it, and give the disk its room back as far as that can be done."""
        self._file.close()
        with suppress(OSError):
            self._files.remove(self._name + ".partial")


def read_run_id(files: Files, name: str) -> RunId:
    """Read which run this is, without its filter.

    Raises:
        RunDamaged: the trailer cannot be read.

    """
    try:
        return _read_trailer(files.open(name), name)[0]
    except OSError as error:
        raise RunDamaged(name, str(error)) from error


def _read_trailer(file: OpenFile, name: str) -> tuple[RunId, int, int]:
    data = file.read_at(max(file.size() - TRAILER_BYTES, 0), TRAILER_BYTES)
    trailer, checksum = data[: _TRAILER.size], data[_TRAILER.size :]
    if len(data) < TRAILER_BYTES or checksum != _CHECKSUM.pack(xxhash.xxh3_64_intdigest(trailer)):
        raise RunDamaged(name, "the trailer is damaged")
    magic, log_id, key, first_seq, last_seq, stamp, words, parts_checksum = _TRAILER.unpack(trailer)
    if magic != _MAGIC:
        raise RunDamaged(name, "not a run of this version")
    return RunId(log_id, key, first_seq, last_seq, stamp), words, parts_checksum


class Run:
    """A run that is open for reading, with its filter in memory. Safe for any number of threads.

    Raises:
        RunDamaged: it does not hold what was written; so do ``find`` and ``read_blocks``.

    """

    def __init__(self, files: Files, name: str) -> None:
        self.name = name
        try:
            self._file = files.open(name)
            self.run_id, words, checksum = _read_trailer(self._file, name)
            self.blocks = -(-len(self.run_id) // BLOCK_KEYS)
            if self._file.size() != self.blocks * BLOCK_BYTES + (words + 2 * self.blocks) * 8 + TRAILER_BYTES:
                raise RunDamaged(name, "it has another size than it should")
            parts = self._read_parts((words + 2 * self.blocks) * 8)
        except OSError as error:
            raise RunDamaged(name, str(error)) from error
        if xxhash.xxh3_64_intdigest(parts.data) != checksum:
            raise RunDamaged(name, "the filter or the table of blocks is damaged")
        self._filter, self.fences, self._checksums = np.split(parts, [words, words + self.blocks])

    def _read_parts(self, size: int) -> Hashes:
        parts = np.empty(size, np.uint8)
        for start in range(0, size, _READ_BYTES):
            data = self._file.read_at(self.blocks * BLOCK_BYTES + start, min(_READ_BYTES, size - start))
            parts[start : start + len(data)] = np.frombuffer(data, np.uint8)
        return parts.view(np.uint64)

    def find(self, hashes: Hashes, masks: Hashes) -> tuple[Positions, Seqs]:
        """Return every key with one of the hashes, as positions among ``hashes`` and seqs.

        ``masks`` are their ``filter_masks``.
        """
        words = self._filter[_filter_words(hashes, len(self._filter))]
        positions = np.flatnonzero((words & masks) == masks)
        if not len(positions):
            return positions, np.empty(0, np.int64)
        wanted = hashes[positions]
        # Keys with one hash may begin at the end of a block and go on in the next ones.
        first = np.maximum(np.searchsorted(self.fences, wanted, "left") - 1, 0)
        last = np.maximum(np.searchsorted(self.fences, wanted, "right") - 1, 0)
        found: list[tuple[Positions, Seqs]] = []
        while len(positions):
            numbers, places = np.unique(first, return_inverse=True)
            block_hashes, seqs = self._read_scattered(numbers)
            at, slot = np.nonzero(block_hashes[places] == wanted[:, None])
            found.append((positions[at], seqs[places[at], slot]))
            more = first < last
            positions, wanted, first, last = positions[more], wanted[more], first[more] + 1, last[more]
        positions, found_seqs = join(found)
        real = found_seqs <= self.run_id.last_seq  # not what fills the last block
        return positions[real], found_seqs[real]

    def _read_scattered(self, numbers: npt.NDArray[np.intp]) -> tuple[Hashes, Seqs]:
        data = b"".join([self._read_block(int(number)) for number in numbers])
        hashes, seqs = self._parse(data)
        if numbers[-1] == self.blocks - 1 and (fill := self.blocks * BLOCK_KEYS - len(self.run_id)):
            seqs[-1, -fill:] = np.iinfo(np.int64).max
        return hashes, seqs

    def _read_block(self, number: int) -> bytes:
        try:
            data = self._file.read_at(number * BLOCK_BYTES, BLOCK_BYTES)
        except OSError as error:
            raise RunDamaged(self.name, str(error)) from error
        if xxhash.xxh3_64_intdigest(data) != self._checksums[number]:
            raise RunDamaged(self.name, f"block {number} is damaged")
        return data

    def _parse(self, data: bytes) -> tuple[Hashes, Seqs]:
        blocks = np.frombuffer(data, np.uint8).reshape(-1, BLOCK_BYTES)
        hashes = np.ascontiguousarray(blocks[:, :_OFFSETS_AT]).view(np.uint64)
        offsets = np.ascontiguousarray(blocks[:, _OFFSETS_AT:]).view(np.uint32)
        return hashes, offsets.astype(np.int64) + self.run_id.first_seq

    def read_blocks(self, start: int, end: int) -> tuple[Hashes, Seqs]:
        """Return the keys of the blocks from ``start`` up to but not including ``end``, in order of their hashes."""
        try:
            data = self._file.read_at(start * BLOCK_BYTES, (end - start) * BLOCK_BYTES)
        except OSError as error:
            raise RunDamaged(self.name, str(error)) from error
        if len(data) < (end - start) * BLOCK_BYTES:
            raise RunDamaged(self.name, f"it ends before block {end}")
        if _block_checksums(memoryview(data)) != self._checksums[start:end].tolist():
            raise RunDamaged(self.name, f"a block from {start} to {end - 1} is damaged")
        hashes, seqs = self._parse(data)
        count = len(self.run_id) - start * BLOCK_KEYS
        return hashes.reshape(-1)[:count], seqs.reshape(-1)[:count]
