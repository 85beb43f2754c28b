"""Every benchmark that drives a server, at a size that takes seconds: it measures, and leaves what it says it does."""

import json
from pathlib import Path
from typing import Any

import pytest

from sekali.bench import consume, follow, growth, index, latency, reads, stall, suite
from sekali.bench.children import BenchFailed
from sekali.bench.events import IdKind
from sekali.bench.large import Kept, read_kept
from sekali.bench.options import Options


def run(name: str, out: Path, **options: Any) -> dict[str, Any]:
    small: dict[str, Any] = {"seconds": 0.2, "warmup_s": 0.05, "rounds": 1, "events": 2000, "db_dir": out.parent}
    told: list[float] = []
    _, report = suite.run(name, Options(**(small | options)), out, lambda what, done: told.append(done))
    document: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    assert (out / f"{name}.svg").stat().st_size
    assert told == sorted(told) and told[-1] <= 1
    assert all(len(row) == len(table.columns) for table in report.tables for row in table.rows)
    assert [target["measured"] is not None for target in document["targets"]] == [True] * len(report.targets)
    return document


def test_growth_measures_and_keeps_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "KILL_AFTER_S", 0.1)
    keep = tmp_path / "kept"
    figures = run("growth", tmp_path / "out", keep=keep)["figures"]
    assert figures["points"] and figures["filled"]["stored"] >= 2000
    assert figures["filled"]["folder_bytes"] > 2000 * 100 and figures["private_bytes_max"] > 10e6
    assert all(one["events_per_s"] > 0 for some in figures["windows"].values() for one in some)
    assert len(figures["ready_s"]["stopped"]) == len(figures["ready_s"]["killed"]) == 1
    assert read_kept(keep / "store") == Kept(seed=1, id_kind=IdKind.UUID4, events=2000)
    with pytest.raises(BenchFailed, match="exists already"):
        run("growth", tmp_path / "out", keep=keep)


def test_the_index_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SMALL_KEYS", 40_000)
    figures = run("index", tmp_path / "out", keys=80_000)["figures"]
    assert figures["keys"] >= 80_000 and figures["rate_at_end"] > 0


def test_latency_is_measured_and_a_load_that_is_too_much_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = latency.Scenario(1, 4, 500, p99_ms_max=1000.0)
    monkeypatch.setattr(latency, "SCENARIOS", (slow, latency.Scenario(500, 8, 20_000)))
    monkeypatch.setattr(latency, "FLOOR_SECONDS", 0.2)
    document = run("latency", tmp_path / "out")
    one = document["figures"]["summary"][slow.name]
    assert 0 < one["p50_ms"] <= one["p99_ms"] <= one["max_ms"] and one["generator_p99_ms"] > 0
    assert document["targets"][0]["met"]


def test_reads_of_a_store_that_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "READ_RUNS", 1)
    keep = tmp_path / "kept"
    for options in ({"keep": keep}, {"store": keep}):
        document = run("reads", tmp_path / "out", **options)
        assert document["figures"]["stored"] >= 2000 and len(document["figures"]["reads"]) == 6
        assert document["figures"]["export"]["at rest"]["events"] > document["figures"]["stored"]
        assert document["figures"]["export"]["while writing"]["events"] > 0


def test_followers_idle_and_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "IDLE", 20)
    monkeypatch.setattr(follow, "LIVE", 11)
    monkeypatch.setattr(follow, "REST_S", 0.1)
    scenario = follow.Scenario(20, 4, 1000)
    monkeypatch.setattr(follow, "SCENARIOS", (scenario,))
    figures = run("follow", tmp_path / "out", seconds=0.5)["figures"]
    assert figures["idle"]["share"] > 0 and figures["idle"]["busy_at_rest"] >= 0
    one = figures["live"][scenario.name]
    assert one["follower_events_per_s"] > 0 and 0 < one["follower_p50_ms"] <= one["follower_max_ms"]


def test_publishing_beside_consumers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consume, "LIVE", 3)
    monkeypatch.setattr(consume, "IDLE", 2)
    figures = run("consume", tmp_path / "out", seconds=0.5)["figures"]
    assert figures["summary"]["nobody"]["share"] == 1
    for kind in ("followers", "subscriptions"):
        assert figures["summary"][kind]["share"] > 0 and figures["summary"][kind]["consumer_events_per_s"] > 0


def test_stalls_are_measured_beside_the_bare_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "PROBE_EVERY_S", 0.001)
    monkeypatch.setattr(stall, "SHARE", 0.1)
    figures = run("stall", tmp_path / "out")["figures"]
    assert figures["offered_events_per_s"] == pytest.approx(figures["maximum_events_per_s"] * 0.1)
    assert figures["fsync_ms"]["max"] == max(figures["fsync_ms"]["max_by_second"]) > 0
    assert figures["steady"]["latency_ms"]["max"] > 0


def test_sekali_beside_the_service_written_for_comparison(tmp_path: Path) -> None:
    figures = run("peers", tmp_path / "out", only="fastapi")["figures"]
    assert len(figures["rates"]) == 3 and all(rate > 0 for rate in figures["rates"].values())
    assert not figures["missing"]


def test_a_store_that_no_benchmark_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchFailed, match="sekali bench growth --keep"):
        read_kept(tmp_path / "store")
