"""The file of keys: made and changed whole, by one at a time, and watched."""

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sekali import keyfile
from sekali.keyfile import KeyFile, KeyFileFault, KeyRefused, KeyWatch
from sekali.keys import Key, Keyring

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "folder" / "store.db")


def opened_as(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def ids(file: KeyFile) -> list[str]:
    return [key.id for key in file.read() or []]


def test_no_file_is_not_the_same_as_no_keys(file: KeyFile) -> None:
    assert file.read() is None and file.state() is None
    key, _ = file.create("shop", ["read:**"], NOW)
    file.revoke(key.id)
    assert file.read() == []


def test_a_key_is_kept_without_its_secret(file: KeyFile) -> None:
    key, text = file.create("shop", ["publish:shop/**", "read:shop/**"], NOW, NOW + timedelta(days=90))
    assert file.path.name == "store.db.keys"
    kept = file.path.read_text()
    assert text.partition(".")[2] not in kept and text.partition(".")[0] == key.id
    assert json.loads(kept) == [
        {
            "id": key.id,
            "name": "shop",
            "sha256": key.sha256,
            "scopes": ["publish:shop/**", "read:shop/**"],
            "created_at": "2026-11-23T10:00:00Z",
            "expires_at": "2027-02-21T10:00:00Z",
        }
    ]
    assert file.read() == [key]
    assert Keyring([key]).grant(f"Bearer {text}".encode()) is not None


def test_through_a_link_they_are_the_same_keys(file: KeyFile, tmp_path: Path) -> None:
    """Else a server that was started with a link would find no keys, and be open."""
    key, _ = file.create("shop", ["read:**"], NOW)
    file.path.with_suffix("").touch()
    link = tmp_path / "link.db"
    link.symlink_to(file.path.with_suffix(""))
    linked = KeyFile(link)
    assert linked.path == file.path and linked.read() == [key]
    other, _ = linked.create("other", ["read:**"], NOW)
    assert ids(file) == [key.id, other.id]


def test_only_the_owner_may_read_it_whatever_the_mask(file: KeyFile) -> None:
    before = os.umask(0)
    try:
        file.create("shop", ["read:**"], NOW)
        file.create("shop", [], NOW)
    finally:
        os.umask(before)
    for path in file.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_name_has_two_live_keys_so_that_one_can_follow_the_other(file: KeyFile) -> None:
    old, _ = file.create("shop", ["publish:shop/**"], NOW)
    new, _ = file.create("shop", [], NOW)
    assert new.scopes == old.scopes and new.id != old.id
    with pytest.raises(KeyRefused, match=f"{old.id} and {new.id}"):
        file.create("shop", ["read:**"], NOW)
    assert ids(file) == [old.id, new.id]
    other, _ = file.create("other", ["read:**"], NOW)
    assert file.revoke(old.id) == old
    third, _ = file.create("shop", [], NOW)
    assert ids(file) == [new.id, other.id, third.id]


def test_keys_that_have_expired_do_not_count(file: KeyFile) -> None:
    for _ in range(2):
        file.create("shop", ["read:**"], NOW, NOW + timedelta(hours=1))
    later = NOW + timedelta(hours=1)
    with pytest.raises(KeyRefused, match="no live key"):
        file.create("shop", [], later)
    file.create("shop", ["read:a"], later)


def test_scopes_are_kept_once(file: KeyFile) -> None:
    key, _ = file.create("shop", ["read:b", "read:a", "read:b"], NOW)
    assert key.scopes == ("read:b", "read:a")


@pytest.mark.parametrize(
    ("name", "scopes", "named"),
    [
        ("a b", ["read:**"], "not a name"),
        ("bootstrap", ["read:**"], "taken by the server"),
        ("shop", ["read:a b"], "not a scope"),
        ("shop", ["read:**", "everything"], "not a scope"),
        ("shop", [], "no live key"),
        ("shop", [f"read:t{number}" for number in range(101)], "use patterns"),
    ],
)
def test_what_is_refused_changes_nothing(file: KeyFile, name: str, scopes: list[str], named: str) -> None:
    with pytest.raises(KeyRefused, match=named):
        file.create(name, scopes, NOW)
    assert file.read() is None


def test_an_id_that_is_taken_is_not_given_again(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter(["aa.first", "aa.again", "bb.second"])
    monkeypatch.setattr(keyfile, "new_key_text", lambda: next(texts))
    file.create("shop", ["read:**"], NOW)
    file.create("other", ["read:**"], NOW)
    assert ids(file) == ["aa", "bb"]


def test_a_key_that_is_not_there_cannot_be_revoked(file: KeyFile) -> None:
    file.create("shop", ["read:**"], NOW)
    before = file.path.read_bytes(), file.state()
    with pytest.raises(KeyRefused, match="no key with the id"):
        file.revoke("nobody")
    assert (file.path.read_bytes(), file.state()) == before


GOOD = '{"id":"a","name":"n","sha256":"%s","scopes":["read:**"],"created_at":"2026-11-23T10:00:00Z"}' % ("0" * 64)


def changed(part: str, to: str) -> str:
    assert part in GOOD
    return f"[{GOOD.replace(part, to)}]"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[",
        "null",
        "\x00",
        f"[{GOOD}",
        f"[{GOOD},{GOOD}]",
        changed("read:**", "everything"),
        changed('["read:**"]', "[]"),
        changed('"n"', '"a b"'),
        changed('"a"', '""'),
        changed("0" * 64, "0" * 63),
        changed("10:00:00Z", "10:00:00"),
        changed("}", ',"only_on":"mondays"}'),
        "[" * 100_000,
        "[]" + " " * keyfile.FILE_BYTES_MAX,
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused_and_kept(file: KeyFile, text: str) -> None:
    file.path.parent.mkdir()
    file.path.write_text(f"[{GOOD}]")
    file.path.chmod(0o600)
    assert ids(file) == ["a"], "it is the change that is bad"
    file.path.write_text(text)
    with pytest.raises(KeyFileFault, match=r"store\.db\.keys"):
        file.read()
    with pytest.raises(KeyFileFault):
        file.create("shop", ["read:**"], NOW)
    assert file.path.read_text() == text


def test_a_file_that_others_may_write_is_refused(file: KeyFile) -> None:
    file.create("shop", ["read:**"], NOW)
    for mode in (0o620, 0o602):
        file.path.chmod(mode)
        with pytest.raises(KeyFileFault, match="chmod 600"):
            file.read()


def test_a_folder_in_its_place_is_refused(file: KeyFile) -> None:
    file.path.mkdir(parents=True)
    with pytest.raises(KeyFileFault, match="cannot be read"):
        file.read()
    with pytest.raises(KeyFileFault, match="cannot be read"):
        file.create("shop", ["read:**"], NOW)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KeyFileFault, match="cannot be changed"):
        KeyFile(tmp_path / "file" / "store.db").create("shop", ["read:**"], NOW)


def test_a_write_that_fails_leaves_the_old_keys(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is replaced only after what is to take its place is on the disk."""
    key, _ = file.create("shop", ["read:**"], NOW)
    synced: list[Path] = []

    def fail(descriptor: int) -> None:
        synced.append(opened_as(descriptor))
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyFileFault, match="cannot be written: Input/output error"):
        file.revoke(key.id)
    assert synced == [file.path.with_name("store.db.keys.new")]
    monkeypatch.undo()
    assert ids(file) == [key.id]
    file.revoke(key.id)  # what the failure left behind is in nobody's way
    assert ids(file) == []


def test_the_file_and_then_its_folder_are_synced(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.create("shop", ["read:**"], NOW)
    done: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        done.append("sync " + opened_as(descriptor).name)
        real_fsync(descriptor)

    def replace(path: Path, target: Path) -> Path:
        done.append(f"rename {path.name}")
        return real_replace(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    file.create("other", ["read:**"], NOW)
    assert done == ["sync store.db.keys.new", "rename store.db.keys.new", "sync folder"]


def test_many_at_once_lose_no_key(file: KeyFile) -> None:
    made: list[str] = []
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        for turn in range(5):
            made.append(KeyFile(file.path.with_suffix("")).create(f"n{number}-{turn}", ["read:**"], NOW)[0].id)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ids(file)) == sorted(made) and len(made) == 40


def test_processes_take_turns_too(file: KeyFile) -> None:
    code = (
        "import sys; from pathlib import Path; from datetime import datetime, UTC; from sekali.keyfile import KeyFile\n"
        "for turn in range(5):\n"
        "    KeyFile(Path(sys.argv[1])).create(f'{sys.argv[2]}-{turn}', ['read:**'], datetime.now(UTC))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(file.path.with_suffix("")), f"n{number}"])
        for number in range(3)
    ]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert len(ids(file)) == 15


def test_what_root_makes_belongs_to_the_owner_of_the_folder(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the server, which should not be root, could not read it."""
    given: list[tuple[str, int, int]] = []

    def fchown(descriptor: int, user: int, group: int) -> None:
        given.append((opened_as(descriptor).name, user, group))

    monkeypatch.setattr(os, "fchown", fchown)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    file.path.parent.mkdir()
    folder = file.path.parent.stat()
    file.create("shop", ["read:**"], NOW)
    owner = folder.st_uid, folder.st_gid
    assert given == [("store.db.keys.lock", *owner), ("store.db.keys.new", *owner)]


class Watcher:
    """What a watch tells."""

    def __init__(self, file: KeyFile) -> None:
        self.watch = KeyWatch(file)
        self.changes: list[list[str]] = []
        self.faults: list[str] = []

    def look(self) -> None:
        def change(keys: list[Key]) -> None:
            self.changes.append([key.id for key in keys])

        self.watch.look(change, self.faults.append)


def test_a_watch_tells_of_every_change_once(file: KeyFile) -> None:
    watcher = Watcher(file)
    assert watcher.watch.keys is None
    watcher.look()
    assert watcher.changes == []
    key, _ = file.create("shop", ["read:**"], NOW)
    watcher.look()
    watcher.look()
    other, _ = file.create("other", ["read:**"], NOW)
    file.revoke(key.id)
    watcher.look()
    watcher.look()
    file.path.unlink()
    watcher.look()
    watcher.look()
    assert watcher.changes == [[key.id], [other.id], []] and watcher.faults == []


def test_a_watch_begins_with_what_is_there(file: KeyFile) -> None:
    key, _ = file.create("shop", ["read:**"], NOW)
    watcher = Watcher(file)
    assert watcher.watch.keys == [key]
    watcher.look()
    assert watcher.changes == []


def test_a_change_between_the_look_and_the_reading_is_not_missed(
    file: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = file.create("shop", ["read:**"], NOW)
    real_read: Callable[[KeyFile], Any] = KeyFile.read

    def read_and_change(self: KeyFile) -> list[Key] | None:
        found: list[Key] | None = real_read(self)
        monkeypatch.undo()
        self.revoke(key.id)
        return found

    monkeypatch.setattr(KeyFile, "read", read_and_change)
    watcher = Watcher(file)
    assert watcher.watch.keys == [key]
    watcher.look()
    assert watcher.changes == [[]]


def test_a_fault_is_told_once_and_changes_nothing_until_it_is_gone(file: KeyFile) -> None:
    key, _ = file.create("shop", ["read:**"], NOW)
    watcher = Watcher(file)
    good = file.path.read_bytes()
    file.path.write_bytes(good[:-3])
    for _ in range(3):
        watcher.look()
    assert watcher.changes == [] and len(watcher.faults) == 1 and "damaged" in watcher.faults[0]
    file.path.chmod(0o666)
    watcher.look()
    assert watcher.changes == [] and len(watcher.faults) == 2
    file.path.chmod(0o600)
    file.path.write_bytes(good)
    watcher.look()
    assert watcher.changes == [[key.id]] and len(watcher.faults) == 2


def test_a_fault_at_the_start_is_an_error(file: KeyFile) -> None:
    file.path.parent.mkdir()
    file.path.write_text("nonsense")
    with pytest.raises(KeyFileFault):
        KeyWatch(file)
