"""Runs of the dedup index that were whole when they were opened, and cannot be read when they are needed."""

import errno
import threading

import pytest

from indexes import DEADLINE_S, RUN_KEYS, Story, filled, hold, run_name, run_ranges
from sekali.stores.dedup import FROZEN_MAX
from sekali.stores.index_run import BLOCK_BYTES, RunDamaged
from sekali.testing import FaultyDisk, Operation

EVENTS = 3 * RUN_KEYS + 1  # three runs, and one key in memory: one more run and they are merged


@pytest.fixture
def story() -> Story:
    log, contents = filled(EVENTS)
    story = Story(FaultyDisk(contents), log)
    story.recover()
    return story


@pytest.mark.parametrize("kind", ["damaged", "error", "short"])
def test_a_lookup_tells_and_drops_the_run(story: Story, kind: str) -> None:
    names = sorted(story.files.names())
    if kind == "damaged":
        story.disk.damage(names[0], 0)
    else:
        story.disk.fail(errno.EIO, only={Operation.READ}, partly=kind == "short")
    with pytest.raises(RunDamaged) as caught:
        story.assert_exact()
    assert caught.value.name == names[0]
    assert sorted(story.files.names()) == names[1:]
    for _ in range(2):
        with pytest.raises(RunDamaged, match=names[0]):
            story.index.lookup(story.hashes(["unknown"]))
    story.recover()
    assert story.log.ranges_read == [(1, RUN_KEYS), (EVENTS, EVENTS)]
    story.assert_exact()
    story.index.close()


def test_a_merge_tells_and_drops_the_run(story: Story) -> None:
    first = min(story.files.names())
    story.disk.damage(first, BLOCK_BYTES - 1)
    story.append(RUN_KEYS)
    with pytest.raises(RunDamaged, match=first):
        story.index.settle()
    with pytest.raises(RunDamaged, match=first):
        story.index.lookup(story.hashes(["unknown"]))
    for _ in range(FROZEN_MAX):
        story.append(RUN_KEYS)
    with pytest.raises(RunDamaged, match=first):  # instead of waiting for a thread that has ended
        story.index.make_room()
    assert first not in story.files.names()
    story.recover()
    assert story.log.ranges_read[0] == (1, RUN_KEYS)
    story.assert_exact()
    story.index.settle()
    assert run_ranges(story.files.names())[0][1] > EVENTS  # merges go on
    story.assert_exact()
    story.index.close()


@pytest.mark.parametrize("merged", [False, True])
def test_a_run_that_cannot_be_read_back_once_written_loses_nothing(story: Story, merged: bool) -> None:
    name = run_name(1 if merged else EVENTS, EVENTS)
    damaged: list[str] = []

    def damage(operation: Operation, opened: str) -> None:
        if (operation, opened) == (Operation.OPEN, name) and not damaged:
            damaged.append(name)
            story.disk.damage(name, BLOCK_BYTES)

    story.disk.before = damage
    story.append(RUN_KEYS)
    with pytest.raises(RunDamaged, match=name):
        story.index.settle()
    assert damaged and name not in story.files.names()
    assert {(1, 4), (5, 8), (9, 12)} <= set(run_ranges(story.files.names()))
    story.recover()
    assert story.log.ranges_read[0][0] == (EVENTS + 1 if merged else EVENTS)
    story.index.settle()
    story.assert_exact()
    story.index.close()


def test_a_table_that_is_written_meanwhile_does_not_make_up_for_it(story: Story) -> None:
    held, go_on = hold(story.disk, lambda step: step.startswith("rename"))
    story.append(RUN_KEYS)
    assert held.wait(DEADLINE_S)
    damaged = min(story.files.names())
    story.disk.damage(damaged, 0)
    with pytest.raises(RunDamaged):
        story.assert_exact()
    go_on.set()
    story.index.close()  # waits for what is being written
    assert (EVENTS, EVENTS) in run_ranges(story.files.names())
    with pytest.raises(RunDamaged, match=damaged):
        story.index.lookup(story.hashes(["unknown"]))
    story.recover()
    story.assert_exact()
    story.index.close()


def test_nor_does_a_write_that_fails(story: Story) -> None:
    held, go_on = hold(story.disk, lambda step: step.startswith("rename"))
    story.append(RUN_KEYS)
    assert held.wait(DEADLINE_S)
    damaged = min(story.files.names())
    story.disk.damage(damaged, 0)
    with pytest.raises(RunDamaged):
        story.assert_exact()
    story.disk.fail(errno.EIO, only={Operation.RENAME})
    go_on.set()
    story.index.close()
    assert len(story.disk.faults) == 1
    with pytest.raises(RunDamaged, match=damaged):
        story.index.lookup(story.hashes(["unknown"]))
    story.recover()
    story.assert_exact()
    story.index.close()


def test_who_finds_it_late_does_not_harm_the_run_that_was_made_again(story: Story) -> None:
    """A reader begins to read a run; until it has read the block, the run has been dropped and made again."""
    name = min(story.files.names())
    held, go_on = hold(story.disk, lambda step: step == f"read {name}", thread="late")
    caught: list[str] = []

    def look() -> None:
        try:
            story.assert_exact()
        except RunDamaged as damage:
            caught.append(str(damage))

    late = threading.Thread(target=look, name="late")
    late.start()
    assert held.wait(DEADLINE_S)
    story.disk.damage(name, 0)
    with pytest.raises(RunDamaged):
        story.assert_exact()
    story.recover()
    assert name in story.files.names()
    go_on.set()
    late.join(DEADLINE_S)
    assert caught == [f"{name}: block 0 is damaged"]
    assert name in story.files.names()
    story.assert_exact()
    story.index.close()
