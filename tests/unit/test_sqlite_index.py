"""The SQLite store with an index that is damaged, gone, of another time, or cannot be written: verdicts stay right."""

import errno
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from batches import DUPLICATE, STORED, batch, publish, read_all
from e2e.server import wait_until
from indexes import DEADLINE_S, run_ranges
from sekali.errors import CommitUnknown, StoreBroken, Unavailable
from sekali.event import Outcome
from sekali.ports import Query, no_progress
from sekali.stores.dedup import FROZEN_MAX
from sekali.stores.folder import index_folder
from sekali.stores.index_files import Files
from sekali.stores.sqlite import SqliteStore
from sekali.stores.sqlite_audit import audit
from sekali.stores.sqlite_backup import backup
from sekali.testing import WRITING, FailingStore, FakeClock, FaultyDisk
from stored import put_back

RUN_KEYS = 4
EVENTS = 30


@pytest.fixture(autouse=True)
def retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekali.stores.dedup.RETRY_S", 0.001)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


Open = Callable[..., SqliteStore]


@pytest.fixture
def open_store(tmp_path: Path, clock: FakeClock) -> Open:
    """Open a store, by default on ``store.db`` and with its index in a folder."""

    def make(path: Path = tmp_path / "store.db", index: Files | None = None) -> SqliteStore:
        store = SqliteStore(path, clock, topics_max=100, index_files=index, run_keys=RUN_KEYS)
        store.recover()
        return store

    return make


def send(store: SqliteStore, numbers: range) -> list[tuple[Outcome, int | None]]:
    """Send events one by one."""
    return [publish(store, ("a", f"{number}"))[0] for number in numbers]


def stored(numbers: range) -> list[tuple[Outcome, int | None]]:
    return [(STORED, number + 1) for number in numbers]


def duplicate(numbers: range) -> list[tuple[Outcome, int | None]]:
    return [(DUPLICATE, number + 1) for number in numbers]


def send_until_answered(store: SqliteStore, numbers: range) -> tuple[list[tuple[Outcome, int | None]], int]:
    """Send events as a publisher and the consumer do: after a failure the store recovers, and they are sent again."""
    failures = 0
    while True:
        try:
            return send(store, numbers), failures
        except CommitUnknown:
            failures += 1
            assert failures <= EVENTS
            store.recover()


def assert_sound(store: SqliteStore, path: Path, events: int) -> None:
    assert send_until_answered(store, range(events))[0] == duplicate(range(events))
    assert store.missing("a", [*map(str, range(events)), "not there"]) == ["not there"]
    for number in range(events):
        assert [event.seq for event in read_all(store, Query(topic="a", event_id=str(number)))] == [number + 1]
    store.close()
    assert audit(path, lambda done, total: None).ok


