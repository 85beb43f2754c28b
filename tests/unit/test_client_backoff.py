import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekali.client.backoff import (
    FIRST_BOUND_S,
    LONGEST_BOUND_S,
    RETRY_AFTER_S_MAX,
    Patience,
    backoff_s,
    parse_retry_after,
)

shares = st.floats(0, 1, exclude_max=True)
NOW = datetime(2026, 11, 23, 10, 0, 0, tzinfo=UTC)


@given(st.integers(1, 10_000), shares, st.floats(0, 100))
def test_a_wait_lies_between_what_the_server_asked_and_the_bound_on_top(
    failures: int, share: float, retry_after_s: float
) -> None:
    wait_s = backoff_s(failures, share, retry_after_s)
    assert retry_after_s <= wait_s <= retry_after_s + LONGEST_BOUND_S


@given(st.integers(1, 6), shares)
def test_the_bound_doubles_and_the_jitter_is_full(failures: int, share: float) -> None:
    bound_s = min(LONGEST_BOUND_S, FIRST_BOUND_S * 2 ** (failures - 1))
    assert backoff_s(failures, share) == pytest.approx(share * bound_s)
    assert backoff_s(failures, 0.0) == 0.0


@given(st.floats(0.01, 300), st.lists(shares, min_size=1), st.floats(0, 3))
def test_all_waits_together_end_at_the_deadline(
    give_up_after_s: float, given_shares: list[float], retry_after_s: float
) -> None:
    now_s = 1000.0
    rolls = iter(given_shares * 10_000)
    patience = Patience(give_up_after_s, lambda: now_s, lambda: max(next(rolls), 0.01))
    while (wait_s := patience.next_wait_s(retry_after_s)) is not None:
        assert wait_s >= min(retry_after_s, give_up_after_s)
        now_s += wait_s
        assert now_s <= 1000.0 + give_up_after_s + 1e-6
    assert patience.failures >= 1


def test_without_patience_there_is_one_attempt() -> None:
    assert Patience(0, lambda: 5.0, lambda: 0.5).next_wait_s() is None


def test_infinite_patience_never_gives_up() -> None:
    patience = Patience(math.inf, lambda: 5.0, lambda: 0.5)
    waits = [patience.next_wait_s(1.0) for _ in range(1000)]
    assert waits[-1] == 1.0 + LONGEST_BOUND_S / 2


def test_a_wait_that_the_deadline_does_not_allow_is_not_begun() -> None:
    assert Patience(4.0, lambda: 0.0, lambda: 0.5).next_wait_s(5.0) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("3", 3),
        ("0", 0),
        ("-3", 0),
        ("1.5", 0),
        ("soon", 0),
        ("9" * 400, RETRY_AFTER_S_MAX),
        ((NOW + timedelta(seconds=90)).strftime("%a, %d %b %Y %H:%M:%S GMT"), 90),
        ((NOW - timedelta(seconds=90)).strftime("%a, %d %b %Y %H:%M:%S GMT"), 0),
    ],
)
def test_retry_after(value: str | None, seconds: float) -> None:
    assert parse_retry_after(value, NOW) == seconds
