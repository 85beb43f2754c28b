"""The files of the dedup index behind a small port, so that faults can be injected into every operation.

Files are read with ``pread`` and not mapped: an unreadable page is then an error instead of a signal.
"""

import os
from pathlib import Path
from typing import Protocol

from sekali.stores.folder import sync_file


class OpenFile(Protocol):
    """A file that is read at any place, or written from its start to its end. All methods raise ``OSError``."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes, or fewer where the file ends before."""

    def append(self, data: bytes | memoryview) -> None:
        """Write all of ``data`` behind what was written before."""

    def sync(self) -> None:
        """Return when everything written is durable."""

    def size(self) -> int:
        """Return the size in bytes."""

    def close(self) -> None:
        """Release the descriptor. May be called twice."""


class Files(Protocol):
    """A folder of files. All methods raise ``OSError``."""

    def names(self) -> list[str]:
        """List the files."""

    def create(self, name: str) -> OpenFile:
        """Make an empty file, in the place of any that has the name."""

    def open(self, name: str) -> OpenFile:
        """Open a file for reading."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, durably."""

    def remove(self, name: str) -> None:
        """Delete a file. Who has it open can go on reading it."""


class FolderFiles:
    """``Files`` in a folder of the file system, which is made if it is missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def names(self) -> list[str]:
        return [path.name for path in self._folder.iterdir()]

    def create(self, name: str) -> OpenFile:
        return _DescriptorFile(os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644))

    def open(self, name: str) -> OpenFile:
        return _DescriptorFile(os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC))

    def rename(self, old: str, new: str) -> None:
        (self._folder / old).rename(self._folder / new)
        sync_file(self._folder)

    def remove(self, name: str) -> None:
        (self._folder / name).unlink()


class _DescriptorFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __del__(self) -> None:
        self.close()  # a run that a merge has replaced ends with the last lookup that uses it

    def read_at(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    def append(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