def test_a_block_that_was_damaged_under_an_open_store(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    send(store, range(EVENTS))
    folder = index_folder(tmp_path / "store.db")
    store._index.settle()  # no run is written or merged meanwhile
    assert 0 < len(run_ranges(path.name for path in folder.iterdir())) <= 6
    for path in folder.iterdir():
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.write_bytes(data)  # in place, as a bad sector would
    with pytest.raises(Unavailable, match="damaged"):
        store.missing("a", ["0"])
    event = read_all(store, Query(topic="a", event_id="0"))[0]  # by a scan
    assert event.seq == 1
    with pytest.raises(CommitUnknown, match="damaged"):
        send(store, range(EVENTS, EVENTS + 1))
    answers, failures = send_until_answered(store, range(EVENTS + 1))
    assert answers == [*duplicate(range(EVENTS)), *stored(range(EVENTS, EVENTS + 1))]
    assert failures >= 1
    assert_sound(store, tmp_path / "store.db", EVENTS + 1)


@pytest.mark.parametrize("settled", [True, False])
def test_events_of_a_commit_that_failed_leave_nothing_behind(
    open_store: Open, tmp_path: Path, clock: FakeClock, settled: bool
) -> None:
    """They were added to the index before; other events get their seqs, at the same moment of the clock."""
    index = FaultyDisk()
    store = open_store(index=index)
    send(store, range(5))
    failing = FailingStore(store, failures_left=1)
    with pytest.raises(CommitUnknown):
        publish(failing, *[("a", f"lost {number}") for number in range(3 * RUN_KEYS)])
    if settled:
        prepared = store.prepare([batch(("a", "void"))])
        assert prepared.writes.last_seq == 5 + 3 * RUN_KEYS + 1
        wait_until(lambda: (6, 5 + 3 * RUN_KEYS) in run_ranges(index.contents()), "they are in a run")
    store.recover()
    assert send(store, range(5, EVENTS)) == stored(range(5, EVENTS))
    assert store.missing("a", ["lost 0", "void"]) == ["lost 0", "void"]
    store.close()
    assert_sound(open_store(index=index), tmp_path / "store.db", EVENTS)


def test_what_is_committed_in_another_order_than_it_was_prepared_is_refused(open_store: Open) -> None:
    store = open_store()
    first, second = store.prepare([batch(("a", "1"))]), store.prepare([batch(("a", "2"), ("a", "3"))])
    with pytest.raises(CommitUnknown, match="seq 2, and 3 was told"):
        store.commit([second])
    store.recover()
    assert store.summary().head == 0
    assert publish(store, ("a", "2"), ("a", "1")) == [(STORED, 1), (STORED, 2)]
    del first
    store.close()


def test_a_full_disk_under_the_index(open_store: Open, tmp_path: Path) -> None:
    index = FaultyDisk()
    store = open_store(index=index)
    assert send(store, range(5)) == stored(range(5))
    index.fail(errno.ENOSPC, only=WRITING, lasting=True)
    sent = 5
    with pytest.raises(CommitUnknown, match="No space left"):
        for number in range(5, 100):
            send(store, range(number, number + 1))
            sent += 1
    assert sent >= FROZEN_MAX * RUN_KEYS and index.faults
    with pytest.raises(StoreBroken, match="No space left"):
        store.recover()
    with pytest.raises(Unavailable):
        store.missing("a", ["0"])
    assert read_all(store, Query(topic="a", event_id="0"))[0].seq == 1
    index.heal()
    store.recover()
    assert send(store, range(sent, EVENTS)) == stored(range(sent, EVENTS))
    assert_sound(store, tmp_path / "store.db", EVENTS)


def test_while_the_index_is_made_readers_get_whole_answers_and_nobody_else_any(
    open_store: Open, tmp_path: Path
) -> None:
    store = open_store()
    send(store, range(EVENTS))
    seen: list[tuple[int, int]] = []

    def look(done: int, total: int) -> None:
        seen.append((done, total))
        assert len(read_all(store, Query())) == EVENTS
        assert [event.seq for event in read_all(store, Query(topic="a", event_id="3"))] == [4]
        assert read_all(store, Query(topic="a", event_id="not there")) == []
        with pytest.raises(Unavailable):
            store.missing("a", ["3"])
        with pytest.raises(Unavailable):
            store.prepare([batch(("a", "3"))])

    store.close()
    shutil.rmtree(index_folder(tmp_path / "store.db"))
    store = SqliteStore(tmp_path / "store.db", FakeClock(), topics_max=100, run_keys=RUN_KEYS)
    store.recover(look)
    assert seen == [*((done, EVENTS) for done in range(RUN_KEYS, EVENTS, RUN_KEYS)), (EVENTS, EVENTS)]
    assert_sound(store, tmp_path / "store.db", EVENTS)


def test_who_asked_before_the_index_was_given_up_is_not_told_of_half_of_it(open_store: Open) -> None:
    """A reader has seen that the index is whole, and looks while it is being made."""
    index = FaultyDisk()
    store = open_store(index=index)
    send(store, range(EVENTS))
    answers: list[object] = []
    asked, go_on = threading.Event(), threading.Event()
    hashes = store._index.hashes

    def wait(*arguments: list[str]) -> object:
        if threading.current_thread().name == "reader":
            asked.set()
            assert go_on.wait(DEADLINE_S)
        return hashes(*arguments)

    store._index.hashes = wait  # type: ignore[method-assign, assignment]

    def look() -> None:
        try:
            answers.append(store.missing("a", ["3"]))
        except Unavailable as error:
            answers.append(type(error))

    reader = threading.Thread(target=look, name="reader")
    reader.start()
    assert asked.wait(DEADLINE_S)

    def let_look(done: int, total: int) -> None:
        go_on.set()
        reader.join(DEADLINE_S)

    store.recover(let_look)
    assert answers == [Unavailable]
    store.close()


class TestOfAnotherTime:
    def copy(self, path: Path, target: Path) -> None:
        """Copy a closed store and its index."""
        target.parent.mkdir()
        shutil.copy(path, target)
        shutil.copytree(index_folder(path), index_folder(target))

    def test_the_log_was_restored_and_the_index_was_not(
        self, open_store: Open, tmp_path: Path, clock: FakeClock
    ) -> None:
        path, saved = tmp_path / "store.db", tmp_path / "saved" / "store.db"
        for kept in (0, 1, 6, 11):
            store = open_store()
            send_until_answered(store, range(kept))
            store.close()
            shutil.rmtree(saved.parent, ignore_errors=True)
            self.copy(path, saved)
            store = open_store()
            for number in range(25):
                publish(store, ("a", f"lost {kept} {number}"))
            store.close()
            assert run_ranges(name.name for name in index_folder(path).iterdir())[-1][1] > kept + 10
            put_back(saved, path)
            clock.advance(1)
            store = open_store()
            assert send(store, range(EVENTS)) == [*duplicate(range(kept)), *stored(range(kept, EVENTS))]
            assert_sound(store, path, EVENTS)
            put_back(saved, path)

    def test_the_index_is_of_a_history_that_is_gone(self, open_store: Open, tmp_path: Path, clock: FakeClock) -> None:
        """The log was restored and went on without the index, which then comes back."""
        path, saved = tmp_path / "store.db", tmp_path / "saved" / "store.db"
        store = open_store()
        send(store, range(6))
        store.close()
        self.copy(path, saved)
        store = open_store()
        for number in range(20):
            publish(store, ("a", f"lost {number}"))
        store.close()
        put_back(saved, path)
        index_folder(path).rename(tmp_path / "elsewhere")
        clock.advance(1)
        store = open_store()
        assert send(store, range(6, EVENTS)) == stored(range(6, EVENTS))
        store.close()
        shutil.rmtree(index_folder(path))
        (tmp_path / "elsewhere").rename(index_folder(path))
        assert_sound(open_store(), path, EVENTS)

    def test_the_index_was_restored_and_the_log_was_not(self, open_store: Open, tmp_path: Path) -> None:
        path, saved = tmp_path / "store.db", tmp_path / "saved" / "store.db"
        store = open_store()
        send(store, range(13))
        store.close()
        self.copy(path, saved)
        store = open_store()
        send(store, range(13, EVENTS))
        store.close()
        shutil.rmtree(index_folder(path))
        shutil.copytree(index_folder(saved), index_folder(path))
        assert_sound(open_store(), path, EVENTS)

    def test_a_backup_with_the_index_of_its_original(self, open_store: Open, tmp_path: Path) -> None:
        path, target = tmp_path / "store.db", tmp_path / "backup.db"
        store = open_store()
        send(store, range(EVENTS // 2))
        backup(path, target, no_progress)
        send(store, range(EVENTS // 2, EVENTS))
        store.close()
        shutil.copytree(index_folder(path), index_folder(target))
        copy = open_store(target)
        new = [publish(copy, ("a", f"new {number}"))[0] for number in range(EVENTS)]
        assert new == stored(range(EVENTS // 2, EVENTS + EVENTS // 2))
        assert_sound(copy, target, EVENTS // 2)
