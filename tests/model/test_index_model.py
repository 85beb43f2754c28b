"""The SQLite store against the specification while its dedup index is deleted, damaged, or of another time."""

import shutil
from copy import deepcopy
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import precondition, rule

from batches import commit
from indexes import weak_hashes
from model.test_store_model import StoreMachine, event_ids, topics
from sekali.errors import Unavailable
from sekali.event import Batch
from sekali.ports import Query
from sekali.stores.folder import index_folder
from sekali.stores.memory import MemoryStore
from stored import put_back

RECOVERIES_MAX = 20  # each makes a damaged run good


class IndexMachine(StoreMachine):
    """As its parent, with harm done to the index, and with a log that is put back to an older state."""

    saved_index: Path | None = None
    saved_log: tuple[Path, object] | None = None

    def both(self, *made: Batch) -> None:
        """Commit as the consumer does: after a failure the store recovers, and the events are sent again."""
        self.clock.ns += 1  # what time it was tells one history of the log from another
        expected = commit(self.model, *made)
        for _ in range(RECOVERIES_MAX):
            try:
                assert commit(self.store, *made) == expected
            except Unavailable:
                self.store.recover()
            else:
                return
        raise AssertionError("it does not recover")

    @rule(topic=topics, asked=st.lists(event_ids, max_size=4))
    def missing(self, topic: str, asked: list[str]) -> None:
        for _ in range(RECOVERIES_MAX):
            try:
                assert self.store.missing(topic, asked) == self.model.missing(topic, asked)
            except Unavailable:
                self.store.recover()
            else:
                return
        raise AssertionError("it does not recover")

    @rule(topic=topics, event_id=event_ids)
    def find(self, topic: str, event_id: str) -> None:
        query = Query(topic=topic, event_id=event_id)
        assert self.store.read(query).events == self.model.read(query).events

    @rule(seconds=st.integers(0, 1000))
    def clock_jumps(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule()
    def delete_the_index(self) -> None:
        self.store.close()
        shutil.rmtree(index_folder(self.path))
        self.store = self.open(self.path)

    @rule(place=st.integers(0, 2**16), change=st.sampled_from(["flip", "cut", "remove"]), stopped=st.booleans())
    def damage_a_run(self, place: int, change: str, stopped: bool) -> None:
        """Change a file while the store is stopped, or under its hands."""
        if stopped:
            self.store.close()
        runs = sorted(index_folder(self.path).glob("*.run"))
        if runs:
            run = runs[place % len(runs)]
            try:
                data = bytearray(run.read_bytes())
                place %= len(data)
                match change:
                    case "flip":
                        data[place] ^= 1
                        with run.open("r+b") as file:
                            file.write(data)
                    case "cut":
                        with run.open("r+b") as file:
                            file.truncate(place)
                    case _:
                        run.unlink()
            except FileNotFoundError:  # merged away meanwhile
                pass
        if stopped:
            self.store = self.open(self.path)

    @rule()
    def save_the_index(self) -> None:
        self.store.close()
        self.saved_index = self.folder / "index"
        shutil.rmtree(self.saved_index, ignore_errors=True)
        shutil.copytree(index_folder(self.path), self.saved_index)
        self.store = self.open(self.path)

    @precondition(lambda self: self.saved_index is not None)
    @rule()
    def put_the_index_back(self) -> None:
        """It is older than the log, or newer, or of a time that is no longer in the log."""
        assert self.saved_index is not None
        self.store.close()
        shutil.rmtree(index_folder(self.path))
        shutil.copytree(self.saved_index, index_folder(self.path))
        self.store = self.open(self.path)

    @rule()
    def save_the_log(self) -> None:
        assert isinstance(self.model, MemoryStore)
        self.store.close()
        saved = self.folder / "saved.db"
        shutil.copy(self.path, saved)
        self.saved_log = saved, deepcopy(self.model._state)
        self.store = self.open(self.path)

    @precondition(lambda self: self.saved_log is not None)
    @rule()
    def put_the_log_back(self) -> None:
        assert self.saved_log is not None
        self.store.close()
        saved, self.model._state = self.saved_log[0], deepcopy(self.saved_log[1])  # type: ignore[attr-defined]
        put_back(saved, self.path)
        self.store = self.open(self.path)


class CollidingMachine(IndexMachine):
    """Every other identity has the same hash."""

    hash_identities = staticmethod(weak_hashes(2))


TestIndexModel = IndexMachine.TestCase
TestIndexModel.settings = settings(max_examples=25, stateful_step_count=30, deadline=None, print_blob=True)
TestCollidingHashes = CollidingMachine.TestCase
TestCollidingHashes.settings = settings(max_examples=25, stateful_step_count=30, deadline=None, print_blob=True)
