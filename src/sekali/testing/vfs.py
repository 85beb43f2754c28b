"""SQLite on a ``FaultyDisk``: an apsw VFS.

What a VFS sees is what can fail: opening, reading, writing, truncating, syncing, measuring, deleting and looking for
files. It does not see the memory that the connections to a write-ahead log share, nor its locks: both are those of the
system, on real files in a real folder. These follow the disk at each step, so that whoever opens the files past the
VFS, once they are closed, finds what the disk holds. Like SQLite's own VFS for Unix, the first sync of a new journal
or write-ahead log syncs its folder, too, and a file that is deleted is sure to be gone only where SQLite asks for that.
"""

import errno
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import apsw

from sekali.testing.disk import FaultyDisk, FaultyFile

_SYNCED_WITH_NAME = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_WAL
_numbers = itertools.count(1)


class FaultyVfs(apsw.VFS):
    """Lets SQLite work on the top folder of a disk, by ``name``, while it is entered as a context.

    ``folder`` is the real one, which is made where it is missing and has to be empty; the files of the disk are written
    to it. Every connection has to be closed before the end. Temporary files of SQLite's own are real and cannot fail::

        with FaultyVfs(disk, tmp_path / "data") as vfs:
            connection = apsw.Connection(str(vfs.folder / "a.db"), vfs=vfs.name)
    """

    def __init__(self, disk: FaultyDisk, folder: Path) -> None:
        self.disk = disk
        self.folder = folder
        self.name = f"sekali-faulty-{next(_numbers)}"

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.disk.contents().items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        super().__init__(self.name, "")
        return self

    def __exit__(self, *_: object) -> None:
        self.unregister()

    # What SQLite calls.

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        """Open a file."""
        if name is None:
            return apsw.VFSFile("", None, flags)
        path = Path(name.filename() if isinstance(name, apsw.URIFilename) else name)
        with _as_sqlite(apsw.SQLITE_CANTOPEN):
            if flags[0] & apsw.SQLITE_OPEN_CREATE and path.name not in self.disk.contents():
                file = self.disk.create(path.name)
            else:
                file = self.disk.open(path.name)
        return _File(file, name, flags)

    def xDelete(self, path: str, sync: bool) -> None:
        """Delete a file."""
        with _as_sqlite(apsw.SQLITE_IOERR_DELETE):
            self.disk.remove(Path(path).name, sync=sync)
        super().xDelete(path, False)

    def xAccess(self, path: str, flags: int) -> bool:
        """Tell whether there is such a file."""
        with _as_sqlite(apsw.SQLITE_IOERR_ACCESS):
            return self.disk.exists(Path(path).name)


class _File(apsw.VFSFile):
    """A file of a ``FaultyVfs``. The real one is written after the disk's, to the same effect, and never synced."""

    def __init__(self, file: FaultyFile, name: Any, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._file = file
        # SQLite's own VFS asks for no more either than that the file was opened to be made.
        self._sync_name = bool(flags[0] & apsw.SQLITE_OPEN_CREATE and flags[0] & _SYNCED_WITH_NAME)

    def xRead(self, amount: int, offset: int) -> bytes:
        """Read; SQLite takes less than it asked for as the end of the file."""
        with _as_sqlite(apsw.SQLITE_IOERR_READ):
            data = self._file.read_at(offset, amount)
            if len(data) < len(self._file.seen(offset, amount)):
                raise OSError(errno.EIO, "read only in part")
        return data

    def xWrite(self, data: bytes, offset: int) -> None:
        """Write."""
        try:
            with _as_sqlite(apsw.SQLITE_IOERR_WRITE):
                self._file.write_at(offset, data)
        finally:
            super().xWrite(self._file.seen(offset, len(data)), offset)

    def xTruncate(self, size: int) -> None:
        """Truncate."""
        try:
            with _as_sqlite(apsw.SQLITE_IOERR_TRUNCATE):
                self._file.truncate(size)
        finally:
            super().xTruncate(len(self._file.seen()))

    def xSync(self, flags: int) -> None:
        """Sync."""
        with _as_sqlite(apsw.SQLITE_IOERR_FSYNC):
            self._file.sync(with_name=self._sync_name)
        self._sync_name = False

    def xFileSize(self) -> int:
        """Return the size in bytes."""
        with _as_sqlite(apsw.SQLITE_IOERR_FSTAT):
            return self._file.size()


@contextmanager
def _as_sqlite(code: int) -> Iterator[None]:
    """Turn what the disk raises into what SQLite understands: ``code``, or that the disk is full."""
    try:
        yield
    except FileNotFoundError as error:
        raise apsw.exception_for(
            apsw.SQLITE_CANTOPEN if code == apsw.SQLITE_CANTOPEN else apsw.SQLITE_IOERR_DELETE_NOENT
        ) from error
    except OSError as error:
        full = error.errno == errno.ENOSPC and code == apsw.SQLITE_IOERR_WRITE
        raise apsw.exception_for(apsw.SQLITE_FULL if full else code) from error
