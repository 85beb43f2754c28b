"""A store on a disk that fails, driven as the consumer drives it: what failed is recovered and sent again."""

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

from crash.disk_story import Commit, Ledger, batch_of, require
from indexes import DEADLINE_S, same_hashes
from sekali.errors import SekaliError, StartupError
from sekali.stores.folder import index_folder
from sekali.stores.high_water import HighWaterMark, Mark
from sekali.stores.index_run import RunDamaged
from sekali.stores.sqlite import SqliteStore
from sekali.stores.sqlite_audit import audit
from sekali.testing import FakeClock, FaultyDisk, FaultyVfs, Operation

RUN_KEYS = 3  # so that a few events already make runs, and merges of runs
FAILURES_MAX = 3  # of one thing to do; then the fault is over
MARK_EVERY, READ_EVERY, REOPEN_AT = 3, 5, (9,)

Result = TypeVar("Result")


class Stopped(Exception):
    """This life is over: the power is cut, or it was to be killed at its first failure."""


class _MarkInTurn(HighWaterMark):
    """Writes the mark when it is told to, not on a thread of its own."""

    def advance(self, mark: Mark) -> None:
        self._newest = mark

    def close(self) -> None:
        self._write()


def quick_and_in_order() -> ExitStack:
    """Let little things do what takes a long time else: checkpoints, merges, another try."""
    stack = ExitStack()
    for name, value in (
        ("sekali.stores.sqlite.HighWaterMark", _MarkInTurn),
        ("sekali.stores.sqlite_checkpoint.START_PAGES", 40),
        ("sekali.stores.sqlite_checkpoint.RETRY_S", 0.001),
        ("sekali.stores.dedup.RETRY_S", 0.001),
    ):
        stack.enter_context(patch(name, value))
    return stack


class Life:
    """One program on one disk, from its start to its end, or to the end of the power.

    ``late_index``: the index writes what a commit filled after it, otherwise before. Nothing else happens at the same
    time, so that up to the first fault the operations of the disk are always the same.
    """

    def __init__(self, disk: FaultyDisk, folder: Path, ledger: Ledger, clock: FakeClock, *, late_index: bool) -> None:
        self.disk = disk
        self._ledger = ledger
        self._clock = clock
        self._late_index = late_index
        self._index_may_work = threading.Event()
        self._index_may_work.set()
        disk.before = self._before
        self._cut_after: int | None = None
        self._vfs = FaultyVfs(disk, folder).__enter__()
        self.db_path = folder / "store.db"
        self._store: SqliteStore | None = None
        self._in_trouble = True
        self._may_settle = False  # not before the first recovery
        self.failures = 0
        self.published = 0
        self.dies_of_failure = False

    def cut_power_after(self, operations: int) -> None:
        """Cut the power so many operations after the next fault."""
        self._cut_after = operations

    def _before(self, _: Operation, __: str) -> None:
        if threading.current_thread().name == "sekali-index":
            assert self._index_may_work.wait(DEADLINE_S)
        if self._cut_after is not None and self.disk.faults:
            self.disk.cut_power(at=len(self.disk.trace) + self._cut_after)
            self._cut_after = None

    def start(self) -> SqliteStore:
        """Open the store, however often that fails, and see that it can commit."""
        return self._insist(lambda store: store)

    def publish(self, groups: Commit) -> None:
        """Send a commit until it is answered."""
        for request in (request for group in groups for request in group):
            self._ledger.sends(request)
        tries = 0

        def send(store: SqliteStore) -> None:
            nonlocal tries
            tries += 1
            if tries > 1:
                for request in (request for group in groups for request in group):
                    self._ledger.sends(request)
            self._hear(groups, store)

        self._insist(send)
        self.published += 1
        self._clock.advance(0.001)

    def _hear(self, groups: Commit, store: SqliteStore) -> None:
        if self._late_index:
            self._index_may_work.clear()
        try:
            prepared: list[Any] = []
            for group in groups:
                prepared.append(store.prepare([batch_of(request) for request in group]))
                if not self._late_index:
                    self._settle()
            changes = self._ledger.consuming.says(self.published, self._ledger.seqs(), store)
            if changes:
                prepared.append(store.prepare_changes(changes))
            verdicts = store.commit(prepared)
            self._ledger.consuming.hears()
        finally:
            self._settle_checkpoints(store)
            self._index_may_work.set()
        if self.published % MARK_EVERY == 0:
            self._settle()
            store._high_water._write()
        requests = [request for group in groups for request in group]
        for request, answers in zip(requests, verdicts, strict=True):
            self._ledger.hears(request, answers)

    def read(self) -> None:
        """Read everything: also while the store is in trouble, what was acknowledged is there."""
        self._insist(self._ledger.check)

    def _insist(self, do: Callable[[SqliteStore], Result]) -> Result:
        failures = 0
        while True:
            try:
                store = self._ready()
                result = do(store)
            except SekaliError as error:
                if isinstance(error, StartupError):
                    require("accept-lost-tail" not in str(error), error)
                if self.disk.power_is_cut or self.dies_of_failure:
                    raise Stopped from error
                self._in_trouble = True
                self.failures += 1
                failures += 1
                if failures == FAILURES_MAX:
                    self.disk.heal()
                require(failures <= 2 * FAILURES_MAX, error)  # a store that cannot be opened has lost everything
            else:
                return result
            finally:
                self._settle()

    def _ready(self) -> SqliteStore:
        if self._store is None:
            self._store = SqliteStore(
                self.db_path,
                self._clock,
                topics_max=100,
                vfs=self._vfs.name,
                index_files=self.disk.folder(index_folder(self.db_path).name),
                mark_files=self.disk,
                hash_identities=same_hashes,
                run_keys=RUN_KEYS,
            )
        if self._in_trouble:
            self._store.summary()  # reading is open at once, so that a reader's connection stays throughout
            self._store.recover()
            self._may_settle = True
            self._settle()
            self._store.commit([])
            self._in_trouble = False
        return self._store

    def _settle(self) -> None:
        """Wait until nothing happens any more, or can."""
        if self._store is not None and self._may_settle:
            self._settle_checkpoints(self._store)
            with suppress(OSError, RunDamaged):  # the index will try again, or be recovered
                self._store._index.settle()

    @staticmethod
    def _settle_checkpoints(store: SqliteStore) -> None:
        if store._checkpointer is not None:
            store._checkpointer.settle()

    def reopen(self) -> None:
        """Stop the program as one does, and start it again."""
        self._close_store()
        self.start()

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
        self._in_trouble, self._may_settle = True, False

    def end(self) -> None:
        """Give everything back, in whatever state it is."""
        self._index_may_work.set()
        self._close_store()
        self._vfs.__exit__()


def live(life: Life, story: Sequence[Commit]) -> None:
    """Publish what is left of the story, with reads and a restart on the way.

    Raises:
        Stopped: the life is over before.

    """
    life.start()
    while life.published < len(story):
        if life.published in REOPEN_AT:
            life.reopen()
        life.publish(story[life.published])
        if life.published % READ_EVERY == 0:
            life.read()


def audited(db_path: Path) -> None:
    """The audit of a closed store finds nothing."""
    report = audit(db_path, lambda done, total: None)
    require(report.ok, report.document())
