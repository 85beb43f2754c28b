"""Helpers for tests, ours and those of our users: a clock to set by hand, stores that fail, wait or repeat, and a disk
that fails, tears what was written, and loses its power.
"""

from sekali.testing.clock import FakeClock
from sekali.testing.disk import FaultyDisk
from sekali.testing.disk_faults import ALL, READING, WRITING, Operation, PowerCut
from sekali.testing.stores import DuplicatingStore, FailingStore, GatedStore, HookedStore, WrappedStore
from sekali.testing.vfs import FaultyVfs

__all__ = [
    "ALL",
    "READING",
    "WRITING",
    "DuplicatingStore",
    "FailingStore",
    "FakeClock",
    "FaultyDisk",
    "FaultyVfs",
    "GatedStore",
    "HookedStore",
    "Operation",
    "PowerCut",
    "WrappedStore",
]
