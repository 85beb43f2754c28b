"""What a disk holds of one file: what readers see, what is sure to be there after a power cut, and what may be."""

import random
from dataclasses import dataclass, field

PAGE_BYTES = 4096
SECTOR_BYTES = 512


@dataclass(eq=False)
class DiskFile:
    """A file in pages, each of which reaches the disk on its own, at a sync or at any time before."""

    content: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)
    dirty: set[int] = field(default_factory=set)  # pages that the next sync writes
    # What pages have been since they were synced: of each of these the disk may have any.
    versions: dict[int, list[bytes]] = field(default_factory=dict)
    failed_syncs: int = 0

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write at any place; what lies between the end and there becomes zeros."""
        if not len(data):
            return
        old_size = len(self.content)
        if offset > old_size:
            _resize(self.content, offset)
        self.content[offset : offset + len(data)] = data
        self._changed(min(offset, old_size), offset + len(data))

    def truncate(self, size: int) -> None:
        """Make the file longer or shorter."""
        old_size = len(self.content)
        _resize(self.content, size)
        self._changed(*sorted((size, old_size)))

    def _changed(self, start: int, end: int) -> None:
        for page in range(start // PAGE_BYTES, -(-end // PAGE_BYTES)):
            self.dirty.add(page)
            self.versions.setdefault(page, []).append(bytes(self.content[_span(page)]))

    def sync(self) -> None:
        """Make durable what was changed since the last sync, failed or not."""
        _resize(self.synced, len(self.content))
        for page in self.dirty:
            self.synced[_span(page)] = self.content[_span(page)]
            self.versions.pop(page, None)
        self.dirty.clear()

    def fail_to_sync(self) -> None:
        """Fail as Linux does: the pages count as clean, so that the next sync succeeds and does not write them."""
        self.dirty.clear()
        self.failed_syncs += 1

    def copy(self) -> "DiskFile":
        """Return the same file, to be changed on its own."""
        versions = {page: versions.copy() for page, versions in self.versions.items()}
        return DiskFile(self.content.copy(), self.synced.copy(), self.dirty.copy(), versions, self.failed_syncs)

    def found(self, chance: random.Random, keep: float) -> bytes:
        """Return what a power cut may leave; see ``FaultyDisk.after_power_cut``."""
        if keep in {0, 1}:
            return bytes(self.content if keep else self.synced)
        sizes = sorted((len(self.synced), len(self.content)))
        size = chance.choice((*sizes, chance.randint(*sizes)))
        found = bytearray(self.synced)
        _resize(found, sizes[1])
        for page, versions in self.versions.items():
            if page * PAGE_BYTES < len(found) and chance.random() < keep:
                version = versions[-1] if chance.random() < 1 / 2 else chance.choice(versions)
                torn = chance.random() < 1 / 4
                length = SECTOR_BYTES * chance.randrange(1, PAGE_BYTES // SECTOR_BYTES) if torn else PAGE_BYTES
                start = page * PAGE_BYTES
                found[start : start + length] = version.ljust(PAGE_BYTES, b"\0")[:length]
        _resize(found, size)
        return bytes(found)


def _span(page: int) -> slice:
    return slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)


def _resize(data: bytearray, size: int) -> None:
    del data[size:]
    data.extend(bytes(size - len(data)))
