"""The dedup index as a whole: against a dict, with readers beside it, and while it is being made."""

import threading
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings

from e2e.server import wait_until
from indexes import DEADLINE_S, RUN_KEYS, ListLog, Story, filled, hold, run_ranges, same_hashes, weak_hashes
from sekali.errors import Unavailable
from sekali.stores.dedup import FROZEN_MAX
from sekali.stores.identity import hash_identities
from sekali.stores.index_files import FolderFiles
from sekali.stores.index_run import RunDamaged
from sekali.testing import FaultyDisk

MERGED = 4 * RUN_KEYS  # keys of the smallest merged run

merges_seen: list[bool] = []


STEPS = st.integers(1, 3 * RUN_KEYS) | st.sampled_from(["settle", "recover", "reopen", "delete"])


@given(st.lists(STEPS, max_size=40), st.sampled_from([None, 2, 3]))
@example([2 * RUN_KEYS + 1] * 20, None)
@example([RUN_KEYS] * 20, 2)
@settings(deadline=None, max_examples=80)
def as_in_a_dict(steps: list[int | str], distinct: int | None) -> None:
    files = FaultyDisk()
    with Story(files, hash_identities=same_hashes if distinct is None else weak_hashes(distinct)) as story:
        for step in steps:
            match step:
                case int():
                    story.append(step)
                case "settle":
                    story.index.settle()
                case "recover":
                    story.recover()
                case "reopen":
                    story.reopen()
                case _:
                    files = FaultyDisk()
                    assert story.reopen(files) == story.log.head
            story.assert_exact()
        story.index.settle()
        story.assert_exact()
        merges_seen.append(any(last - first + 1 >= MERGED for first, last in run_ranges(files.names())))


def test_finds_what_a_dict_finds_whatever_happens() -> None:
    merges_seen.clear()
    as_in_a_dict()
    assert merges_seen.count(True) >= 2, "there were no merges"


def test_on_a_real_folder(tmp_path: Path) -> None:
    with Story(FolderFiles(tmp_path / "index")) as story:
        for _ in range(30):
            story.append(3)
        story.index.settle()
        story.assert_exact()
        ranges = run_ranges(story.files.names())
        assert ranges[0][0] == 1 and any(last - first + 1 >= MERGED for first, last in ranges)
        assert story.reopen() < 2 * RUN_KEYS
        story.assert_exact()


def test_a_commit_larger_than_a_table() -> None:
    with Story() as story:
        for count in (1, 5 * RUN_KEYS, 1, RUN_KEYS, 7 * RUN_KEYS, 7 * RUN_KEYS):
            story.append(count)
            story.assert_exact()
        story.append(0)
        story.index.settle()
        story.assert_exact()
        story.reopen()
        story.assert_exact()


def test_starts_with_what_no_run_holds() -> None:
    """A clean start reads nothing of the log but what was in memory."""
    log, contents = filled(10 * RUN_KEYS + 3)
    with Story(FaultyDisk(contents), log) as story:
        assert log.ranges_read == [(run_ranges(contents)[-1][1] + 1, log.head)]
        story.assert_exact()
    empty = Story(FaultyDisk(), ListLog())
    assert empty.recover() == 0
    empty.assert_exact()
    empty.index.close()


def test_commits_and_lookups_do_not_wait_for_a_merge() -> None:
    files = FaultyDisk()
    with Story(files) as story:
        story.append_and_settle(3 * RUN_KEYS + 1)
        held, go_on = hold(files, lambda step: step.startswith(f"append {1:016x}-"))
        story.append(RUN_KEYS)
        assert held.wait(DEADLINE_S)
        assert any(name.endswith(".partial") for name in files.contents())
        for _ in range(FROZEN_MAX - 1):
            story.append(RUN_KEYS)
            story.assert_exact()
        go_on.set()
        story.index.settle()
        story.assert_exact()
        first, last = run_ranges(files.names())[0]
        assert first == 1 and last > 3 * RUN_KEYS


def test_a_full_table_is_written_before_a_merge_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekali.stores.index_merge.SLICE_KEYS", 1)
    files = FaultyDisk()
    with Story(files) as story:
        story.append_and_settle(3 * RUN_KEYS + 1)
        held, go_on = hold(files, lambda step: step.startswith(f"read {1:016x}-"))
        story.append(RUN_KEYS)
        assert held.wait(DEADLINE_S)
        story.append(RUN_KEYS)
        merged, later = (1, 3 * RUN_KEYS + 1), (3 * RUN_KEYS + 2, 4 * RUN_KEYS + 1)
        go_on.set()
        story.index.settle()
        steps = [step.removeprefix("rename ") for step in files.trace if step.startswith("rename")]
        renamed = [run_ranges([step])[0] for step in steps]
        assert renamed.index(later) < renamed.index(merged)
        story.assert_exact()


def test_closing_does_not_wait_for_a_merge_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekali.stores.index_merge.SLICE_KEYS", 1)
    files = FaultyDisk()
    with Story(files) as story:
        story.append_and_settle(3 * RUN_KEYS + 1)
        held, go_on = hold(files, lambda step: step.startswith(f"read {1:016x}-"))
        story.append(RUN_KEYS)
        assert held.wait(DEADLINE_S)
        closing = threading.Thread(target=story.index.close)
        closing.start()
        wait_until(lambda: story.index._closing, "the index is to close")
        go_on.set()
        closing.join(DEADLINE_S)
        assert not closing.is_alive()
        assert run_ranges(files.names()) == [(1, 4), (5, 8), (9, 12), (13, 13)] and len(files.names()) == 4
        story.reopen()
        story.index.settle()
        assert len(files.names()) < 4
        story.assert_exact()


