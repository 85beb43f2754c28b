"""What a benchmark leaves: its files, its plot; and what it says without the extra."""

import importlib.util
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from sekali.bench import ceiling, everything, suite
from sekali.bench.children import BenchFailed
from sekali.bench.events import IdKind
from sekali.bench.options import Notify, Options, Report, Table
from sekali.bench.plots import PLOTS
from sekali.bench.targets import Target
from sekali.cli.bench import What


def test_a_run_leaves_its_figures_and_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "TRIAL_S", 0.01)
    options = Options(seconds=0.05, rounds=1, events=1000, db_dir=tmp_path, commit_rows=300)
    told: list[float] = []
    document, report = suite.run("ceiling", options, tmp_path / "out", lambda what, done: told.append(done))
    assert json.loads((tmp_path / "out" / "ceiling.json").read_text()) == document
    assert ET.parse(tmp_path / "out" / "ceiling.svg").getroot().tag.endswith("svg")
    assert document["machine"]["fsync_ms"]["p50"] > 0 and document["figures"]["uuid7"]["rows_per_s"] > 0
    assert len(report.tables[0].rows) == 2
    assert told == sorted(told) and told[0] >= 0 and told[-1] <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "stores are removed"


def test_the_ceiling_appends_every_row(tmp_path: Path) -> None:
    run = ceiling.measure(tmp_path, ceiling.Tuning(100, 1000), id_kind=IdKind.UUID4, commit_rows=250, seconds=0.02)
    assert run.rows == run.commits * 250 and run.busy_s >= 0.02


def test_the_command_knows_every_benchmark_and_each_has_a_plot() -> None:
    assert {what.value for what in What} - {"all"} == set(suite.BENCHES) == set(PLOTS) == set(everything.ORDER)


def test_all_goes_on_after_one_that_fails_and_sums_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Options] = {}

    def fake(name: str) -> Callable[[Options, Notify], Report]:
        def run(options: Options, notify: Notify) -> Report:
            given[name] = options
            if name == "latency":
                raise BenchFailed("no")
            target = Target(group=2, what=name, measured=1.0, bound=2.0 if name == "index" else 1.0, text="{}")
            return Report({"name": name}, [Table(name, ["a"], [["b"]])], [target])

        return run

    monkeypatch.setattr(suite, "BENCHES", {name: fake(name) for name in everything.ORDER})
    monkeypatch.setattr(suite, "draw", lambda *_: None)
    reported: list[str] = []
    options = Options(seconds=1, rounds=1, events=1000, db_dir=tmp_path, only="x")
    document, report = everything.run(
        options, None, tmp_path / "out", lambda what, done: None, lambda name, report: reported.append(name)
    )
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == document
    assert document["failures"] == {"latency": "no"}
    assert reported == [name for name in everything.ORDER if name != "latency"]
    assert len(document["targets"]) == len(reported)
    assert sum(target["met"] for target in document["targets"]) == len(reported) - 1
    assert (
        report.tables[0].title.endswith(f"{len(reported) - 1} met, 1 missed") and "latency" in report.tables[0].notes[0]
    )
    assert given["growth"].keep is not None and given["growth"].keep == given["reads"].store
    assert (given["stall"].seconds, given["ingest"].seconds, given["ingest"].only) == (600, 10, "")
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "the large store is removed"


def test_how_long_a_run_takes() -> None:
    assert (suite.seconds_of("stall", None), suite.seconds_of("ingest", None)) == (600, 10)
    assert suite.seconds_of("stall", 3.0) == 3


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(suite, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    with pytest.raises(BenchFailed, match=r"pip install 'sekali\[bench\]'"):
        suite.run("ceiling", Options(seconds=1, rounds=1, events=1000), tmp_path, lambda what, done: None)
