"""docs/performance.md says what was measured."""

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import performance  # noqa: E402


def test_the_page_is_made_from_the_results() -> None:
    assert performance.PAGE.read_text() == performance.made(), "run: make performance"


def document(**changes: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "bench": "growth",
        "machine": {
            "at": "2026-11-23T10:00:00+00:00",
            "commit": "abc",
            "cores": 2,
            "cpu": "a cpu",
            "memory_bytes": 2**34,
            "kernel": "6.1",
            "python": "3.11",
            "sqlite": "3.54.1",
            "fsync_ms": {"p50": 0.25, "p99": 1.0, "max": 2.0},
        },
        "options": {"seconds": 10.0, "rounds": 3, "server": {"CONSUMER_WORKERS": "2"}},
        "pauses_s": [14.0, 1.5],
        "targets": [{"group": 5, "what": "disk", "measured": 1.25, "bound": 1.3, "text": "{:.2f}", "at_most": True}],
        "tables": [{"title": "rates", "columns": ["a", "b"], "rows": [["x|y", "1"]], "notes": ["noted"]}],
    }
    return usual | changes


def test_figures_become_tables() -> None:
    text = performance.render([document()], "plots")
    for line in (
        "| disk | disk | at most 1.30 | 1.25 | met |",
        "| x\\|y | 1 |",
        "* noted",
        "![growth](plots/growth.svg)",
        "* 2 cores, a cpu, 16 GiB, Linux 6.1",
    ):
        assert line in text.splitlines(), text
    assert "CONSUMER_WORKERS=2" in text and "stood still 2 times, 16 s" in text


def test_figures_take_the_place_of_the_older_ones() -> None:
    page = f"head\n{performance.BEGIN}\nold\n{performance.END}\ntail\n"
    once = performance.put_in(page, "new")
    assert "old" not in once and once.startswith("head\n") and once.endswith("tail\n")
    assert performance.put_in(once, "new") == once
    with pytest.raises(SystemExit, match="marks"):
        performance.put_in("no marks", "new")