def test_commits_wait_when_too_many_tables_wait() -> None:
    files = FaultyDisk()
    with Story(files) as story:
        held, go_on = hold(files, lambda step: step.startswith("create"))
        for _ in range(FROZEN_MAX + 1):
            story.append(RUN_KEYS)
        assert held.wait(DEADLINE_S)
        waiting = threading.Thread(target=story.append, args=(RUN_KEYS,))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive() and story.log.head == (FROZEN_MAX + 1) * RUN_KEYS
        story.assert_exact()
        go_on.set()
        waiting.join(DEADLINE_S)
        assert not waiting.is_alive() and story.log.head == (FROZEN_MAX + 2) * RUN_KEYS
        story.index.settle()
        story.assert_exact()


def test_readers_miss_nothing_while_tables_are_frozen_written_and_merged() -> None:
    run_keys = 64
    with Story(run_keys=run_keys) as story:
        story.append(1)
        head, stop = 1, threading.Event()
        missed: list[int] = []
        looked: list[int] = []

        def look(reader: int) -> None:
            random = np.random.default_rng(reader)
            while not stop.is_set():
                seqs = random.integers(1, head + 1, 20)
                _, found = story.index.lookup(story.hashes([story.log.event_ids[seq - 1] for seq in seqs]))
                missed.extend(set(seqs.tolist()) - set(found.tolist()))
                looked.append(int(seqs.max()))

        readers = [threading.Thread(target=look, args=(number,)) for number in range(2)]
        for reader in readers:
            reader.start()
        while head < 6000 or len(looked) < 200:
            story.append(50)
            head = story.log.head  # only now: before, it is no answered commit
        stop.set()
        for reader in readers:
            reader.join(DEADLINE_S)
            assert not reader.is_alive()
        assert missed == []
        assert len(set(looked)) > 20, "the readers did not look while keys were added"
        story.index.settle()
        assert len(run_ranges(story.files.names())) < head / run_keys / 2, "there were no merges"


def test_progress_goes_up_to_the_total_and_nothing_is_found_before_that() -> None:
    """What is not there yet must not be taken for what never was."""
    log, _ = filled(10 * RUN_KEYS + 3)
    story = Story(log=log)
    seen: list[tuple[int, int]] = []

    def look(done: int, total: int) -> None:
        seen.append((done, total))
        with pytest.raises(RunDamaged, match="is being made"):
            story.index.lookup(story.hashes(["1"]))

    with pytest.raises(RuntimeError, match="recover comes first"):
        story.hashes(["1"])
    for _ in range(2):
        story.index.recover(log, look)
        story.assert_exact()
    assert seen == [
        *((number * RUN_KEYS, log.head) for number in range(1, 11)),
        (log.head, log.head),
        (3, 3),
    ]
    story.index.close()


def test_a_rebuild_that_is_stopped_goes_on_where_it_was() -> None:
    log, _ = filled(10 * RUN_KEYS + 3)
    story = Story(log=log)

    def stop(done: int, total: int) -> None:
        if done == 6 * RUN_KEYS:
            raise Unavailable

    with pytest.raises(Unavailable):
        story.index.recover(log, stop)
    with pytest.raises(RunDamaged, match="is being made"):
        story.index.lookup(story.hashes(["1"]))
    assert story.reopen() == 4 * RUN_KEYS + 3
    story.assert_exact()
    story.index.close()


class TestKey:
    def test_the_key_is_drawn_once_and_kept(self) -> None:
        files = FaultyDisk()
        with Story(files, hash_identities=hash_identities) as story:
            story.append_and_settle(3 * RUN_KEYS)
            before = story.hashes(story.log.event_ids)
            assert story.reopen() == RUN_KEYS
            assert story.hashes(story.log.event_ids).tolist() == before.tolist()
            story.assert_exact()
            for name in files.names():
                files.remove(name)
            story.recover()
            assert story.index.lookup(before)[1].tolist() != []  # prepared before the recovery, used after it
            assert story.hashes(story.log.event_ids).tolist() == before.tolist()
            story.reopen(FaultyDisk())
            assert not set(story.hashes(story.log.event_ids).tolist()) & set(before.tolist())

    def test_runs_with_another_key_are_dropped(self) -> None:
        """As when folders of two copies of a store were put together."""
        log = ListLog()
        one, two = FaultyDisk(), FaultyDisk()
        with Story(one, log, hash_identities=hash_identities) as story:
            story.append_and_settle(4 * RUN_KEYS - 1)
        with Story(two, log, hash_identities=hash_identities):
            pass
        assert sorted(one.contents()) == sorted(two.contents()) and one.contents() != two.contents()
        first, *others = sorted(one.contents())
        mixed = {first: one.contents()[first]} | {name: two.contents()[name] for name in others}
        log.ranges_read.clear()
        with Story(FaultyDisk(mixed), log, hash_identities=hash_identities) as story:
            assert log.ranges_read[0] == (RUN_KEYS + 1, 2 * RUN_KEYS)
            story.assert_exact()
