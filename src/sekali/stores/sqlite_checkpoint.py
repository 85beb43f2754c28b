"""Checkpoints on a thread of their own, so that no commit waits while pages go from the write-ahead log to the file.

SQLite starts the log over from its beginning only when all of it has been copied, and while commits go on there is
always a little more. So the thread copies until little is left, and the writer copies that itself between two commits.
Safe with a SQLite that has the WAL-reset bug fixed, which ``open_writer`` sees to.
"""

import threading
from contextlib import suppress
from pathlib import Path

import apsw
import structlog

from sekali.stores.sqlite_file import close_quietly, open_checkpointer

PAGE_BYTES = 4096
START_PAGES = 4096  # 16 MiB in the log: time to copy
LEFT_PAGES_MAX = 256  # what the writer may copy between two commits
RETRY_S = 1.0  # while a reader holds the log back

log = structlog.get_logger("sekali.checkpoint")


class Checkpointer:
    """Keeps the write-ahead log of one file short. ``writer`` is the connection that commits.

    Raises:
        apsw.Error: SQLite cannot open another connection.

    """

    def __init__(self, db_path: Path, writer: apsw.Connection, vfs: str | None = None) -> None:
        self._writer = writer
        self._connection = open_checkpointer(db_path, vfs)
        self._pages = 0  # in the log, after the last commit
        self._changed = threading.Condition()  # guards what is below
        self._wanted = False
        self._copying = False
        self._almost_done = False
        self._closing = False
        writer.set_wal_hook(self._committed)  # in the place of SQLite's own, which would checkpoint inside the commit
        self._thread = threading.Thread(target=self._run, name="sekali-checkpoint", daemon=True)
        self._thread.start()

    def _committed(self, _: apsw.Connection, __: str, pages: int) -> int:
        self._pages = pages
        if pages >= START_PAGES:
            with self._changed:
                self._wanted = True
                self._changed.notify_all()
        return apsw.SQLITE_OK

    @property
    def pending_bytes(self) -> int:
        """How much the file may still grow by what is in the log."""
        return self._pages * PAGE_BYTES

    def between_commits(self) -> None:
        """Copy what is left, where that is little: then the next commit starts the log over."""
        if self._almost_done:
            self._almost_done = False
            with suppress(apsw.BusyError):  # the thread is at it again
                self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._copying = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._wanted or self._closing)
                if self._closing:
                    return
                self._wanted, self._copying = False, True
            self._copy()

    def _copy(self) -> None:
        copied = 0
        while True:
            try:
                pages, done = self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            except apsw.BusyError:  # the writer copies the rest just now
                return
            except apsw.Error as error:
                log.error("checkpoint failed", reason=str(error))
                self._wait()
                return
            if pages - done <= LEFT_PAGES_MAX:
                self._almost_done = True
                return
            if done <= copied:  # a reader needs the rest
                self._wait()
                return
            copied = done

    def _wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, RETRY_S)

    def settle(self) -> None:
        """Wait until the thread has done what the commits so far gave it to do: for tests."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._wanted or self._copying))

    def close(self) -> None:
        """Stop the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        close_quietly(self._connection)
