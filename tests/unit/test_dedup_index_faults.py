"""The dedup index on a disk that is full, fails, or loses its power while it works."""

import errno
from collections.abc import Callable, Collection
from contextlib import suppress
from itertools import count, pairwise
from unittest.mock import patch

import pytest

from e2e.server import wait_until
from indexes import RUN_KEYS, Story, filled, run_name, run_ranges
from sekali.stores.dedup import FROZEN_MAX
from sekali.stores.index_run import RunDamaged
from sekali.testing import WRITING, FaultyDisk, Operation

EVENTS = 3 * RUN_KEYS + 1  # three runs, and one key in memory: one more run and they are merged


@pytest.fixture(autouse=True)
def retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekali.stores.dedup.RETRY_S", 0.01)


@pytest.fixture
def story() -> Story:
    log, contents = filled(EVENTS)
    story = Story(FaultyDisk(contents), log)
    story.recover()
    return story


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(
    "only", [WRITING, *({one} for one in (Operation.CREATE, Operation.APPEND, Operation.SYNC, Operation.RENAME))]
)
def test_commits_go_on_while_there_is_room_in_memory_and_when_it_is_over(
    story: Story, error: int, only: Collection[Operation]
) -> None:
    runs = run_ranges(story.files.names())
    story.disk.fail(error, only=only, lasting=True, partly=True)
    for _ in range(FROZEN_MAX):
        story.append(RUN_KEYS)
        story.assert_exact()
    with pytest.raises(OSError, match=rf"\[Errno {error}\]"):
        story.append(RUN_KEYS)
    assert story.disk.faults and story.log.head == EVENTS + FROZEN_MAX * RUN_KEYS
    named = [(EVENTS, EVENTS)] if only == {Operation.RENAME} else []  # only that the folder was synced failed
    assert run_ranges(story.disk.contents()) == [*runs, *named]
    story.assert_exact()
    story.disk.heal()
    wait_until(story.settles, "it is written by itself")
    story.append(RUN_KEYS)
    story.index.settle()
    story.assert_exact()
    assert all(name.endswith(".run") for name in story.files.names())
    assert story.reopen() <= RUN_KEYS
    story.assert_exact()
    story.index.close()


def test_a_merge_that_fails_gives_its_room_back_and_is_tried_again(story: Story) -> None:
    merged = run_name(1, EVENTS) + ".partial"
    left: list[list[str]] = []

    def fail_merge(operation: Operation, name: str) -> None:
        if (operation, name) == (Operation.CREATE, merged):
            left.append([other for other in story.disk.contents() if other.endswith(".partial")])
        if (operation, name) == (Operation.SYNC, merged) and len(story.disk.faults) < 3:
            story.disk.fail(errno.ENOSPC, only={Operation.SYNC})

    story.disk.before = fail_merge
    story.append(RUN_KEYS)
    wait_until(story.settles, "it is merged after all, and nothing is left of the fault")
    assert story.disk.faults == [f"sync {merged}"] * 3 and left == [[]] * 4
    assert run_ranges(story.files.names()) == [(1, EVENTS)]
    story.assert_exact()
    story.index.close()


def test_inputs_of_a_merge_that_cannot_be_removed_do_no_harm(story: Story) -> None:
    story.disk.fail(errno.EIO, only={Operation.REMOVE}, lasting=True)
    story.append(RUN_KEYS)
    story.index.settle()
    assert len(story.disk.faults) == 4 and len(run_ranges(story.files.names())) == 5
    story.assert_exact()
    story.disk.heal()
    assert story.reopen() == RUN_KEYS
    assert run_ranges(story.files.names()) == [(1, EVENTS), (EVENTS + 1, EVENTS + RUN_KEYS)]
    story.assert_exact()
    story.index.close()


def test_a_defect_does_not_let_commits_wait_for_ever(story: Story) -> None:
    with patch("sekali.stores.dedup.write_sorted", side_effect=MemoryError("no room for an array")):
        for _ in range(FROZEN_MAX):
            story.append(RUN_KEYS)
        with pytest.raises(OSError, match="no room for an array"):
            story.append(RUN_KEYS)
        story.assert_exact()
    wait_until(story.settles, "it is written by itself")
    story.append(RUN_KEYS)
    story.assert_exact()
    story.index.close()


# What a fault must have met: every operation on a run fresh from memory and on a merged one.
OPERATIONS = ("create", "append", "sync", "rename", "open", "read", "remove")
STEPS = {f"{operation} {of}" for operation in OPERATIONS for of in ("run", "merged")}


class TestEveryStep:
    """A fault at operation 1, 2, 3, … of one piece of work, until it goes through untouched."""

    RUN_KEYS = 200

    @pytest.fixture(autouse=True)
    def merge_often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sekali.stores.index_merge.FANOUT", 2)
        monkeypatch.setattr("sekali.stores.index_merge.SLICE_KEYS", 512)

    def work(self, story: Story, do: Callable[[Callable[[], object]], object]) -> None:
        """Write four runs and merge them three times, the last time in two slices: always in the same steps."""
        do(story.recover)
        for _ in range(5):
            do(lambda: story.append(self.RUN_KEYS))
            do(story.index.settle)
            do(story.assert_whole)

    def kind_of(self, step: str) -> str:
        """Return the operation and whether it was on a run fresh from memory or a merged one."""
        operation, _, name = step.partition(" ")
        if not name:
            return operation
        ((first, last),) = run_ranges([name.removesuffix(".partial")])
        return f"{operation} {'run' if last - first < self.RUN_KEYS else 'merged'}"

    def test_power_is_cut(self) -> None:
        met: set[str] = set()
        for number in count(1):
            story = Story(run_keys=self.RUN_KEYS)
            story.disk.cut_power(at=number)
            with suppress(OSError, RunDamaged):
                self.work(story, lambda step: step())
            story.index.close()
            if not story.disk.faults:
                break
            met.add(self.kind_of(story.disk.faults[0]))
            for keep in (0, 1, 0.5):
                files = story.disk.after_power_cut(seed=number, keep=keep)
                with Story(files, story.log.copy(), run_keys=self.RUN_KEYS) as after:
                    after.assert_whole()
                    after.index.settle()
                    after.assert_whole()
                    ranges = run_ranges(files.names())
                    assert len(ranges) == len(files.names()), "something was left behind"
                    assert all(last + 1 == first for (_, last), (first, _) in pairwise(ranges))
        assert met >= STEPS
        assert story.log.head == 5 * self.RUN_KEYS and run_ranges(story.disk.contents()) == [(1, 4 * self.RUN_KEYS)]

    @pytest.mark.parametrize(("lasting", "partly"), [(False, True), (True, False)])
    def test_an_error(self, lasting: bool, partly: bool) -> None:
        """One operation fails, or all from one on until it was noticed. The index does what it would do in a store."""
        met: set[str] = set()
        for number in count(1):
            story = Story(run_keys=self.RUN_KEYS)
            files = story.disk
            files.fail(errno.EIO, at=number, lasting=lasting, partly=partly)

            def do(step: Callable[[], object], story: Story = story, files: FaultyDisk = files) -> None:
                try:
                    step()
                except (OSError, RunDamaged):
                    files.heal()
                    story.recover()
                    step()

            self.work(story, do)
            if not files.faults:
                break
            met.add(self.kind_of(files.faults[0]))
            files.heal()
            story.reopen()
            story.assert_whole()
            story.index.close()
        assert met >= STEPS
