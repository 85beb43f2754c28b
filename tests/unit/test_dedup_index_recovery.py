"""What the dedup index makes of the files it finds: missing, cut off, changed, of another time, of another log."""

from collections.abc import Iterator
from unittest.mock import patch

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from indexes import LOG_ID, RUN_KEYS, ListLog, Story, filled, run_ranges
from sekali.stores.index_run import BLOCK_BYTES, BLOCK_KEYS, FILTER_BITS_PER_KEY, TRAILER_BYTES, RunDamaged
from sekali.testing import FaultyDisk

Contents = dict[str, bytes]
LARGE_RUN_KEYS = 300  # more than a block holds


@pytest.fixture(scope="module", autouse=True)
def same_key() -> Iterator[None]:
    """Let indexes draw the same key, so that the files of one can be put among those of another."""
    with patch("secrets.randbits", return_value=7):
        yield


@pytest.fixture(scope="module")
def settled() -> tuple[ListLog, Contents]:
    """A log and the files of its index, with a merged run, runs that are not, and keys that only memory held."""
    log, contents = filled(7 * RUN_KEYS + 2)
    assert run_ranges(contents) == [(1, 16), (17, 20), (21, 24), (25, 28)]
    return log, contents


@pytest.fixture(scope="module")
def one_run() -> tuple[ListLog, str, bytes]:
    """A log and the one file of its index, all of whose keys are in it."""
    files = FaultyDisk()
    with Story(files, run_keys=LARGE_RUN_KEYS) as story:
        story.append(LARGE_RUN_KEYS)
        story.append(1)
        story.index.settle()
    story.log.cut_back(LARGE_RUN_KEYS)
    ((name, data),) = files.contents().items()
    return story.log, name, data


