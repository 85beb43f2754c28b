"""The mark outside the log: a log that lost its end is noticed, refused, and opened only on demand."""

import errno
import shutil
from pathlib import Path

import pytest

from batches import DUPLICATE, STORED, publish
from sekali.errors import CommitUnknown, StartupError, StoreBroken
from sekali.ports import no_progress
from sekali.stores.high_water import HighWaterMark, Mark, MarkDamaged, mark_name
from sekali.stores.sqlite import SqliteStore
from sekali.stores.sqlite_audit import audit
from sekali.testing import FakeClock, FaultyDisk, Operation


def open_store(path: Path, *, accept_lost_tail: bool = False) -> SqliteStore:
    store = SqliteStore(path, FakeClock(), topics_max=100, accept_lost_tail=accept_lost_tail)
    store.recover()
    return store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def saved(path: Path) -> Path:
    """Copy what is there now, as somebody would who does not know of the other files."""
    copy = path.with_name("saved.db")
    shutil.copy(path, copy)
    return copy


def wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def kill(store: SqliteStore, path: Path, target: Path) -> None:
    """Copy all files of an open store elsewhere, as a killed process leaves them, with the mark written."""
    store._high_water.close()
    for ending in ("", "-wal", ".mark"):
        shutil.copy(path.with_name(path.name + ending), target.with_name(target.name + ending))
    store.close()


