"""The disk in memory that other tests rely on: what it keeps, loses and refuses."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from sekali.stores.index_files import Files, FolderFiles
from sekali.testing import READING, WRITING, FaultyDisk, Operation, PowerCut
from sekali.testing.disk_file import PAGE_BYTES, SECTOR_BYTES

MakeFiles = Callable[[Path], Files]


@pytest.fixture(
    params=[
        lambda _: FaultyDisk(),
        lambda _: FaultyDisk({"a": b"another", "other/a": b"another"}).folder("folder"),
        lambda folder: FolderFiles(folder / "files"),
    ],
    ids=["disk", "folder of a disk", "real folder"],
)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    make: MakeFiles = request.param
    return make(tmp_path)


def write(files: Files, name: str, *parts: bytes | memoryview, sync: bool = False) -> None:
    file = files.create(name)
    for part in parts:
        file.append(part)
    if sync:
        file.sync()
    file.close()


class TestPort:
    """Both kinds of files do the same as long as nothing fails."""

    def test_files_are_read_as_they_were_written(self, files: Files) -> None:
        assert files.names() == []
        write(files, "a", b"12", memoryview(b"345"), sync=True)
        file = files.open("a")
        assert (file.size(), file.read_at(1, 3), file.read_at(3, 9), file.read_at(9, 1)) == (5, b"234", b"45", b"")
        file.close()
        file.close()

    def test_a_file_is_made_in_the_place_of_another(self, files: Files) -> None:
        write(files, "a", b"12345", sync=True)
        write(files, "a", b"67", sync=True)
        assert files.open("a").read_at(0, 9) == b"67"

    def test_names_change_and_who_has_a_file_open_goes_on_reading(self, files: Files) -> None:
        for name in "abc":
            write(files, name, name.encode())
        a, b = files.open("a"), files.open("b")
        files.rename("a", "b")
        files.remove("c")
        assert files.names() == ["b"]
        assert (a.read_at(0, 9), b.read_at(0, 9), files.open("b").read_at(0, 9)) == (b"a", b"b", b"a")
        files.remove("b")
        assert (files.names(), a.read_at(0, 9)) == ([], b"a")

    def test_what_is_not_there_is_not_found(self, files: Files) -> None:
        for work in (lambda: files.open("a"), lambda: files.remove("a"), lambda: files.rename("a", "b")):
            with pytest.raises(FileNotFoundError):
                work()


class TestFaults:
    def test_every_operation_is_counted_and_can_fail(self) -> None:
        def work(files: FaultyDisk) -> None:
            files.names()
            file = files.create("a")
            file.append(b"1")
            file.sync()
            files.rename("a", "b")
            file = files.open("b")
            file.size()
            file.read_at(0, 1)
            file.write_at(3, b"1")
            file.truncate(2)
            files.exists("b")
            files.remove("b")

        whole = FaultyDisk()
        work(whole)
        assert whole.trace == [
            *("names", "create a", "append a", "sync a", "rename b", "open b", "size b", "read b"),
            *("write b", "truncate b", "names b", "remove b"),
        ]
        for number in range(1, len(whole.trace) + 2):
            files = FaultyDisk()
            files.fail(errno.EIO, at=number)
            try:
                work(files)
            except OSError as error:
                assert error.errno == errno.EIO and not isinstance(error, PowerCut)
                assert files.faults == [whole.trace[number - 1]] == files.trace[-1:]
            else:
                assert number == len(whole.trace) + 1 and files.faults == []

    def test_once_or_until_healed_and_only_what_was_asked(self) -> None:
        files = FaultyDisk({"a": b"1"})
        file = files.open("a")
        files.fail(errno.ENOSPC, only=WRITING)
        assert file.read_at(0, 1) == b"1"
        with pytest.raises(OSError, match="No space left"):
            file.append(b"2")
        file.append(b"3")
        files.fail(errno.EIO, only=READING, lasting=True)
        for _ in range(3):
            with pytest.raises(OSError, match="Input/output"):
                file.read_at(0, 1)
        file.append(b"4")
        files.heal()
        assert file.read_at(0, 9) == b"134"
        assert files.faults == ["append a", *["read a"] * 3]

    def test_partly(self) -> None:
        files = FaultyDisk({"a": b"1234"})
        file = files.open("a")
        files.fail(errno.ENOSPC, only={Operation.APPEND}, partly=True)
        with pytest.raises(OSError, match="No space left"):
            file.append(b"5678")
        assert files.contents() == {"a": b"123456"}
        files.fail(errno.EIO, only={Operation.READ}, partly=True)
        assert (file.read_at(0, 4), file.read_at(0, 4)) == (b"12", b"1234")

    def test_what_fails_has_no_effect(self) -> None:
        files = FaultyDisk({"a": b"1"})
        files.fail(errno.EIO, lasting=True)
        for work in (
            lambda: files.create("a"),
            lambda: files.create("b"),
            lambda: files.rename("a", "c"),
            lambda: files.remove("a"),
        ):
            with pytest.raises(OSError, match="Input/output"):
                work()
        assert files.contents() == {"a": b"1"}

    def test_damage_is_seen_by_who_has_the_file_open(self) -> None:
        files = FaultyDisk({"a": b"1234"})
        file = files.open("a")
        files.damage("a", 2, bits=1)
        assert file.read_at(0, 4) == b"1224" == files.after_power_cut(seed=0, keep=0).contents()["a"]


def found(files: FaultyDisk, tries: int = 200) -> set[tuple[tuple[str, bytes], ...]]:
    """Return all states that power cuts leave."""
    return {tuple(sorted(files.after_power_cut(seed=seed).contents().items())) for seed in range(tries)}


class TestPowerCut:
    def test_everything_fails_after_it(self) -> None:
        files = FaultyDisk({"a": b"1"})
        file = files.open("a")
        files.cut_power(at=3)
        file.size()
        for work in (file.sync, files.names, lambda: file.read_at(0, 1), lambda: files.create("b"), file.size):
            with pytest.raises(PowerCut):
                work()
        files.heal()
        with pytest.raises(PowerCut):
            file.size()
        assert files.faults == ["sync a"]

    def test_what_was_synced_stays_and_names_come_and_go_until_a_rename(self) -> None:
        files = FaultyDisk()
        write(files, "a.partial", b"1", sync=True)
        assert found(files) == {(), (("a.partial", b"1"),)}
        files.rename("a.partial", "a")
        assert found(files) == {(("a", b"1"),)}
        files.remove("a")
        assert found(files) == {(), (("a", b"1"),)}

    def test_a_rename_that_was_cut_has_happened_or_not(self) -> None:
        files = FaultyDisk({"new": b"1", "old": b"2"})
        files.cut_power()
        with pytest.raises(PowerCut):
            files.rename("new", "old")
        assert found(files) == {(("new", b"1"), ("old", b"2")), (("old", b"1"),)}

    def test_of_what_was_not_synced_any_pages_are_there(self) -> None:
        files = FaultyDisk({"a": b"0"})
        file = files.open("a")
        file.append(b"1" * (3 * PAGE_BYTES - 1))
        for seed in range(20):
            assert files.after_power_cut(seed=seed, keep=0).contents() == {"a": b"0"}
            assert files.after_power_cut(seed=seed, keep=1).contents() == files.contents()
        states = [state["a"] for state in (files.after_power_cut(seed=seed).contents() for seed in range(500))]
        whole = [state for state in states if len(state) == 3 * PAGE_BYTES]
        pages = {
            tuple(state[at : at + PAGE_BYTES].count(b"1") for at in range(0, len(state), PAGE_BYTES)) for state in whole
        }
        assert {(0, PAGE_BYTES, 0), (PAGE_BYTES - 1, 0, PAGE_BYTES), (PAGE_BYTES - 1, 0, 0)} <= pages
        torn = {page % SECTOR_BYTES for state in pages for page in state[1:] if 0 < page < PAGE_BYTES}
        assert torn == {0}
        assert {1, 3 * PAGE_BYTES} < {len(state) for state in states}
        assert all(state[:1] == b"0" for state in states)
        file.sync()
        assert len(found(files)) == 1

    def test_overwriting_by_create_can_be_undone(self) -> None:
        files = FaultyDisk({"a": b"11"})
        write(files, "a", b"2")
        assert {(("a", b"11"),), (("a", b"2"),)} <= found(files)
        files.open("a").sync()
        assert found(files) == {(("a", b"2"),)}

    def test_after_a_failed_sync_a_good_one_means_nothing(self) -> None:
        files = FaultyDisk({"a": b""})
        file = files.open("a")
        file.append(b"1" * PAGE_BYTES)
        files.fail(errno.EIO, only={Operation.SYNC})
        with pytest.raises(OSError, match="Input/output"):
            file.sync()
        file.append(b"2" * PAGE_BYTES)
        file.sync()
        assert files.after_power_cut(seed=1, keep=0).contents()["a"] == bytes(PAGE_BYTES) + b"2" * PAGE_BYTES

    @given(st.integers(0, 2**32), st.floats(0, 1), st.lists(st.integers(1, 9000), max_size=4), st.integers(0, 4))
    @settings(deadline=None, max_examples=50)
    def test_nothing_else_is_ever_found(self, seed: int, keep: float, sizes: list[int], synced: int) -> None:
        files = FaultyDisk({"a": b""})
        file = files.open("a")
        durable = b""
        for number, size in enumerate(sizes):
            file.append(bytes([number + 1]) * size)
            if number + 1 == synced:
                file.sync()
                durable = files.contents()["a"]
        written = files.contents()["a"]
        state = files.after_power_cut(seed=seed, keep=keep).contents()["a"]
        assert len(durable) <= len(state) <= len(written) and state.startswith(durable)
        assert all(byte in {0, written[place]} for place, byte in enumerate(state))
        assert state == files.after_power_cut(seed=seed, keep=keep).contents()["a"]


class TestFailedSyncs:
    def test_who_has_the_file_open_meets_the_error_once(self) -> None:
        disk = FaultyDisk({"a": b""})
        one, other = disk.open("a"), disk.open("a")
        disk.fail(errno.EIO, only={Operation.SYNC})
        for file in (one, other):
            with pytest.raises(OSError, match=r"\[Errno 5\]"):
                file.sync()
        assert len(disk.faults) == 1
        for file in (one, other, disk.open("a")):
            file.sync()

    def test_the_next_process_finds_what_is_not_on_the_disk(self) -> None:
        disk = FaultyDisk({"a": b""})
        file = disk.open("a")
        file.append(b"1" * PAGE_BYTES)
        disk.fail(errno.EIO, only={Operation.SYNC})
        with pytest.raises(OSError, match="Input/output"):
            file.sync()
        file.append(b"2")
        disk.create("b")
        disk.cut_power()
        with pytest.raises(PowerCut):
            file.size()
        after = disk.after_kill()
        again = after.open("a")
        assert again.read_at(0, 9999) == b"1" * PAGE_BYTES + b"2" and after.names() == ["a", "b"]
        again.sync()
        assert after.after_power_cut(seed=0, keep=0).contents() == {"a": bytes(PAGE_BYTES) + b"2"}
        again.write_at(0, again.read_at(0, PAGE_BYTES))  # the same bytes once more
        again.sync()
        assert after.after_power_cut(seed=0, keep=0).contents() == {"a": b"1" * PAGE_BYTES + b"2"}

    def test_what_happens_after_a_kill_changes_nothing_before_it(self) -> None:
        disk = FaultyDisk({"a": b"1"})
        disk.open("a").append(b"2")
        after = disk.after_kill()
        after.open("a").append(b"3")
        after.open("a").sync()
        after.rename("a", "b")
        assert disk.contents() == {"a": b"12"} and disk.after_power_cut(seed=0, keep=0).contents() == {"a": b"1"}


class TestWritingAnywhere:
    @given(st.lists(st.tuples(st.integers(0, 9000), st.binary(min_size=1, max_size=20) | st.none()), max_size=8))
    @settings(deadline=None, max_examples=50)
    def test_as_a_real_file_does(self, steps: list[tuple[int, bytes | None]]) -> None:
        file = FaultyDisk({"a": b""}).open("a")
        with tempfile.TemporaryFile() as real:
            for place, data in steps:
                if data is None:
                    file.truncate(place)
                    real.truncate(place)
                else:
                    file.write_at(place, data)
                    os.pwrite(real.fileno(), data, place)
                assert file.seen() == os.pread(real.fileno(), 20_000, 0) and file.size() == len(file.seen())

    def test_a_page_may_be_what_it_was_at_any_time_since_the_sync(self) -> None:
        disk = FaultyDisk({"a": b"0"})
        file = disk.open("a")
        for value in b"123":
            file.write_at(0, bytes([value]))
        assert found(disk) == {(("a", value),) for value in (b"0", b"1", b"2", b"3")}
        file.sync()
        file.truncate(0)
        assert found(disk) == {(("a", b"3"),), (("a", b""),), (("a", b"\0"),)}

    def test_what_was_cut_off_and_written_again_is_synced_as_it_is(self) -> None:
        disk = FaultyDisk({"a": b"1" * 3 * PAGE_BYTES})
        file = disk.open("a")
        file.truncate(1)
        file.write_at(2 * PAGE_BYTES, b"2")
        file.sync()
        whole = b"1" + bytes(2 * PAGE_BYTES - 1) + b"2"
        assert disk.after_power_cut(seed=0, keep=0).contents() == {"a": whole} == disk.contents()


class TestFolders:
    def test_each_is_listed_and_synced_on_its_own(self) -> None:
        disk = FaultyDisk()
        one, other = disk.folder("one"), disk.folder("other")
        for files in (disk, one, other):
            write(files, "a.new", b"1", sync=True)
        one.rename("a.new", "a")
        assert (disk.names(), one.names(), other.names()) == (["a.new"], ["a"], ["a.new"])
        assert disk.after_power_cut(seed=0, keep=0).contents() == {"one/a": b"1"}
        assert disk.trace[-4:] == ["rename one/a", "names", "names one/", "names other/"]

    def test_the_first_sync_of_a_new_file_may_sync_its_name(self) -> None:
        disk = FaultyDisk()
        disk.create("b")
        file = disk.create("a")
        file.append(b"1")
        disk.fail(errno.EIO, only={Operation.SYNC}, partly=True)
        with pytest.raises(OSError, match="Input/output"):
            file.sync(with_name=True)  # the file is synced, and its name is not
        assert found(disk) == {(), (("a", b"1"),), (("b", b""),), (("a", b"1"), ("b", b""))}
        file.sync(with_name=True)
        assert found(disk) == {(("a", b"1"), ("b", b""))}

    def test_to_remove_may_sync_the_folder(self) -> None:
        disk = FaultyDisk({"a": b"1"})
        disk.fail(errno.EIO, only={Operation.REMOVE}, partly=True)
        with pytest.raises(OSError, match="Input/output"):
            disk.remove("a", sync=True)
        assert disk.contents() == {} and len(found(disk)) == 2
        disk = FaultyDisk({"a": b"1"})
        disk.remove("a", sync=True)
        assert found(disk) == {()}

    def test_a_rename_in_part_has_happened_and_is_not_synced(self) -> None:
        disk = FaultyDisk({"new": b"1", "old": b"2"})
        disk.fail(errno.EIO, only={Operation.RENAME}, partly=True)
        with pytest.raises(OSError, match="Input/output"):
            disk.rename("new", "old")
        assert disk.contents() == {"old": b"1"}
        both = {(("new", b"1"), ("old", b"2")), (("old", b"1"),)}
        assert found(disk) == both == found(disk.after_kill())


def test_a_disk_that_lies_keeps_nothing() -> None:
    disk = FaultyDisk({"a": b"1"}, lies=True)
    file = disk.open("a")
    file.append(b"2")
    file.sync()
    write(disk, "b", b"3", sync=True)
    disk.rename("b", "c")
    assert disk.contents() == {"a": b"12", "c": b"3"}
    after = disk.after_power_cut(seed=0, keep=0)
    assert after.contents() == {"a": b"1"}
    after.open("a").append(b"2")
    after.open("a").sync()
    assert after.after_power_cut(seed=0, keep=0).contents() == {"a": b"1"}
