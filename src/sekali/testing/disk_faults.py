"""The plan by which operations of a disk fail, and the record of them."""

import errno
import os
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum


class Operation(StrEnum):
    """What can be asked of a disk, and so what can fail."""

    NAMES = "names"
    CREATE = "create"
    OPEN = "open"
    READ = "read"
    WRITE = "write"
    APPEND = "append"
    TRUNCATE = "truncate"
    SYNC = "sync"
    SIZE = "size"
    RENAME = "rename"
    REMOVE = "remove"


ALL = frozenset(Operation)
READING = frozenset({Operation.NAMES, Operation.OPEN, Operation.READ, Operation.SIZE})
WRITING = ALL - READING


class PowerCut(OSError):
    """There is no power: this operation may have been the last to have an effect, or have had none."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the power is cut")


@dataclass(frozen=True, slots=True)
class Fault:
    """What an operation meets. ``error`` is an errno, or None where the power is cut."""

    error: int | None
    at: int
    operations: Collection[Operation]
    lasting: bool
    partly: bool


class Faults:
    """Counts the operations of a disk and lets some of them fail. Safe for any number of threads.

    ``trace`` lists all operations so far, such as "write a.run", and ``faults`` those of them that met a fault.
    ``before`` is called ahead of each operation, with the operation and the name of the file, on the thread that asks
    for it; it may wait.
    """

    def __init__(self) -> None:
        self.trace: list[str] = []
        self.faults: list[str] = []
        self.before: Callable[[Operation, str], None] = lambda operation, name: None
        self.power_is_cut = False
        self._lock = threading.RLock()
        self._fault: Fault | None = None

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
        disk; without ``at`` the next one. If ``lasting``, all such operations fail until ``heal``. If ``partly``, a
        write writes the first half of its data before it fails, what should sync a folder does the rest before it
        fails, and a read gives half of what it should and does not fail. After a sync that failed, a later one
        succeeds and does not write what the first one should have; who has the same file open meets the error once.
        """
        self._plan(Fault(error, at or 0, only, lasting, partly))

    def cut_power(self, *, at: int | None = None) -> None:
        """Cut the power in operation number ``at``, or in the next: it and all that follow raise ``PowerCut``."""
        self._plan(Fault(None, at or 0, ALL, lasting=True, partly=False))

    def _plan(self, fault: Fault) -> None:
        with self._lock:
            self._fault = fault

    def heal(self) -> None:
        """End the fault that was asked for. What it did remains, and so does a power cut."""
        with self._lock:
            self._fault = None

    @contextmanager
    def operation(self, operation: Operation, name: str) -> Iterator[Fault | None]:
        """Count an operation, and give the fault that it meets; no other operation begins before it has ended."""
        self.before(operation, name)
        with self._lock:
            self.trace.append(f"{operation} {name}".strip())
            if self.power_is_cut:
                raise PowerCut
            fault = self._fault
            if fault is None or len(self.trace) < fault.at or operation not in fault.operations:
                yield None
                return
            self.faults.append(self.trace[-1])
            if not fault.lasting:
                self._fault = None
            self.power_is_cut = fault.error is None
            yield fault


def has_effect(fault: Fault | None) -> bool:
    """Tell whether an operation does what it should; what the power was cut in may have done it."""
    return fault is None or fault.error is None


def raise_fault(fault: Fault | None) -> None:
    """Raise what an operation has to."""
    if fault is not None:
        raise PowerCut if fault.error is None else OSError(fault.error, os.strerror(fault.error))
