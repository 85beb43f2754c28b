"""The disk in memory that other tests rely on: what it keeps, loses and refuses."""

import errno
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from sekali.stores.index_files import Files, FolderFiles
from sekali.testing import READING, WRITING, FaultyDisk, Operation, PowerCut
from sekali.testing.disk_file import PAGE_BYTES, SECTOR_BYTES

MakeFiles = Callable[[Path], Files]


@pytest.fixture(params=[lambda _: FaultyDisk(), lambda folder: FolderFiles(folder / "files")], ids=["faulty", "folder"])
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
            files.remove("b")

        whole = FaultyDisk()
        work(whole)
        assert whole.trace == [
            *("names", "create a", "append a", "sync a", "rename b", "open b", "size b", "read b", "remove b")
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
