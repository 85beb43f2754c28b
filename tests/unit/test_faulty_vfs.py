"""SQLite on the disk that fails. That SQLite keeps its own promises there, and only those, shows that the disk is true:
https://www.sqlite.org/pragma.html#pragma_synchronous
"""

import errno
import itertools
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import apsw
import pytest

from sekali.testing import FaultyDisk, FaultyVfs, Operation, PowerCut

ROWS = 4


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[], Path]:
    """Return a new folder at each call."""
    numbers = itertools.count()

    def make() -> Path:
        path = tmp_path / str(next(numbers))
        path.mkdir()
        return path

    return make


def connect(vfs: FaultyVfs, journal_mode: str = "wal", synchronous: str = "full") -> apsw.Connection:
    connection = apsw.Connection(str(vfs.folder / "a.db"), vfs=vfs.name)
    try:
        connection.pragma("journal_mode", journal_mode)
        connection.pragma("synchronous", synchronous)
        connection.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, text TEXT)")
    except apsw.Error:
        connection.close(True)
        raise
    return connection


def insert(connection: apsw.Connection, rows: int, committed: list[int] | None = None) -> None:
    """Commit rows one by one, each of which takes some pages, and later change them."""
    for number in range(rows):
        with connection:
            connection.execute("INSERT INTO rows VALUES (?, ?)", (number, f"{number}" * 5000))
            connection.execute("UPDATE rows SET text = text || '!'")
        if committed is not None:
            committed.append(number)


def read(connection: apsw.Connection) -> list[int]:
    assert connection.pragma("integrity_check") == "ok"
    return [number for (number,) in connection.execute("SELECT number FROM rows ORDER BY number")]


class TestFiles:
    def test_what_is_on_the_disk_is_in_the_folder(self, folder: Callable[[], Path]) -> None:
        disk = FaultyDisk()
        with FaultyVfs(disk, folder()) as vfs:
            connection = connect(vfs)
            insert(connection, ROWS)
            contents = disk.contents()
            assert contents.keys() == {"a.db", "a.db-wal"}
            assert {name: (vfs.folder / name).read_bytes() for name in contents} == contents
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            assert disk.contents()["a.db-wal"] == b"" == (vfs.folder / "a.db-wal").read_bytes()
            connection.close()
            assert disk.contents().keys() == {"a.db"} == {path.name for path in vfs.folder.iterdir()}
        plain = apsw.Connection(str(vfs.folder / "a.db"))
        assert read(plain) == list(range(ROWS))
        plain.close()

    def test_a_file_of_the_disk_is_there_to_begin_with(self, folder: Callable[[], Path]) -> None:
        disk = FaultyDisk()
        with FaultyVfs(disk, folder()) as vfs:
            connection = connect(vfs)
            insert(connection, ROWS)
            connection.close()
        with FaultyVfs(FaultyDisk(disk.contents()), folder()) as vfs:
            connection = connect(vfs)
            assert read(connection) == list(range(ROWS))
            connection.close()

    def test_several_connections_share_a_write_ahead_log(self, folder: Callable[[], Path]) -> None:
        with FaultyVfs(FaultyDisk(), folder()) as vfs:
            writer, reader = connect(vfs), apsw.Connection(str(vfs.folder / "a.db"), vfs=vfs.name)
            insert(writer, 1)
            assert read(reader) == [0]
            reader.execute("BEGIN; SELECT * FROM rows").fetchall()
            insert_more = writer.execute("INSERT INTO rows VALUES (1, '')")
            assert (read(reader), read(writer), insert_more.fetchall()) == ([0], [0, 1], [])
            reader.close()
            writer.close()

    def test_the_name_is_free_again_afterwards(self, folder: Callable[[], Path]) -> None:
        with FaultyVfs(FaultyDisk(), folder()) as vfs:
            assert vfs.name in apsw.vfs_names()
        assert vfs.name not in apsw.vfs_names()

    def test_temporary_files_are_no_part_of_the_disk(self, folder: Callable[[], Path]) -> None:
        disk = FaultyDisk()
        with FaultyVfs(disk, folder()) as vfs:
            connection = connect(vfs)
            connection.pragma("temp_store", "file")
            connection.execute("CREATE TEMP TABLE t AS SELECT 1; PRAGMA cache_spill = 1; PRAGMA temp.cache_size = 1")
            connection.execute("INSERT INTO t SELECT randomblob(1000) FROM rows, rows, rows")
            connection.close()
        assert disk.contents().keys() == {"a.db"}


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "operation", "expected"),
        [
            (errno.EIO, Operation.OPEN, apsw.CantOpenError),
            (errno.EIO, Operation.NAMES, apsw.IOError),
            (errno.EIO, Operation.READ, apsw.IOError),
            (errno.EIO, Operation.SIZE, apsw.IOError),
            (errno.EIO, Operation.WRITE, apsw.IOError),
            (errno.ENOSPC, Operation.WRITE, apsw.FullError),
            (errno.EIO, Operation.SYNC, apsw.IOError),
            (errno.ENOSPC, Operation.SYNC, apsw.IOError),
            (errno.EIO, Operation.TRUNCATE, apsw.IOError),
        ],
    )
    def test_sqlite_is_told_of_each(
        self, folder: Callable[[], Path], error: int, operation: Operation, expected: type[apsw.Error]
    ) -> None:
        disk = FaultyDisk()
        with FaultyVfs(disk, folder()) as vfs:
            connection = connect(vfs)
            insert(connection, ROWS)
            disk.fail(error, only={operation})
            with pytest.raises(expected):
                other = apsw.Connection(str(vfs.folder / "a.db"), vfs=vfs.name)
                try:
                    other.execute("INSERT INTO rows VALUES (100, '')")
                    other.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                finally:
                    other.close(True)
            assert disk.faults and set(disk.faults[0].split(" ")[:1]) == {operation}
            assert set(read(connection)) - {100} == set(range(ROWS))
            # Linux tells of a sync that failed to each who has the file open, once.
            with pytest.raises(apsw.IOError) if operation is Operation.SYNC else nullcontext():
                connection.close()

    def test_a_file_that_cannot_be_deleted_or_made(self, folder: Callable[[], Path]) -> None:
        disk = FaultyDisk()
        with FaultyVfs(disk, folder()) as vfs:
            connection = connect(vfs, journal_mode="delete")
            for operation in (Operation.CREATE, Operation.REMOVE):
                disk.fail(errno.EIO, only={operation})
                with pytest.raises((apsw.IOError, apsw.CantOpenError)):
                    insert(connection, 1)
                assert len(disk.faults) == 1 + (operation is Operation.REMOVE)
                assert read(connection) == []
            connection.close()

    def test_what_was_read_only_in_part_is_an_error_and_not_the_end_of_the_file(
        self, folder: Callable[[], Path]
    ) -> None:
        disk = FaultyDisk()
        with FaultyVfs(disk, folder()) as vfs:
            connection = connect(vfs)
            insert(connection, ROWS)
            disk.fail(errno.EIO, only={Operation.READ}, partly=True)
            with pytest.raises(apsw.IOError):
                other = apsw.Connection(str(vfs.folder / "a.db"), vfs=vfs.name)
                try:
                    read(other)
                finally:
                    other.close()
            connection.close()

    def test_a_write_in_part_is_in_the_folder_too(self, folder: Callable[[], Path]) -> None:
        disk = FaultyDisk()
        with FaultyVfs(disk, folder()) as vfs:
            connection = connect(vfs)
            before = len(disk.contents()["a.db-wal"])
            disk.fail(errno.ENOSPC, only={Operation.WRITE}, partly=True)
            with pytest.raises(apsw.FullError):
                insert(connection, 1)
            after = disk.contents()["a.db-wal"]
            assert before < len(after) < before + 24 and after == (vfs.folder / "a.db-wal").read_bytes()
            connection.close()


