"""A disk in memory that fails when told to and shows what a power cut may leave of its files.

What is written is at once there for every reader, and durable only after a sync; names are durable only after a sync
of the folder. A power cut keeps everything that was synced. Of the rest each page of 4 KiB, and each change of a name,
is kept or lost on its own; a page may be what it was at any time since it was synced, and may be torn between two
sectors: no order of writes may be relied on. What a write does not touch, it does not harm.
"""

import errno
import os
import random
from collections.abc import Mapping
from types import MappingProxyType

from sekali.testing.disk_faults import Faults, Operation, has_effect, raise_fault
from sekali.testing.disk_file import DiskFile

_NOTHING: Mapping[str, bytes] = MappingProxyType({})


# What names a step changes, all of them or none: the file that has the name from then on, or None.
_Change = dict[str, DiskFile | None]


class FaultyDisk(Faults):
    """A disk whose top folder is the port ``sekali.stores.index_files.Files``, and so is each ``folder`` in it.

    Safe for any number of threads. Every operation is counted, on folders and on files, but for closing a file. To try
    a piece of work with a fault at each of its steps, run it with a fault at operation 1, 2, 3, … until ``faults``
    stays empty::

        for number in itertools.count(1):
            disk = FaultyDisk()
            disk.cut_power(at=number)
            with contextlib.suppress(OSError):
                work(disk)
            if not disk.faults:
                break
            check(disk.after_power_cut(seed=number))

    It begins with the files of ``contents``, durably. With ``lies`` a sync does nothing and says that it did.
    ``FaultyVfs`` lets SQLite work on it.
    """

    def __init__(self, contents: Mapping[str, bytes] = _NOTHING, *, lies: bool = False) -> None:
        super().__init__()
        self._lies = lies
        self._files = {name: DiskFile(bytearray(data), bytearray(data)) for name, data in contents.items()}
        self._files_synced = dict(self._files)
        self._unsynced: list[_Change] = []

    def after_power_cut(self, *, seed: int, keep: float = 0.5) -> "FaultyDisk":
        """Return the disk as it may be found after a power cut, or after one at this moment if there was none.

        ``keep`` is the chance of each page and each change of a name that was not synced to be there: with 0 only what
        was synced is left, with 1 everything that was written. ``seed`` decides in between.
        """
        chance = random.Random(seed)  # noqa: S311 - no secret
        with self._lock:
            files = dict(self._files_synced)
            for change in self._unsynced:
                if chance.random() < keep:
                    _apply(change, files)
            return FaultyDisk({name: file.found(chance, keep) for name, file in files.items()}, lies=self._lies)

    def after_kill(self) -> "FaultyDisk":
        """Return the disk as the next process finds it where this one was killed: all is there, synced or not."""
        with self._lock:
            copies: dict[DiskFile, DiskFile] = {}

            def copy(names: Mapping[str, DiskFile | None]) -> _Change:
                return {name: file and copies.setdefault(file, file.copy()) for name, file in names.items()}

            disk = FaultyDisk(lies=self._lies)
            _apply(copy(self._files), disk._files)
            _apply(copy(self._files_synced), disk._files_synced)
            disk._unsynced = list(map(copy, self._unsynced))
            return disk

    def contents(self) -> dict[str, bytes]:
        """Return all files as readers see them. Counts as no operation."""
        with self._lock:
            return {name: bytes(file.content) for name, file in self._files.items()}

    def damage(self, name: str, offset: int, bits: int = 0xFF) -> None:
        """Flip bits of a byte on the disk, also for who has the file open. Counts as no operation."""
        with self._lock:
            file = self._files[name]
            file.content[offset] ^= bits
            if offset < len(file.synced):
                file.synced[offset] ^= bits

    def folder(self, name: str) -> "FaultyFolder":
        """Return a folder of this disk. Its files have the name of the folder and a slash before theirs."""
        return FaultyFolder(self, name + "/")

    # The port.

    def names(self) -> list[str]:
        """See ``Files``."""
        return self.names_in("")

    def names_in(self, folder: str) -> list[str]:
        """List the files of a folder, whose name ends with a slash, or of the top folder, ""."""
        with self.operation(Operation.NAMES, folder) as fault:
            raise_fault(fault)
            return [name.removeprefix(folder) for name in self._files if _folder_of(name) == folder]

    def exists(self, name: str) -> bool:
        """Tell whether there is such a file. Counts as listing names."""
        with self.operation(Operation.NAMES, name) as fault:
            raise_fault(fault)
            return name in self._files

    def create(self, name: str) -> "FaultyFile":
        """See ``Files``. Not synced."""
        with self.operation(Operation.CREATE, name) as fault:
            file = self._files.get(name) or DiskFile()
            if has_effect(fault):
                file.truncate(0)
                self._change_names({name: file})
            raise_fault(fault)
            return FaultyFile(self, name, file)

    def open(self, name: str) -> "FaultyFile":
        """See ``Files``."""
        with self.operation(Operation.OPEN, name) as fault:
            raise_fault(fault)
            return FaultyFile(self, name, self._existing(name))

    def rename(self, old: str, new: str) -> None:
        """See ``Files``. Syncs the folder; when the power is cut it may have happened or not."""
        with self.operation(Operation.RENAME, new) as fault:
            file = self._existing(old)
            if has_effect(fault) or (fault is not None and fault.partly):
                self._change_names({old: None, new: file})
            raise_fault(fault)
            self.sync_names(_folder_of(new))

    def remove(self, name: str, *, sync: bool = False) -> None:
        """See ``Files``. Synced only with ``sync``."""
        with self.operation(Operation.REMOVE, name) as fault:
            self._existing(name)
            if has_effect(fault) or (fault is not None and fault.partly and sync):
                self._change_names({name: None})
            raise_fault(fault)
            if sync:
                self.sync_names(_folder_of(name))

    def _existing(self, name: str) -> DiskFile:
        if name not in self._files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self._files[name]

    def _change_names(self, change: _Change) -> None:
        _apply(change, self._files)
        self._unsynced.append(change)

    def sync_names(self, folder: str) -> None:
        """Make the names in a folder durable, as a part of an operation."""
        if self._lies:
            return
        with self._lock:
            names = {name for name in (*self._files, *self._files_synced) if _folder_of(name) == folder}
            _apply({name: self._files.get(name) for name in names}, self._files_synced)
            self._unsynced = [change for change in self._unsynced if not any(_folder_of(n) == folder for n in change)]

    def sync_file(self, file: DiskFile) -> None:
        """Make a file durable, as a part of an operation."""
        if not self._lies:
            file.sync()


