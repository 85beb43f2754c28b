"""The parts of the dedup index, each against a plain dict: hash table, run, merge."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings

from sekali.stores import index_merge
from sekali.stores.identity import Hashes
from sekali.stores.index_merge import FANOUT, RUN_LENGTH_MAX, choose_merge, merge, write_sorted
from sekali.stores.index_run import BLOCK_KEYS, Run, RunDamaged, RunId, filter_masks, read_run_id
from sekali.stores.index_table import HashTable, Positions, Seqs
from sekali.testing import FaultyDisk

LOG_ID = b"0123456789abcdef0123456789abcdef"
HASH_MAX = 2**64 - 1
# Many keys of one hash cross the borders of blocks, and so do neighbours around them.
hash_values = st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**63, HASH_MAX - 1, HASH_MAX]) | st.integers(0, HASH_MAX)
repeats = st.sampled_from([1, 2, BLOCK_KEYS - 1, BLOCK_KEYS, BLOCK_KEYS + 1, 2 * BLOCK_KEYS + 3])
seeds = st.integers(0, 2**32 - 1)
SIZES = [1, 2, BLOCK_KEYS - 1, BLOCK_KEYS, BLOCK_KEYS + 1, 2 * BLOCK_KEYS, 5 * BLOCK_KEYS + 7]


@st.composite
def hash_arrays(draw: st.DrawFn, size_min: int = 1) -> Hashes:
    """Some hashes, each there a number of times, in any order."""
    groups = draw(st.lists(st.tuples(hash_values, repeats), min_size=size_min, max_size=5))
    made = np.array([value for value, times in groups for _ in range(times)], np.uint64)
    np.random.default_rng(draw(seeds)).shuffle(made)
    return made


def expected(hashes: Hashes, first_seq: int, wanted: Hashes) -> list[tuple[int, int]]:
    seqs: defaultdict[int, list[int]] = defaultdict(list)
    for seq, value in enumerate(hashes.tolist(), first_seq):
        seqs[value].append(seq)
    return sorted((place, seq) for place, value in enumerate(wanted.tolist()) for seq in seqs[value])


def pairs(found: tuple[Positions, Seqs]) -> list[tuple[int, int]]:
    return sorted(zip(*(one.tolist() for one in found), strict=True))


def wanted_of(hashes: Hashes) -> Hashes:
    """Return every hash, its neighbours, and those at both ends."""
    values = [hashes, hashes + np.uint64(1), hashes - np.uint64(1), np.array([0, HASH_MAX, 0, 2**40], np.uint64)]
    return np.unique(np.concatenate(values))[::-1]


def arange(first: int, hashes: Hashes) -> Seqs:
    return np.arange(first, first + len(hashes))


class TestHashTable:
    @given(st.lists(hash_arrays(), max_size=3))
    @settings(deadline=None, max_examples=15)
    def test_finds_what_was_added(self, batches: list[Hashes]) -> None:
        hashes = np.concatenate([np.empty(0, np.uint64), *batches])
        table = HashTable(7, max(len(hashes), 1))
        for batch in batches:
            table.add(batch)
        assert len(table) == len(hashes)
        wanted = wanted_of(hashes)
        assert pairs(table.find(wanted)) == expected(hashes, 7, wanted)
        items = sorted(zip(*(one.tolist() for one in table.items()), strict=True))
        assert items == sorted(zip(hashes.tolist(), arange(7, hashes).tolist(), strict=True))

    @pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257])
    def test_takes_as_many_keys_as_it_says(self, size: int) -> None:
        table = HashTable(1, size)
        hashes = np.full(size, HASH_MAX, np.uint64)
        table.add(hashes)
        assert pairs(table.find(hashes[:1])) == [(0, seq) for seq in range(1, size + 1)]
        assert pairs(table.find(hashes[:0])) == []
        assert pairs(table.find(np.zeros(1, np.uint64))) == []

    def test_looks_for_one_hash_at_many_positions(self) -> None:
        table = HashTable(1, 2)
        table.add(np.array([5, 5], np.uint64))
        assert pairs(table.find(np.array([5, 4, 5], np.uint64))) == [(0, 1), (0, 2), (2, 1), (2, 2)]


def make_run(files: FaultyDisk, name: str, hashes: Hashes, first_seq: int) -> Run:
    run_id = RunId(LOG_ID, 3, first_seq, first_seq + len(hashes) - 1, 99)
    write_sorted(files, name, run_id, hashes, arange(first_seq, hashes))
    run = Run(files, name)
    assert run.run_id == read_run_id(files, name) == run_id
    return run


def find(run: Run, wanted: Hashes) -> list[tuple[int, int]]:
    return pairs(run.find(wanted, filter_masks(wanted)))


class TestRun:
    @given(hash_arrays(), st.sampled_from([1, 2**32, 2**40]))
    @example(np.zeros(1, np.uint64), 1)
    @example(np.zeros(BLOCK_KEYS + 1, np.uint64), 1)
    @example(np.full(BLOCK_KEYS + 1, HASH_MAX, np.uint64), 1)
    @settings(deadline=None, max_examples=80)
    def test_finds_what_was_written(self, hashes: Hashes, first_seq: int) -> None:
        files = FaultyDisk()
        run = make_run(files, "a.run", hashes, first_seq)
        wanted = wanted_of(hashes)
        assert find(run, wanted) == expected(hashes, first_seq, wanted)
        assert find(run, wanted[:0]) == []
        assert list(files.contents()) == ["a.run"]

    @pytest.mark.parametrize("size", SIZES)
    def test_finds_every_key_at_every_size(self, size: int) -> None:
        for spread in (1, 2**32 + 1, HASH_MAX // size):
            hashes = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(spread)
            run = make_run(FaultyDisk(), "a.run", hashes, 1)
            wanted = np.concatenate([hashes, hashes[::-1]])  # each twice
            assert find(run, wanted) == expected(hashes, 1, wanted)
            assert run.blocks == -(-size // BLOCK_KEYS)

    @pytest.mark.parametrize("size", SIZES)
    def test_reads_its_keys_in_order(self, size: int) -> None:
        hashes = np.random.default_rng(size).integers(0, 50, size, np.uint64)
        run = make_run(FaultyDisk(), "a.run", hashes, 5)
        parts = [run.read_blocks(start, min(start + 2, run.blocks)) for start in range(0, run.blocks, 2)]
        assert np.concatenate([part for part, _ in parts]).tolist() == sorted(hashes.tolist())
        assert sorted(np.concatenate([seqs for _, seqs in parts]).tolist()) == arange(5, hashes).tolist()

    def test_reads_few_blocks_for_keys_that_are_not_there(self) -> None:
        random = np.random.default_rng(1)
        hashes, absent = random.integers(0, HASH_MAX, (2, 20_000), np.uint64)
        files = FaultyDisk()
        run = make_run(files, "a.run", hashes, 1)
        files.trace.clear()
        for start in range(0, len(absent), 10):
            assert find(run, absent[start : start + 10]) == []
        assert 0 < files.trace.count("read a.run") < len(absent) / 500

    def test_has_its_name_only_when_it_is_whole_and_synced(self) -> None:
        files = FaultyDisk()
        make_run(files, "a.run", np.arange(1000, dtype=np.uint64), 1)
        steps = [step for step in files.trace if not step.startswith(("append", "size", "read", "open"))]
        assert steps == ["create a.run.partial", "sync a.run.partial", "rename a.run"]
        last_write = max(place for place, step in enumerate(files.trace) if step.startswith("append"))
        assert last_write < files.trace.index("sync a.run.partial")

    def test_is_refused_with_another_magic(self) -> None:
        files = FaultyDisk()
        with patch("sekali.stores.index_run._MAGIC", b"SEKARUN0"):
            make_run(files, "a.run", np.arange(3, dtype=np.uint64), 1)
        with pytest.raises(RunDamaged, match="version"):
            Run(files, "a.run")


def split(hashes: Hashes, cuts: Sequence[int]) -> Iterator[Hashes]:
    ends = sorted({cut % len(hashes) for cut in cuts} - {0})
    return iter(np.split(hashes, ends))


class TestMerge:
    @given(hash_arrays(size_min=2), st.lists(st.integers(0, 10_000), max_size=4), st.sampled_from([256, 512, 2**17]))
    @example(np.zeros(3 * BLOCK_KEYS, np.uint64), [BLOCK_KEYS, BLOCK_KEYS + 1], BLOCK_KEYS)
    @example(np.full(3 * BLOCK_KEYS, HASH_MAX, np.uint64), [BLOCK_KEYS], BLOCK_KEYS)
    @settings(deadline=None, max_examples=80)
    def test_holds_all_keys_of_its_runs_in_order(self, hashes: Hashes, cuts: list[int], slice_keys: int) -> None:
        files = FaultyDisk()
        parts, first_seq = [], 11
        for number, part in enumerate(split(hashes, cuts)):
            parts.append(make_run(files, f"{number}.run", part, first_seq))
            first_seq += len(part)
        with patch.object(index_merge, "SLICE_KEYS", slice_keys):
            steps = sum(1 for _ in merge(files, "merged.run", parts))
        assert steps == -(-len(hashes) // slice_keys)
        merged = Run(files, "merged.run")
        assert merged.run_id == RunId(LOG_ID, 3, 11, 10 + len(hashes), 99)
        assert merged.read_blocks(0, merged.blocks)[0].tolist() == sorted(hashes.tolist())
        wanted = wanted_of(hashes)
        assert find(merged, wanted) == expected(hashes, 11, wanted)

    def test_left_in_the_middle_leaves_no_file(self) -> None:
        files = FaultyDisk()
        hashes = np.arange(1000, dtype=np.uint64) << np.uint64(54)
        run = make_run(files, "a.run", hashes, 1)
        with patch.object(index_merge, "SLICE_KEYS", BLOCK_KEYS):
            steps = merge(files, "merged.run", [run])
            next(steps)
            assert sorted(files.contents()) == ["a.run", "merged.run.partial"]
            steps.close()
        assert list(files.contents()) == ["a.run"]


class TestChooseMerge:
    RUN_KEYS = 100

    @given(st.lists(st.integers(1, 250), min_size=1, max_size=300))
    @settings(deadline=None, max_examples=50)
    def test_keeps_runs_few_and_rewrites_seldom(self, flushes: list[int]) -> None:
        lengths: list[int] = []
        rewritten = 0
        for flushed in flushes:
            lengths.append(flushed)
            while (chosen := choose_merge(lengths, self.RUN_KEYS)) is not None:
                merged = lengths[chosen]
                assert len(merged) >= FANOUT
                rewritten += sum(merged)
                lengths[chosen] = [sum(merged)]
        assert sum(lengths) == sum(flushes)
        levels = 1
        while FANOUT**levels * self.RUN_KEYS // 2 < sum(flushes):
            levels += 1
        assert len(lengths) <= FANOUT * levels * levels
        assert rewritten <= 2 * levels * sum(flushes)

    @pytest.mark.parametrize(
        ("lengths", "chosen"),
        [
            ([], None),
            ([100], None),
            ([100] * 3, None),
            ([100] * 4, slice(0, 4)),
            ([100] * 6, slice(0, 6)),
            ([400, 100, 100, 100], None),
            ([400, 100, 100, 100, 100], slice(1, 5)),
            ([100, 100, 400, 100, 100], None),
            ([100, 100, 100, 100, 400, 100], slice(0, 4)),
            ([400, 400, 10, 400, 400], slice(0, 5)),
            ([1600, 400, 400, 400, 1600, 400], None),
            ([400] * 4 + [100] * 4, slice(4, 8)),
        ],
    )
    def test_examples(self, lengths: list[int], chosen: slice | None) -> None:
        assert choose_merge(lengths, self.RUN_KEYS) == chosen

    def test_makes_no_run_longer_than_its_offsets_reach(self) -> None:
        quarter = RUN_LENGTH_MAX // FANOUT
        assert choose_merge([quarter] * FANOUT, quarter) == slice(0, FANOUT)
        assert choose_merge([quarter] * FANOUT + [1], quarter) is None
        assert RUN_LENGTH_MAX == 2**32
