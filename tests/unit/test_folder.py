"""What is looked at before a store is opened: each refusal is a sentence that says what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from batches import DUPLICATE, STORED, publish
from sekali.errors import DiskFull, StartupError
from sekali.stores import sqlite as sqlite_module
from sekali.stores import sqlite_checkpoint
from sekali.stores.folder import MOUNTS, NETWORK_FILE_SYSTEMS, free_bytes, make_folder, refuse_network_file_system
from sekali.stores.sqlite import SqliteStore
from sekali.testing import FakeClock


def mounts(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "mounts"
    path.write_text("".join(f"{line} rw 0 0\n" for line in ("/dev/vda / ext4", *lines)))
    return path


@pytest.mark.parametrize("kind", sorted(NETWORK_FILE_SYSTEMS))
def test_a_network_file_system_is_refused(kind: str, tmp_path: Path) -> None:
    found = mounts(tmp_path, f"server:/share {tmp_path} {kind}")
    with pytest.raises(StartupError, match=rf"network file system \({kind} at .*choose a DB_PATH on a disk of this"):
        refuse_network_file_system(tmp_path / "data", found)


@pytest.mark.parametrize(
    "lines",
    [
        ["server:/share {}/other nfs"],
        ["server:/share {}/dat nfs"],
        ["server:/share {} nfs", "/dev/vdb {}/data ext4"],
        ["server:/share {} nfs", "/dev/vdb {} ext4"],
    ],
)
def test_a_disk_of_this_machine_is_not(lines: list[str], tmp_path: Path) -> None:
    refuse_network_file_system(tmp_path / "data", mounts(tmp_path, *(line.format(tmp_path) for line in lines)))


def test_a_mount_point_with_a_blank_in_its_name(tmp_path: Path) -> None:
    place = tmp_path / "my files"
    found = mounts(tmp_path, f"server:/share {str(place).replace(' ', chr(92) + '040')} nfs4")
    with pytest.raises(StartupError, match="my files"):
        refuse_network_file_system(place, found)


def test_the_mounts_of_this_machine_can_be_read(tmp_path: Path) -> None:
    assert MOUNTS.exists()
    refuse_network_file_system(tmp_path)
    refuse_network_file_system(tmp_path, tmp_path / "no such file")


def test_the_store_looks_at_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise StartupError(f"{folder} is refused")

    monkeypatch.setattr(sqlite_module, "refuse_network_file_system", refuse)
    with pytest.raises(StartupError, match="is refused"):
        SqliteStore(tmp_path / "store.db", FakeClock(), topics_max=1)
    assert list(tmp_path.iterdir()) == []


class TestRoom:
    def test_free_bytes_are_those_of_the_disk(self, tmp_path: Path) -> None:
        found = os.statvfs(tmp_path)
        assert 0 < free_bytes(tmp_path) <= found.f_blocks * found.f_frsize

    def test_nothing_is_stored_below_the_mark_and_all_goes_on_by_itself(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        room = 10 << 20
        monkeypatch.setattr(sqlite_module, "free_bytes", lambda folder: room)
        monkeypatch.setattr(sqlite_checkpoint, "PAGE_BYTES", 0)  # the log of this store counts for nothing
        store = SqliteStore(tmp_path / "store.db", FakeClock(), topics_max=10, disk_free_bytes_min=10 << 20)
        store.recover()
        assert publish(store, ("a", "1")) == [(STORED, 1)]
        room -= 1
        with pytest.raises(DiskFull, match=r"has 9 MiB left, and 10 MiB are kept free"):
            publish(store, ("a", "2"))
        with pytest.raises(DiskFull):
            store.recover()
        assert store.summary().head == 1
        assert store.gauges()["disk_free_bytes"] == room
        room += 1
        # Without a recovery: nothing was changed.
        assert publish(store, ("a", "2"), ("a", "1")) == [(STORED, 2), (DUPLICATE, 1)]
        store.close()


def test_an_older_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekali.stores.sqlite_file.apsw.SQLITE_VERSION_NUMBER", 3051002)
    with pytest.raises(StartupError, match="can lose transactions; install apsw"):
        SqliteStore(tmp_path / "store.db", FakeClock(), topics_max=1)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db", FakeClock(), topics_max=1)
    code = (
        "import sys; from pathlib import Path; from sekali.stores.folder import FolderLock\n"
        "try: FolderLock(Path(sys.argv[1]))\n"
        "except Exception as error: print(error)"
    )

    def said() -> str:
        command = [sys.executable, "-c", code, str(tmp_path / "store.db")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "is in use by another sekali process; stop it first, or choose another DB_PATH" in said()
    store.close()
    assert said() == ""


def test_a_folder_that_is_made_is_made_durably(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("sekali.stores.folder.sync_file", synced.append)
    make_folder(tmp_path / "a" / "b" / "store.db")
    assert synced == [tmp_path / "a", tmp_path]
    make_folder(tmp_path / "a" / "b" / "store.db")
    assert len(synced) == 2