def regions(keys: int, size: int) -> dict[str, range]:
    """Return where the parts of a run are."""
    blocks = -(-keys // BLOCK_KEYS)
    words = -(-keys * FILTER_BITS_PER_KEY // 64)
    ends = [0]
    for length in (blocks * BLOCK_BYTES, words * 8, blocks * 8, blocks * 8, TRAILER_BYTES):
        ends.append(ends[-1] + length)
    assert ends[-1] == size
    names = ("blocks", "filter", "fences", "checksums", "trailer")
    return {name: range(ends[place], ends[place + 1]) for place, name in enumerate(names)}


@pytest.mark.parametrize("part", ["blocks", "filter", "fences", "checksums", "trailer"])
@pytest.mark.parametrize("bits", [0x01, 0x80])
def test_any_byte_that_was_changed_is_noticed(one_run: tuple[ListLog, str, bytes], part: str, bits: int) -> None:
    log, name, data = one_run
    places = regions(log.head, len(data))[part]
    story = Story(log=log, run_keys=LARGE_RUN_KEYS)
    for place in places[:: -(-len(places) // 50)]:
        story.files = files = FaultyDisk({name: data})
        files.damage(name, place, bits)
        story.assert_noticed()
        assert files.contents() == {name: data}  # made again, and the same
    story.index.close()


def test_a_file_that_was_cut_off_or_has_grown_is_noticed(one_run: tuple[ListLog, str, bytes]) -> None:
    log, name, data = one_run
    story = Story(log=log, run_keys=LARGE_RUN_KEYS)
    lengths = [*range(0, len(data), 101), *range(len(data) - TRAILER_BYTES - 20, len(data), 7), len(data) - 1]
    for cut in [*(data[:length] for length in lengths), data + b"\0", data + data[-TRAILER_BYTES:], data + data]:
        story.files = FaultyDisk({name: cut})
        story.assert_noticed()
    story.index.close()


def test_whole_files_are_not_read_again(one_run: tuple[ListLog, str, bytes]) -> None:
    """What the tests above rest on: without damage, nothing is made again."""
    log, name, data = one_run
    with Story(FaultyDisk({name: data}), log, run_keys=LARGE_RUN_KEYS) as story:
        assert log.ranges_read == []
        story.assert_exact()


def test_a_run_that_is_not_there_is_made_again_and_no_other(settled: tuple[ListLog, Contents]) -> None:
    log, contents = settled
    for name in contents:
        files = FaultyDisk({other: data for other, data in contents.items() if other != name})
        with Story(files, log) as story:
            story.assert_exact()
            first, last = run_ranges([name])[0]
            assert log.ranges_read == [*((start, start + 3) for start in range(first, last, 4)), (29, 30)]


def test_all_runs_are_made_again_where_there_is_none(settled: tuple[ListLog, Contents]) -> None:
    log, _ = settled
    with Story(FaultyDisk(), log) as story:
        assert log.ranges_read == [*((start, start + 3) for start in range(1, 29, 4)), (29, 30)]
        story.assert_exact()
        story.index.settle()
        assert run_ranges(story.files.names())[0][1] >= 4 * RUN_KEYS  # merges go on where they were


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_whatever_became_of_the_files_everything_is_found(
    settled: tuple[ListLog, Contents], data: st.DataObject
) -> None:
    log, contents = settled
    _, older = filled(data.draw(st.integers(1, 20), "events of an older state"))
    found: Contents = {}
    for name, whole in (older | contents).items():
        match data.draw(st.sampled_from(["whole", "gone", "cut", "changed", "another's"]), name):
            case "whole":
                found[name] = whole
            case "cut":
                found[name] = whole[: data.draw(st.integers(0, len(whole) - 1))]
            case "changed":
                place = data.draw(st.integers(0, len(whole) - 1))
                found[name] = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
            case "another's":
                found[name] = data.draw(st.sampled_from(sorted(contents.values())))
    with Story(FaultyDisk(found), log) as story:
        for _ in found:  # what is damaged inside of a block is found one by one
            try:
                story.assert_exact()
            except RunDamaged:
                story.recover()
        story.assert_exact()


class TestOfAnotherTime:
    def test_an_older_state_of_the_folder(self, settled: tuple[ListLog, Contents]) -> None:
        log, _ = settled
        for events in (1, 5, 13, 16, 17, 29):
            _, older = filled(events)
            covered = max((last for _, last in run_ranges(older)), default=0)
            with Story(FaultyDisk(older), log) as story:
                assert log.ranges_read[0][0] == covered + 1
                story.assert_exact()

    @pytest.mark.parametrize("head", [0, 1, 16, 17, 20, 22, 27, 28])
    def test_a_newer_state_than_the_log(self, settled: tuple[ListLog, Contents], head: int) -> None:
        """The log was restored from an older copy; then other events get the seqs that the index knows."""
        log, contents = settled[0].copy(), settled[1]
        log.cut_back(head)
        with Story(FaultyDisk(contents), log) as story:
            story.assert_exact()
            kept = [last for _, last in run_ranges(contents) if last <= head]
            assert [first for first, _ in log.ranges_read] == (
                [max(kept, default=0) + 1] if head not in {0, *kept} else []
            )
            for number in range(10):
                story.append(3, at_ns=10**6 + number)
                story.assert_exact()
            story.index.settle()
            story.reopen()
            story.assert_exact()

    @pytest.mark.parametrize("head", [0, 1, 16, 17, 20, 22, 27])
    def test_a_newer_state_than_the_log_had_when_it_went_on_without(
        self, settled: tuple[ListLog, Contents], head: int
    ) -> None:
        """As above, but the other events were stored before the index comes back: only their times tell."""
        log = settled[0].copy()
        log.cut_back(head)
        log.append([f"other {seq}" for seq in range(head, 40)], at_ns=10**6)
        with Story(FaultyDisk(settled[1]), log) as story:
            kept = [last for _, last in run_ranges(settled[1]) if last <= head]
            assert log.ranges_read[0][0] == max(kept, default=0) + 1
            story.assert_exact()

    @pytest.mark.parametrize("again", ["recover", "reopen"])
    @pytest.mark.parametrize("lost", [1, 2, RUN_KEYS, 3 * RUN_KEYS + 1])
    def test_events_that_were_added_and_then_not_committed(self, again: str, lost: int) -> None:
        """A store adds events before their commit, which may fail: other events get their seqs, at the same time."""
        story = Story()
        story.recover()
        for settled in (True, False):
            for _ in range(3):
                story.append(3, at_ns=1000)
            kept = story.log.copy()
            for number in range(lost):
                story.append(1, at_ns=1000 + number)
            if settled:
                story.index.settle()
                assert run_ranges(story.files.names())[-1][1] > kept.head or lost < RUN_KEYS
            story.log = kept
            story.recover() if again == "recover" else story.reopen()
            story.assert_exact()
            for number in range(lost + RUN_KEYS):
                story.append(1, at_ns=1000 + number % 2)
            story.index.settle()
            story.assert_exact()
            story.reopen()
            story.assert_exact()
        story.index.close()

    def test_the_time_of_a_run_is_that_of_its_last_event(self) -> None:
        """Also of runs that recovery makes, and of what it puts into memory, with commits of several events."""
        log = ListLog()
        files = FaultyDisk()
        for _ in range(3):
            with Story(files, log) as story:
                for count in (3, 1, 2, 5, 3):
                    story.append(count, at_ns=1000 + 7 * log.head)
                story.index.settle()
            covered = run_ranges(files.names())[-1][1]
            with Story(files, log) as story:
                assert log.ranges_read == [(covered + 1, log.head)]
            for name in [name for name in files.names() if run_ranges([name])[0][0] > 1]:
                files.remove(name)


class TestOfAnotherLog:
    def test_runs_of_another_log_are_dropped(self, settled: tuple[ListLog, Contents]) -> None:
        log, contents = settled
        other = log.copy()
        other.log_id = LOG_ID[::-1]
        with Story(FaultyDisk(contents), other) as story:
            assert sum(last - first + 1 for first, last in other.ranges_read) == other.head
            story.assert_exact()


class TestLeftovers:
    def test_what_was_not_finished_goes(self, settled: tuple[ListLog, Contents]) -> None:
        log, contents = settled
        name, data = next(iter(contents.items()))
        left = contents | {name + ".partial": data, "0-ff.run.partial": b"", "notes.txt": b"hello", ".run": b""}
        files = FaultyDisk(left)
        with Story(files, log) as story:
            assert log.ranges_read == [(29, 30)]
            assert files.contents() == contents
            story.assert_exact()

    def test_runs_beside_the_one_they_were_merged_into(self, settled: tuple[ListLog, Contents]) -> None:
        log, contents = settled
        _, before = filled(4 * RUN_KEYS)
        assert len(run_ranges(before)) == 3
        files = FaultyDisk(before | contents)
        with Story(files, log) as story:
            assert log.ranges_read == [(29, 30)]
            assert files.contents() == contents
            story.assert_exact()

    def test_a_damaged_merged_run_beside_what_it_was_made_of(self, settled: tuple[ListLog, Contents]) -> None:
        log, contents = settled
        _, before = filled(4 * RUN_KEYS)
        merged = min(contents)
        files = FaultyDisk(before | contents)
        files.damage(merged, len(contents[merged]) - 1)
        with Story(files, log) as story:
            assert log.ranges_read == [(13, 16), (29, 30)]
            story.assert_exact()

    def test_runs_that_overlap(self, settled: tuple[ListLog, Contents]) -> None:
        """As when one copy of the log was indexed in other steps than another: no event is there twice."""
        log = settled[0].copy()
        log.cut_back(13)
        found: Contents = {}
        for run_keys, wanted in ((4, (1, 4)), (4, (5, 8)), (6, (7, 12))):
            files = FaultyDisk()
            with Story(files, log, run_keys=run_keys):
                found |= {name: data for name, data in files.contents().items() if run_ranges([name]) == [wanted]}
        assert len(found) == 3
        log.ranges_read.clear()
        with Story(FaultyDisk(found), log) as story:
            assert log.ranges_read == [(9, 12), (13, 13)]
            assert run_ranges(story.files.names()) == [(1, 4), (5, 8), (9, 12)]
            story.assert_exact()