def lost_by_power_cuts(folder: Callable[[], Path], journal_mode: str, synchronous: str, keep: float) -> tuple[int, int]:
    """Cut the power at each operation; return after how many cuts commits were gone, and how often the file was bad."""
    lost = bad = 0
    for number in itertools.count(1):
        disk = FaultyDisk()
        disk.cut_power(at=number)
        committed: list[int] = []
        with FaultyVfs(disk, folder()) as vfs, suppress(apsw.Error):
            connection = connect(vfs, journal_mode, synchronous)
            try:
                insert(connection, ROWS, committed)
            finally:
                connection.close(True)
        if not disk.faults:
            return lost, bad
        with FaultyVfs(disk.after_power_cut(seed=number, keep=keep), folder()) as vfs:
            try:
                connection = connect(vfs, journal_mode, synchronous)
                try:
                    found = read(connection)
                finally:
                    connection.close(True)
            except (apsw.Error, AssertionError):
                bad += 1
                continue
            assert found == list(range(len(found)))
            lost += found[: len(committed)] != committed
    raise AssertionError


@pytest.mark.parametrize("keep", [0, 0.5, 1])
class TestPowerCuts:
    @pytest.mark.parametrize(("journal_mode", "synchronous"), [("wal", "full"), ("delete", "extra")])
    def test_sqlite_keeps_what_it_promised(
        self, folder: Callable[[], Path], journal_mode: str, synchronous: str, keep: float
    ) -> None:
        assert lost_by_power_cuts(folder, journal_mode, synchronous, keep) == (0, 0)

    @pytest.mark.parametrize(("journal_mode", "synchronous"), [("wal", "normal"), ("delete", "full")])
    def test_it_may_lose_commits_and_nothing_else_where_it_says_so(
        self, folder: Callable[[], Path], journal_mode: str, synchronous: str, keep: float
    ) -> None:
        """Without the folder synced behind it a deleted journal can come back, and undo the commit."""
        lost, bad = lost_by_power_cuts(folder, journal_mode, synchronous, keep)
        assert bad == 0 and (lost > 0) == (keep < 1)

    @pytest.mark.parametrize("journal_mode", ["wal", "delete"])
    def test_without_syncs_it_loses_more(self, folder: Callable[[], Path], journal_mode: str, keep: float) -> None:
        lost, bad = lost_by_power_cuts(folder, journal_mode, "off", keep)
        assert (lost + bad > 0) == (keep < 1)
        if journal_mode == "delete" and keep == 0.5:
            assert bad > 0, "files that are half written were never seen"


def test_nothing_can_be_done_after_a_power_cut(folder: Callable[[], Path]) -> None:
    disk = FaultyDisk()
    with FaultyVfs(disk, folder()) as vfs:
        connection = connect(vfs)
        disk.cut_power()
        with pytest.raises(apsw.IOError) as raised:
            insert(connection, 1)
        assert raised.value.__context__ is not None and isinstance(raised.value.__context__.__cause__, PowerCut)
        with suppress(apsw.IOError):
            connection.close()
    assert disk.power_is_cut and len(disk.faults) == 1
