"""Copies of a store, made while it is written to, and put in its place."""

import shutil
from pathlib import Path

import apsw
import pytest

from batches import CONFLICT, DUPLICATE, STORED, publish
from sekali.delivery import Create, DeadLetter, Definition, Forget, LaneState, Open, Progress, Subscription
from sekali.errors import StartupError, StoreBroken
from sekali.ports import no_progress
from sekali.stores.high_water import mark_name
from sekali.stores.sqlite import SqliteStore
from sekali.stores.sqlite_audit import audit
from sekali.stores.sqlite_backup import backup, restore
from sekali.testing import FakeClock


def open_store(path: Path) -> SqliteStore:
    store = SqliteStore(path, FakeClock(), topics_max=100)
    store.recover()
    return store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed store with three events, one duplicate and one conflict."""
    path = tmp_path / "folder" / "store.db"
    store = open_store(path)
    publish(store, ("a", "1", b'{"n":1}', "host"), ("a", "2", b"2"), ("b", "1", b"3"))
    publish(store, ("a", "1", b'{"n":1}', "host"), ("a", "2", b"9"))
    store.close()
    return path


@pytest.fixture
def copy(path: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy.db"
    backup(path, copy, no_progress)
    return copy


class TestBackup:
    def test_a_copy_made_while_writing_is_whole_and_begins_a_log_of_its_own(self, path: Path, tmp_path: Path) -> None:
        store = open_store(path)
        target = tmp_path / "copy.db"
        publish(store, ("a", "3"))
        assert backup(path, target, no_progress) == target.stat().st_size
        publish(store, ("a", "4"))
        log_id = store.summary().log_id
        store.close()
        assert sorted(file.name for file in tmp_path.iterdir()) == ["copy.db", "folder"]
        copy = open_store(target)
        assert copy.summary().log_id not in {"", log_id}
        assert publish(copy, ("a", "1", b'{"n":1.0}', "host"), ("a", "3"), ("a", "2", b"7"), ("a", "4")) == [
            (DUPLICATE, 1),
            (DUPLICATE, 4),
            (CONFLICT, 2),
            (STORED, 5),
        ]
        kept = copy.summary().log_id
        copy.close()
        reopened = open_store(target)
        assert reopened.summary().log_id == kept
        reopened.close()
        assert audit(target, no_progress).ok

    def test_subscriptions_are_of_the_same_moment_as_the_events(self, path: Path, tmp_path: Path) -> None:
        """What was acknowledged after the copy was made is not, in the log that the copy begins."""
        store = open_store(path)
        made = Subscription("s", Definition("**", "earliest"), 0, 5)
        dead = DeadLetter(2, "a", 3, "no", 9)
        store.commit([store.prepare_changes([Create(made), Progress("s", [LaneState("a", 2, (Open(1, 1),))], [dead])])])
        before = store.pending("s"), store.dead_letters("s", 0, 9), store.subscriptions()
        copy = tmp_path / "copy.db"
        backup(path, copy, no_progress)
        store.commit([store.prepare_changes([Progress("s", [LaneState("a", 2), LaneState("b", 3)]), Forget("s")])])
        assert store.pending("s") == (3, [])
        store.close()
        again = tmp_path / "again" / "store.db"
        restore(copy, again, no_progress)
        restored = open_store(again)
        assert (restored.pending("s"), restored.dead_letters("s", 0, 9), restored.subscriptions()) == before
        restored.close()
        assert audit(again, no_progress).ok

    def test_nothing_is_overwritten_and_nothing_is_left_behind(self, path: Path, tmp_path: Path) -> None:
        target = tmp_path / "copy.db"
        target.write_text("precious")
        with pytest.raises(StoreBroken, match="exists already"):
            backup(path, target, no_progress)
        assert target.read_text() == "precious"
        with pytest.raises(StoreBroken, match="no store"):
            backup(tmp_path / "nothing.db", tmp_path / "copy2.db", no_progress)
        with pytest.raises(StoreBroken, match="cannot back up"):
            backup(path, tmp_path / "no-folder" / "copy.db", no_progress)
        assert not (tmp_path / "copy2.db").exists()


class TestRestore:
    def test_dedup_goes_on_and_the_log_is_another_one(self, path: Path, copy: Path) -> None:
        store = open_store(path)
        log_id = store.summary().log_id
        publish(store, ("a", "lost"), ("c", "lost"))
        store.close()
        seen: list[tuple[int, int]] = []
        size = restore(copy, path, lambda done, total: seen.append((done, total)), replace=True)
        assert size == path.stat().st_size and seen == [(3, 3)]
        store = open_store(path)
        assert store.summary().log_id not in {"", log_id}
        assert publish(store, ("a", "1", b'{"n":1}', "host"), ("a", "lost"), ("a", "2", b"7")) == [
            (DUPLICATE, 1),
            (STORED, 4),
            (CONFLICT, 2),
        ]
        store.close()
        assert sorted(file.name for file in path.parent.iterdir() if file.is_file()) == [
            "store.db",
            "store.db.lock",
            "store.db.mark",
        ]
        assert audit(path, no_progress).ok
        assert copy.exists()

    def test_each_restore_begins_another_log(self, path: Path, copy: Path) -> None:
        log_ids = set()
        for _ in range(3):
            restore(copy, path, no_progress, replace=True)
            store = open_store(path)
            log_ids.add(store.summary().log_id)
            store.close()
        assert len(log_ids) == 3

    def test_to_where_nothing_is(self, copy: Path, tmp_path: Path) -> None:
        target = tmp_path / "new" / "store.db"
        restore(copy, target, no_progress)
        store = open_store(target)
        assert store.summary().head == 3
        store.close()

    def test_an_old_write_ahead_log_is_not_left_beside_it(self, path: Path, copy: Path, tmp_path: Path) -> None:
        """To SQLite it would be a part of the file that was put there."""
        store = open_store(path)
        for number in range(50):
            publish(store, ("a", f"lost {number}"))
        killed = tmp_path / "killed" / "store.db"
        killed.parent.mkdir()
        for ending in ("", "-wal"):
            shutil.copy(path.with_name(path.name + ending), killed.with_name(killed.name + ending))
        store.close()
        assert killed.with_name("store.db-wal").stat().st_size > 0
        restore(copy, killed, no_progress, replace=True)
        assert not killed.with_name("store.db-wal").exists()
        store = open_store(killed)
        assert store.summary().head == 3
        store.close()
        assert audit(killed, no_progress).ok

    def test_interrupted_before_the_last_step_the_store_is_refused_and_not_half_old(
        self, path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_store(path)
        publish(store, ("a", "new"))
        shutil.copy(path, path.with_name("behind"))
        shutil.copy(path.with_name("store.db-wal"), path.with_name("wal"))
        store.close()
        shutil.copy(path.with_name("behind"), path)  # as a kill leaves it: the last event is in the log only
        shutil.copy(path.with_name("wal"), path.with_name("store.db-wal"))

        def fail(self: Path, target: Path) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", fail)
            with pytest.raises(StoreBroken, match="cannot restore"):
                restore(copy, path, no_progress, replace=True)
        with pytest.raises(StartupError, match="has lost its end"):
            open_store(path)
        restore(copy, path, no_progress, replace=True)
        store = open_store(path)
        assert store.summary().head == 3
        store.close()

    def test_what_is_refused(self, path: Path, copy: Path, tmp_path: Path) -> None:
        before = path.read_bytes()
        with pytest.raises(StoreBroken, match="add --replace"):
            restore(copy, path, no_progress)
        with pytest.raises(StoreBroken, match="there is no file"):
            restore(tmp_path / "nothing", path, no_progress, replace=True)
        raw = Path(shutil.copy(path, tmp_path / "raw.db"))
        with pytest.raises(StoreBroken, match="was not made by sekali backup"):
            restore(raw, path, no_progress, replace=True)
        (tmp_path / "text").write_text("no database" * 100)
        with pytest.raises(StoreBroken, match="cannot restore"):
            restore(tmp_path / "text", path, no_progress, replace=True)
        connection = apsw.Connection(str(copy))
        connection.execute("UPDATE events SET payload = x'31' WHERE seq = 1")
        connection.close()
        with pytest.raises(StoreBroken, match=r"is damaged; this does not hold: every event .*seq 1: the checksum"):
            restore(copy, path, no_progress, replace=True)
        store = open_store(path)
        with pytest.raises(StartupError, match="in use by another sekali process"):
            restore(copy, path, no_progress, replace=True)
        store.close()
        assert path.read_bytes() == before
        assert not list(path.parent.glob("*.partial*"))


def test_a_damaged_store_makes_no_backup(path: Path, tmp_path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE events SET timestamp_ns = 7 WHERE seq = 2")
    connection.close()
    with pytest.raises(StoreBroken, match=r"seq 2: the checksum does not fit"):
        backup(path, tmp_path / "copy.db", no_progress)
    assert not list(tmp_path.glob("copy*"))
    assert mark_name(path) == "store.db.mark"