class FaultyFolder:
    """The port ``sekali.stores.index_files.Files`` on a folder of a ``FaultyDisk``, which makes these."""

    def __init__(self, disk: FaultyDisk, prefix: str) -> None:
        self._disk = disk
        self._prefix = prefix

    def names(self) -> list[str]:
        """See ``Files``."""
        return self._disk.names_in(self._prefix)

    def create(self, name: str) -> "FaultyFile":
        """See ``Files``. Not synced."""
        return self._disk.create(self._prefix + name)

    def open(self, name: str) -> "FaultyFile":
        """See ``Files``."""
        return self._disk.open(self._prefix + name)

    def rename(self, old: str, new: str) -> None:
        """See ``Files``."""
        self._disk.rename(self._prefix + old, self._prefix + new)

    def remove(self, name: str) -> None:
        """See ``Files``. Not synced."""
        self._disk.remove(self._prefix + name)


class FaultyFile:
    """The port ``sekali.stores.index_files.OpenFile`` on a file of a ``FaultyDisk``, which makes these."""

    def __init__(self, disk: FaultyDisk, name: str, file: DiskFile) -> None:
        self._disk = disk
        self._name = name
        self._file = file
        self._failed_syncs_seen = file.failed_syncs

    def read_at(self, offset: int, length: int) -> bytes:
        """See ``OpenFile``."""
        with self._disk.operation(Operation.READ, self._name) as fault:
            data = bytes(self._file.content[offset : offset + length])
            if fault is not None and fault.partly:
                return data[: len(data) // 2]
            raise_fault(fault)
            return data

    def append(self, data: bytes | memoryview) -> None:
        """See ``OpenFile``."""
        self._write(Operation.APPEND, None, data)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write at any place of the file, or beyond its end."""
        self._write(Operation.WRITE, offset, data)

    def _write(self, operation: Operation, offset: int | None, data: bytes | memoryview) -> None:
        with self._disk.operation(operation, self._name) as fault:
            if not has_effect(fault):
                data = data[: len(data) // 2 if fault is not None and fault.partly else 0]
            self._file.write(len(self._file.content) if offset is None else offset, data)
            raise_fault(fault)

    def truncate(self, size: int) -> None:
        """Make the file longer or shorter."""
        with self._disk.operation(Operation.TRUNCATE, self._name) as fault:
            if has_effect(fault):
                self._file.truncate(size)
            raise_fault(fault)

    def sync(self, *, with_name: bool = False) -> None:
        """See ``OpenFile``. ``with_name`` syncs the folder, too."""
        with self._disk.operation(Operation.SYNC, self._name) as fault:
            if fault is None and self._failed_syncs_seen < self._file.failed_syncs:
                self._failed_syncs_seen = self._file.failed_syncs
                raise OSError(errno.EIO, "a sync through another descriptor failed")
            if fault is None or (fault.error is not None and fault.partly and with_name):
                self._disk.sync_file(self._file)
            elif fault.error is not None:
                self._file.fail_to_sync()
                self._failed_syncs_seen = self._file.failed_syncs
            raise_fault(fault)
            if with_name:
                self._disk.sync_names(_folder_of(self._name))

    def size(self) -> int:
        """See ``OpenFile``."""
        with self._disk.operation(Operation.SIZE, self._name) as fault:
            raise_fault(fault)
            return len(self._file.content)

    def seen(self, offset: int = 0, length: int | None = None) -> bytes:
        """Return what readers see. Counts as no operation."""
        return bytes(self._file.content[offset : None if length is None else offset + length])

    def close(self) -> None:
        """See ``OpenFile``."""


def _folder_of(name: str) -> str:
    return name[: name.rfind("/") + 1]


def _apply(change: _Change, files: dict[str, DiskFile]) -> None:
    for name, file in change.items():
        if file is None:
            files.pop(name, None)
        else:
            files[name] = file
