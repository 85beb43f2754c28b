"""A disk in memory that fails when told to and shows what a power cut may leave of its files.

What is written is at once there for every reader, and durable only after a sync; names are durable only after a sync
of the folder. A power cut keeps everything that was synced. Of the rest each page of 4 KiB, and each change of a name,
is kept or lost on its own, and a page may be torn between two sectors: no order of writes may be relied on.
"""

import errno
import os
import random
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

PAGE_BYTES = 4096
SECTOR_BYTES = 512


class Operation(StrEnum):
    """What can be asked of a disk, and so what can fail."""

    NAMES = "names"
    CREATE = "create"
    OPEN = "open"
    READ = "read"
    APPEND = "append"
    SYNC = "sync"
    SIZE = "size"
    RENAME = "rename"
    REMOVE = "remove"


ALL = frozenset(Operation)
WRITING = frozenset({Operation.CREATE, Operation.APPEND, Operation.SYNC, Operation.RENAME, Operation.REMOVE})
READING = ALL - WRITING


class PowerCut(OSError):
    """There is no power: this operation may have been the last to have an effect, or have had none."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the power is cut")


@dataclass(eq=False)
class _File:
    """What readers see, and what is sure to be found after a power cut."""

    content: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)
    dirty: set[int] = field(default_factory=set)  # pages that the next sync writes

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.content[offset : offset + len(data)] = data
        self.dirty |= set(range(offset // PAGE_BYTES, -(-(offset + len(data)) // PAGE_BYTES)))

    def truncate(self, size: int) -> None:
        del self.content[size:]

    def sync(self) -> None:
        _resize(self.synced, len(self.content))
        for page in self.dirty:
            span = slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
            self.synced[span] = self.content[span]
        self.dirty.clear()

    def forget_unsynced(self) -> None:
        """Fail to sync as Linux does: the pages count as clean, so that the next sync succeeds and writes none."""
        self.dirty.clear()

    def found(self, chance: random.Random, keep: float) -> bytes:
        """Return what a power cut may leave."""
        sizes = sorted((len(self.synced), len(self.content)))
        size = chance.choice((len(self.synced), len(self.content), chance.randint(*sizes)))
        if keep in {0, 1}:
            size = len(self.content if keep else self.synced)
        old, new = bytearray(self.synced), bytearray(self.content)
        _resize(old, sizes[1])
        _resize(new, sizes[1])
        for start in range(0, sizes[1], PAGE_BYTES):
            if chance.random() < keep:
                torn = keep < 1 and chance.random() < 1 / 4
                length = SECTOR_BYTES * chance.randrange(1, PAGE_BYTES // SECTOR_BYTES) if torn else PAGE_BYTES
                old[start : start + length] = new[start : start + length]
        return bytes(old[:size])


def _resize(data: bytearray, size: int) -> None:
    del data[size:]
    data.extend(bytes(size - len(data)))


@dataclass(frozen=True, slots=True)
class _Fault:
    error: int | None  # None: the power is cut
    at: int
    operations: Collection[Operation]
    lasting: bool
    partly: bool


class FaultyFiles:
    """The port ``sekali.stores.index_files.Files`` on a disk in memory. Safe for any number of threads.

    Every operation is counted, on the folder and on its files but for closing one. To try a piece of work with a fault
    at each of its steps, run it with a fault at operation 1, 2, 3, … until ``faults`` stays empty::

        for number in itertools.count(1):
            files = FaultyFiles()
            files.cut_power(at=number)
            with contextlib.suppress(OSError):
                work(files)
            if not files.faults:
                break
            check(files.after_power_cut(seed=number))

    It begins with the files of ``contents``, durably. ``before`` is called ahead of each operation, with the operation
    and the name of the file, on the thread that asks for it; it may wait.
    """

    def __init__(self, contents: Mapping[str, bytes] = MappingProxyType({})) -> None:
        self.trace: list[str] = []  # every operation so far, such as "append a.run"
        self.faults: list[str] = []  # those of them that met a fault
        self.before: Callable[[Operation, str], None] = lambda operation, name: None
        self._lock = threading.RLock()
        self._fault: _Fault | None = None
        self._power_is_cut = False
        self._files = {name: _File(bytearray(data), bytearray(data)) for name, data in contents.items()}
        self._files_synced = dict(self._files)
        self._changes_unsynced: list[Callable[[dict[str, _File]], object]] = []

    # Faults.

    def fail(
        self,
        error: int,
        *,
        at: int | None = None,
        only: Collection[Operation] = ALL,
        lasting: bool = False,
        partly: bool = False,
    ) -> None:
        """Let an operation raise ``OSError``, such as ``errno.EIO`` or ``errno.ENOSPC``, instead of having an effect.

        It is the first one that is among ``only`` and not before number ``at``, counted from 1 over the life of the
        disk; without ``at`` the next one. If ``lasting``, all such operations fail until ``heal``. If ``partly``, an
        append writes the first half of its data before it fails, and a read gives half of what it should and does not
        fail. After a sync that failed, a later one succeeds and does not write what the first one should have.
        """
        self._plan(_Fault(error, at or 0, only, lasting, partly))

    def cut_power(self, *, at: int | None = None) -> None:
        """Cut the power in operation number ``at``, or in the next: it and all that follow raise ``PowerCut``."""
        self._plan(_Fault(None, at or 0, ALL, lasting=True, partly=False))

    def _plan(self, fault: _Fault) -> None:
        with self._lock:
            self._fault = fault

    def heal(self) -> None:
        """End the fault that was asked for. What it did remains, and so does a power cut."""
        with self._lock:
            self._fault = None

    def after_power_cut(self, *, seed: int, keep: float = 0.5) -> "FaultyFiles":
        """Return the disk as it may be found after a power cut, or after one at this moment if there was none.

        ``keep`` is the chance of each page and each change of a name that was not synced to be there: with 0 only what
        was synced is left, with 1 everything that was written. ``seed`` decides in between.
        """
        chance = random.Random(seed)  # noqa: S311 - no secret
        with self._lock:
            files = dict(self._files_synced)
            for change in self._changes_unsynced:
                if chance.random() < keep:
                    change(files)
            return FaultyFiles({name: file.found(chance, keep) for name, file in files.items()})

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

    # The port.

    def names(self) -> list[str]:
        """See ``Files``."""
        with self._operation(Operation.NAMES, "") as fault:
            _raise(fault)
            return list(self._files)

    def create(self, name: str) -> "FaultyFile":
        """See ``Files``. Not synced."""
        with self._operation(Operation.CREATE, name) as fault:
            file = self._files.get(name) or _File()
            if _has_effect(fault):
                file.truncate(0)
                self._change_names(lambda files: files.update({name: file}))
            _raise(fault)
            return FaultyFile(name, file, self._operation)

    def open(self, name: str) -> "FaultyFile":
        """See ``Files``."""
        with self._operation(Operation.OPEN, name) as fault:
            _raise(fault)
            return FaultyFile(name, self._existing(name), self._operation)

    def rename(self, old: str, new: str) -> None:
        """See ``Files``. Syncs the folder; when the power is cut it may have happened or not."""
        with self._operation(Operation.RENAME, new) as fault:
            file = self._existing(old)

            def change(files: dict[str, _File]) -> None:
                files.pop(old, None)
                files[new] = file

            if _has_effect(fault):
                self._change_names(change)
            _raise(fault)
            self._files_synced = dict(self._files)
            self._changes_unsynced.clear()

    def remove(self, name: str) -> None:
        """See ``Files``. Not synced."""
        with self._operation(Operation.REMOVE, name) as fault:
            self._existing(name)
            if _has_effect(fault):
                self._change_names(lambda files: files.pop(name, None))
            _raise(fault)

    def _existing(self, name: str) -> _File:
        if name not in self._files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self._files[name]

    def _change_names(self, change: Callable[[dict[str, _File]], object]) -> None:
        change(self._files)
        self._changes_unsynced.append(change)

    @contextmanager
    def _operation(self, operation: Operation, name: str) -> Iterator[_Fault | None]:
        """Count an operation, and give the fault that it meets."""
        self.before(operation, name)
        with self._lock:
            self.trace.append(f"{operation} {name}".strip())
            if self._power_is_cut:
                raise PowerCut
            fault = self._fault
            if fault is None or len(self.trace) < fault.at or operation not in fault.operations:
                yield None
                return
            self.faults.append(self.trace[-1])
            if not fault.lasting:
                self._fault = None
            self._power_is_cut = fault.error is None
            yield fault


class FaultyFile:
    """The port ``sekali.stores.index_files.OpenFile`` on a file of ``FaultyFiles``, which makes these."""

    def __init__(
        self, name: str, file: _File, operation: Callable[[Operation, str], AbstractContextManager[_Fault | None]]
    ) -> None:
        self._name = name
        self._file = file
        self._operation = operation

    def read_at(self, offset: int, length: int) -> bytes:
        """See ``OpenFile``."""
        with self._operation(Operation.READ, self._name) as fault:
            data = bytes(self._file.content[offset : offset + length])
            if fault is not None and fault.partly:
                return data[: len(data) // 2]
            _raise(fault)
            return data

    def append(self, data: bytes | memoryview) -> None:
        """See ``OpenFile``."""
        with self._operation(Operation.APPEND, self._name) as fault:
            if _has_effect(fault):
                self._file.write(len(self._file.content), data)
            elif fault is not None and fault.partly:
                self._file.write(len(self._file.content), data[: len(data) // 2])
            _raise(fault)

    def sync(self) -> None:
        """See ``OpenFile``."""
        with self._operation(Operation.SYNC, self._name) as fault:
            if fault is None:
                self._file.sync()
            elif fault.error is not None:
                self._file.forget_unsynced()
            _raise(fault)

    def size(self) -> int:
        """See ``OpenFile``."""
        with self._operation(Operation.SIZE, self._name) as fault:
            _raise(fault)
            return len(self._file.content)

    def close(self) -> None:
        """See ``OpenFile``."""


def _has_effect(fault: _Fault | None) -> bool:
    # What the power was cut in may have had one.
    return fault is None or fault.error is None


def _raise(fault: _Fault | None) -> None:
    if fault is not None:
        raise PowerCut if fault.error is None else OSError(fault.error, os.strerror(fault.error))
