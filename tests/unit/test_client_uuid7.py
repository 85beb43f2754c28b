import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from sekali.client.uuid7 import Uuid7

ALL_ONES: Callable[[int], int] = lambda bits: (1 << bits) - 1  # noqa: E731


@given(st.lists(st.integers(0, 2**47), min_size=2, max_size=50), st.randoms(use_true_random=False))
def test_ids_rise_whatever_the_clock_does(clock_ms: list[int], random: object) -> None:
    readings = iter(clock_ms)
    make = Uuid7(lambda: next(readings) * 1_000_000, random.getrandbits)  # type: ignore[attr-defined]
    ids = [make() for _ in clock_ms]
    assert ids == sorted(set(ids))
    for text in ids:
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)


@given(st.integers(0, 2**48 - 1))
def test_the_first_48_bits_are_the_milliseconds(ms: int) -> None:
    assert uuid.UUID(Uuid7(lambda: ms * 1_000_000, ALL_ONES)()).int >> 80 == ms


def test_a_used_up_counter_goes_on_in_the_next_millisecond() -> None:
    make = Uuid7(lambda: 5_000_000, ALL_ONES)
    make._counter, make._ms = (1 << 42) - 2, 5
    first, second, third = make(), make(), make()
    assert first < second < third
    assert [uuid.UUID(text).int >> 80 for text in (first, second, third)] == [5, 6, 6]


def test_threads_never_get_the_same() -> None:
    make = Uuid7(lambda: 5_000_000)
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda _: make(), range(2000)))
    assert len(set(ids)) == 2000
