"""How far the log has come, written down outside the file that holds it.

A write-ahead log that lost its end is a good write-ahead log to SQLite: one flipped bit in it, or a file copied without
it, and acknowledged events are gone without a word. The mark says that there were more. It is written after a commit
and synced, at most once a second, so it may lag behind the log by that second; it is never ahead of it.
"""

import threading
from pathlib import Path

import apsw
import msgspec
import structlog
import xxhash

from sekali.stores.index_files import Files

WRITE_INTERVAL_S = 1.0

log = structlog.get_logger("sekali.mark")


class Mark(msgspec.Struct, frozen=True):
    """How far a log had come. ``received`` counts all items of all time, so that it rises with every commit."""

    log_id: str
    head: int
    received: int

    def missing_in(self, found: "Mark") -> str | None:
        """Say what ``found`` lacks, or None if it came at least as far, or is another log."""
        if self.log_id != found.log_id or (found.head >= self.head and found.received >= self.received):
            return None
        if found.head < self.head:
            return f"the log ends at seq {found.head}, and had come to seq {self.head}: {self.head - found.head} events"
        return f"the log counts {found.received} items, and had counted {self.received}"


class MarkDamaged(Exception):
    """The mark is there and cannot be read."""


class HighWaterMark:
    """The mark of one store, in the file ``name`` of ``files``; a thread of its own writes it."""

    def __init__(self, files: Files, name: str, *, interval_s: float = WRITE_INTERVAL_S) -> None:
        self._files = files
        self._name = name
        self._interval_s = interval_s
        self._newest: Mark | None = None
        self._written: Mark | None = None
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def read(self) -> Mark | None:
        """Return the mark, or None where there is none.

        Raises:
            MarkDamaged: it is no mark of ours, or bits of it have flipped.
            OSError: it cannot be read.

        """
        try:
            file = self._files.open(self._name)
        except FileNotFoundError:
            return None
        try:
            for _ in range(2):  # a read may fail to give all that is there, once
                text, _, checksum = file.read_at(0, file.size()).rpartition(b" ")
                if checksum == _checksum(text):
                    return msgspec.json.decode(text, type=Mark)
        finally:
            file.close()
        raise MarkDamaged

    def advance(self, mark: Mark) -> None:
        """Note how far the log has come, durably; it is written a little later."""
        self._newest = mark
        if not self._changed.is_set():
            self._changed.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sekali-mark", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while self._changed.wait() and not self._closing.is_set():
            self._changed.clear()
            self._write()
            self._closing.wait(self._interval_s)

    def _write(self) -> None:
        mark = self._newest
        if mark is None or mark == self._written:
            return
        text = msgspec.json.encode(mark)
        try:
            file = self._files.create(self._name + ".new")
            try:
                file.append(text + b" " + _checksum(text))
                file.sync()
            finally:
                file.close()
            self._files.rename(self._name + ".new", self._name)
        except OSError as error:
            # Events are as safe as ever; only a lost end of the log would not be noticed.
            log.warning("the high-water mark cannot be written", reason=str(error))
            self._changed.set()
        else:
            self._written = mark

    def close(self) -> None:
        """Write what is left to write, and stop. May be called twice."""
        self._closing.set()
        self._changed.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._write()


def mark_name(db_path: Path) -> str:
    """Return the name of the mark of a store, which lies beside its file."""
    return db_path.name + ".mark"


def mark_of(connection: apsw.Connection) -> Mark:
    """Return how far the log in a file has come.

    Raises:
        apsw.Error, checksum.DAMAGE: it cannot be read.

    """
    ((log_id, head, received),) = connection.execute(
        "SELECT log_id, (SELECT coalesce(max(seq), 0) FROM events), received FROM log"
    )
    return Mark(log_id, head, received)


def _checksum(text: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(text).encode()