class TestMark:
    def test_it_is_read_back(self) -> None:
        files = FaultyDisk()
        water = HighWaterMark(files, "x.mark")
        assert water.read() is None
        water.advance(Mark("log", 3, 5))
        water.close()
        assert HighWaterMark(files, "x.mark").read() == Mark("log", 3, 5)
        assert list(files.contents()) == ["x.mark"]

    def test_it_is_written_once_a_second_at_most_and_at_the_end(self) -> None:
        files = FaultyDisk()
        water = HighWaterMark(files, "x.mark", interval_s=3600)
        for number in range(1, 1001):
            water.advance(Mark("log", number, number))
        water.close()
        assert water.read() == Mark("log", 1000, 1000)
        assert 1 <= files.trace.count("sync x.mark.new") <= 2

    def test_every_flipped_bit_of_it_is_noticed(self) -> None:
        files = FaultyDisk()
        water = HighWaterMark(files, "x.mark")
        water.advance(Mark("log", 3, 5))
        water.close()
        size = len(files.contents()["x.mark"])
        for bit in range(8 * size):
            files.damage("x.mark", bit // 8, 1 << bit % 8)
            with pytest.raises(MarkDamaged):
                water.read()
            files.damage("x.mark", bit // 8, 1 << bit % 8)
        assert water.read() == Mark("log", 3, 5)

    def test_a_read_that_gives_a_part_is_made_again(self) -> None:
        files = FaultyDisk()
        water = HighWaterMark(files, "x.mark")
        water.advance(Mark("log", 3, 5))
        water.close()
        files.fail(errno.EIO, only=[Operation.READ], at=1, partly=True)
        assert water.read() == Mark("log", 3, 5)
        assert files.faults == ["read x.mark"]

    def test_a_power_cut_leaves_the_old_one_or_the_new_one(self) -> None:
        seen = set()
        for number in range(1, 20):
            files = FaultyDisk()
            first = HighWaterMark(files, "x.mark")
            first.advance(Mark("log", 1, 1))
            first.close()
            files.cut_power(at=len(files.trace) + number)
            second = HighWaterMark(files, "x.mark", interval_s=0)
            second.advance(Mark("log", 2, 2))
            second.close()
            if not files.faults:
                break
            for seed in range(5):
                mark = HighWaterMark(files.after_power_cut(seed=seed), "x.mark").read()
                assert mark in (Mark("log", 1, 1), Mark("log", 2, 2)), (number, seed)
                seen.add(mark)
        assert len(seen) == 2

    def test_what_cannot_be_written_is_tried_again(self) -> None:
        files = FaultyDisk()
        files.fail(errno.ENOSPC, only=[Operation.APPEND], at=1)
        water = HighWaterMark(files, "x.mark", interval_s=0)
        water.advance(Mark("log", 3, 5))
        water.close()
        assert files.faults == ["append x.mark.new"]
        assert water.read() == Mark("log", 3, 5)

    @pytest.mark.parametrize(
        ("found", "missing"),
        [
            (Mark("log", 3, 5), None),
            (Mark("log", 4, 6), None),
            (Mark("other", 0, 0), None),
            (Mark("log", 1, 3), "the log ends at seq 1, and had come to seq 3: 2 events"),
            (Mark("log", 3, 4), "the log counts 4 items, and had counted 5"),
        ],
    )
    def test_what_is_missing(self, found: Mark, missing: str | None) -> None:
        assert Mark("log", 3, 5).missing_in(found) == missing


def test_the_end_of_a_store_that_was_stopped_or_killed_is_there(path: Path, tmp_path: Path) -> None:
    store = open_store(path)
    publish(store, ("a", "1"), ("a", "1"))
    store.close()
    store = open_store(path)
    publish(store, ("a", "2"))
    killed = tmp_path / "killed.db"
    kill(store, path, killed)
    for one in (path, killed):
        store = open_store(one)
        assert publish(store, ("a", "1"), ("a", "2"), ("a", "3")) == [(DUPLICATE, 1), (DUPLICATE, 2), (STORED, 3)]
        store.close()


def test_a_flipped_bit_in_the_write_ahead_log_is_noticed(path: Path, tmp_path: Path) -> None:
    """SQLite takes what comes before the flip for all there is, and finds nothing wrong with it."""
    store = open_store(path)
    for number in range(20):
        publish(store, ("a", str(number)))
    killed = tmp_path / "killed.db"
    kill(store, path, killed)
    log = bytearray(wal(killed).read_bytes())
    log[len(log) // 2] ^= 1
    wal(killed).write_bytes(log)
    with pytest.raises(StartupError, match=r"had come to seq 20.*restore a backup.*--accept-lost-tail"):
        open_store(killed)
    store = open_store(killed, accept_lost_tail=True)
    assert 0 < store.summary().head < 20
    store.close()


def test_a_file_without_its_write_ahead_log_is_noticed(path: Path, tmp_path: Path) -> None:
    store = open_store(path)
    publish(store, ("a", "1"))
    store.close()
    store = open_store(path)
    publish(store, ("a", "2"))
    killed = tmp_path / "killed.db"
    kill(store, path, killed)
    wal(killed).unlink()
    with pytest.raises(StartupError, match="ends at seq 1, and had come to seq 2"):
        open_store(killed)
    report = audit(killed, no_progress)
    assert [check.name for check in report.checks if not check.ok] == [
        "the log holds all that its high-water mark tells of"
    ]


@pytest.mark.parametrize("left", ["nothing", "empty"])
def test_a_store_that_is_gone_is_not_made_anew_in_silence(path: Path, tmp_path: Path, left: str) -> None:
    store = open_store(path)
    publish(store, ("a", "1"))
    killed = tmp_path / "killed.db"
    kill(store, path, killed)
    if left == "nothing":
        killed.unlink()
    else:
        killed.write_bytes(b"")
    wal(killed).unlink()
    with pytest.raises(StartupError, match=r"there is no store at .*killed\.db, and there was one.*put the file"):
        open_store(killed)
    store = open_store(killed, accept_lost_tail=True)
    assert publish(store, ("a", "1")) == [(STORED, 1)]
    store.close()
    open_store(killed).close()


def test_with_its_end_given_up_a_log_is_another_log_and_only_once(path: Path) -> None:
    """Seqs are given out again, so that a position of the old log may not be taken for one of the new."""
    store = open_store(path)
    publish(store, ("a", "1"))
    store.close()
    older = saved(path)
    store = open_store(path)
    log_id = store.summary().log_id
    publish(store, ("a", "2"))
    store.close()
    shutil.copy(older, path)
    with pytest.raises(StartupError):
        open_store(path)
    store = open_store(path, accept_lost_tail=True)
    assert store.summary().log_id != log_id
    assert publish(store, ("a", "1"), ("a", "new")) == [(DUPLICATE, 1), (STORED, 2)]
    store.close()
    open_store(path).close()


def test_lost_duplicates_are_noticed_too(path: Path) -> None:
    store = open_store(path)
    publish(store, ("a", "1"))
    store.close()
    older = saved(path)
    store = open_store(path)
    publish(store, ("a", "1"))
    store.close()
    shutil.copy(older, path)
    with pytest.raises(StartupError, match="counts 1 items, and had counted 2"):
        open_store(path)


def test_a_damaged_mark_is_no_reason_to_look_away(path: Path) -> None:
    store = open_store(path)
    publish(store, ("a", "1"))
    store.close()
    mark = path.with_name(mark_name(path))
    mark.write_bytes(mark.read_bytes()[:-1] + b"!")
    with pytest.raises(StartupError, match=r"store\.db\.mark .*damaged.*sekali verify.*--accept-lost-tail"):
        open_store(path)
    assert [check.name for check in audit(path, no_progress).checks if not check.ok] == [
        "the log holds all that its high-water mark tells of"
    ]
    store = open_store(path, accept_lost_tail=True)
    assert publish(store, ("a", "1")) == [(DUPLICATE, 1)]
    store.close()
    open_store(path).close()


def test_the_end_may_also_be_lost_while_the_server_runs(path: Path, tmp_path: Path) -> None:
    store = open_store(path)
    publish(store, ("a", "1"))
    store.recover()
    older = saved(path)
    publish(store, ("a", "2"))
    store._close_writer()
    with pytest.raises(CommitUnknown):
        store.commit([])
    other = tmp_path / "other.db"
    open_store(other).close()
    for found, reason in (
        (older, "lost its end: the log ends at seq 1, and had come to seq 2"),
        (other, "replaced by another store"),
    ):
        shutil.copy(found, path)
        with pytest.raises(StoreBroken, match=reason):
            store.recover()
        store._close_writer()
    path.unlink()
    with pytest.raises(StartupError, match="no store at"):
        store.recover()
    store.close()
