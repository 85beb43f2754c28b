from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from sekali.cli.report import Latencies, Report
from sekali.client.http import Answer
from sekali.client.lines import Item


@given(st.lists(st.floats(1e-5, 100), min_size=1, max_size=200), st.sampled_from([0.5, 0.99]))
def test_percentiles_are_right_within_two_per_cent(seconds: list[float], share: float) -> None:
    latencies = Latencies()
    for value in seconds:
        latencies.add(value)
    exact = sorted(seconds)[max(0, -int(-share * len(seconds) // 1) - 1)]
    found_ms = latencies.percentile_ms(share)
    assert found_ms is not None
    assert found_ms == pytest.approx(exact * 1000, rel=0.02, abs=0.001)


def test_without_a_request_there_is_no_latency_and_no_rate() -> None:
    report = Report(lambda text: None, clock=lambda: 5.0)
    assert report.figures() == {
        "sent": 0,
        "stored": 0,
        "duplicate": 0,
        "conflict": 0,
        "invalid": 0,
        "retries": 0,
        "elapsed_s": 0.0,
        "rate_per_s": None,
        "latency_ms": {"p50": None, "p99": None},
    }


def test_counts_rate_and_places_of_faults() -> None:
    now_s = 10.0
    shown: list[str] = []

    def show(text: Text) -> None:
        shown.append(text.plain)

    report = Report(show, clock=lambda: now_s)
    verdicts: list[dict[str, Any]] = [
        {"outcome": "stored", "seq": 4},
        {"outcome": "conflict", "seq": 3},
        {"outcome": "invalid", "error": "topic: \x1b[2J"},
    ]
    report.settle([Item(f"x:{number}", b"") for number in (1, 2, 3)], Answer(2, 1, 0, 1, 1, verdicts, latency_s=0.25))
    report.refuse("x:4", "too long")
    report.retry()
    now_s = 12.0
    figures = report.figures()
    assert (figures["sent"], figures["stored"], figures["conflict"], figures["invalid"]) == (3, 1, 1, 2)
    assert (figures["retries"], figures["rate_per_s"]) == (1, 1.5)
    assert shown[0].startswith("x:2: conflict: other content than seq 3")
    assert shown[1:] == ["x:3: invalid: topic: \\u001b[2J", "x:4: invalid: too long"]
