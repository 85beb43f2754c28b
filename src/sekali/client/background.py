"""What a library with threads of its own owes its process: it knows them, it survives a fork, it ends in order."""

import atexit
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakSet

_here = threading.local()
no_fork = threading.RLock()
"""Held while one of our threads is inside a database library, so that no fork comes meanwhile: SQLite has locks of its
own, and a child that inherits one of them locked waits for ever with its next use of SQLite, on whatever file."""


@contextmanager
def ours() -> Iterator[None]:
    """Mark what this thread does meanwhile as the client's own doing.

    A log handler that publishes must not publish what publishing itself logs, and a callback must not wait for room
    that only its own thread can make.
    """
    before = is_ours()
    _here.ours = True
    try:
        yield
    finally:
        _here.ours = before


def is_ours() -> bool:
    """Tell whether this thread is inside ``ours``."""
    return getattr(_here, "ours", False)


def start_thread(name: str, work: Callable[[], None]) -> threading.Thread:
    """Start a thread that does not keep the process alive."""

    def run() -> None:
        with ours():
            work()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


class Resident(Protocol):
    """Something with threads."""

    def at_exit(self, deadline_s: float) -> None:
        """Finish what can be finished by a moment in monotonic seconds."""

    def after_fork(self) -> None:
        """Be as new: this is the child, which has none of the threads and must leave connections and locks alone."""


_residents: "WeakSet[Any]" = WeakSet()
EXIT_S = 5.0


def register(resident: Resident) -> None:
    """Tell something with threads of forks and of the end."""
    _residents.add(resident)


def leave_to_the_parent(connection: object) -> None:
    """Keep a database connection of the parent as it is for ever, also at the end of this process.

    To close it would be to speak for the parent: PostgreSQL would end its session, SQLite could drop its locks.
    """
    import ctypes  # noqa: PLC0415 - only in a child that has such a connection

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def _after_fork() -> None:
    no_fork.release()
    _here.ours = False
    for resident in list(_residents):
        resident.after_fork()


def _at_exit() -> None:
    deadline_s = time.monotonic() + EXIT_S
    for resident in list(_residents):
        resident.at_exit(deadline_s)


os.register_at_fork(before=no_fork.acquire, after_in_parent=no_fork.release, after_in_child=_after_fork)
atexit.register(_at_exit)
