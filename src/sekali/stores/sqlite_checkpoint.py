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
    """Keeps the write-ahead log of one file short. ``writer`` is the connection that commits."""

    def __init__(self, db_path: Path, writer: apsw.Connection, vfs: str | None = None) -> None:
        self._db_path = db_path
        self._vfs = vfs
        self._writer = writer
        self._pages = 0  # in the log, after the last commit
        self._wanted = threading.Event()
        self._almost_done = threading.Event()
        self._closing = threading.Event()
        writer.set_wal_hook(self._committed)  # in the place of SQLite's own, which would checkpoint inside the commit
        self._thread = threading.Thread(target=self._run, name="sekali-checkpoint", daemon=True)
        self._thread.start()

    def _committed(self, _: apsw.Connection, __: str, pages: int) -> int:
        self._pages = pages
        if pages >= START_PAGES:
            self._wanted.set()
        return apsw.SQLITE_OK

    @property
    def pending_bytes(self) -> int:
        """How much the file may still grow by what is in the log."""
        return self._pages * PAGE_BYTES

    def between_commits(self) -> None:
        """Copy what is left, where that is little: then the next commit starts the log over."""
        if self._almost_done.is_set():
            self._almost_done.clear()
            with suppress(apsw.BusyError):  # the thread is at it again
                self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def _run(self) -> None:
        connection = open_checkpointer(self._db_path, self._vfs)
        try:
            while True:
                self._wanted.wait()
                if self._closing.is_set():
                    return
                self._wanted.clear()
                self._copy(connection)
        finally:
            close_quietly(connection)

    def _copy(self, connection: apsw.Connection) -> None:
        copied = 0
        while True:
            try:
                pages, done = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            except apsw.BusyError:  # the writer copies the rest just now
                return
            except apsw.Error as error:
                log.error("checkpoint failed", reason=str(error))
                self._closing.wait(RETRY_S)
                return
            if pages - done <= LEFT_PAGES_MAX:
                self._almost_done.set()
                return
            if done <= copied:  # a reader needs the rest
                self._closing.wait(RETRY_S)
                return
            copied = done

    def close(self) -> None:
        """Stop the thread."""
        self._closing.set()
        self._wanted.set()
        self._thread.join()
