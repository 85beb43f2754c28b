"""The benchmarks by name, and what each leaves: ``<out>/<name>.json`` and ``<out>/<name>.svg``."""

import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sekali.bench import ceiling, consume, follow, growth, index, ingest, latency, machine, reads, stall, targets
from sekali.bench.children import BenchFailed
from sekali.bench.options import Notify, Options, Report
from sekali.bench.pauses import WATCH
from sekali.bench.peers import side_by_side

BENCHES: dict[str, Callable[[Options, Notify], Report]] = {
    "ceiling": ceiling.run,
    "ingest": ingest.run,
    "growth": growth.run,
    "index": index.run,
    "latency": latency.run,
    "reads": reads.run,
    "follow": follow.run,
    "consume": consume.run,
    "stall": stall.run,
    "peers": side_by_side.run,
}
SECONDS = 10.0
SECONDS_OF = {"stall": 600.0}  # where a run is long by nature


def require_extra() -> None:
    """Make sure that plots can be drawn, before anything is measured.

    Raises:
        BenchFailed: the extra is not installed; the message says how.

    """
    if find_spec("matplotlib") is None:
        raise BenchFailed("the plots need matplotlib: pip install 'sekali[bench]'")


def seconds_of(name: str, given: float | None) -> float:
    """Return how long one run of a benchmark takes."""
    return SECONDS_OF.get(name, SECONDS) if given is None else given


def run(name: str, options: Options, out: Path, notify: Notify) -> tuple[dict[str, Any], Report]:
    """Run one benchmark and write its files; return the document written and the report.

    Raises:
        BenchFailed: it could not be measured, or the server was wrong.

    """
    require_extra()
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="sekali-bench-", dir=options.db_dir) as probe:
        document: dict[str, Any] = {"bench": name, "machine": machine.facts(Path(probe)), "options": options.document()}
    WATCH.start()
    paused_before = len(WATCH.pauses)
    report = BENCHES[name](options, notify)
    document |= {
        "pauses_s": [end_s - begin_s for begin_s, end_s in WATCH.pauses[paused_before:]],
        "targets": targets.to_documents(report.targets),
        "tables": [asdict(table) for table in report.tables],
        "figures": report.figures,
    }
    text = json.dumps(document, indent=1) + "\n"
    (out / f"{name}.json").write_text(text)
    document = json.loads(text)  # as whoever reads it finds it
    draw(name, document, out / f"{name}.svg")
    return document, report


def draw(name: str, document: dict[str, Any], path: Path) -> None:
    """Draw the plot of a benchmark from its document."""
    from sekali.bench import plots  # noqa: PLC0415 - matplotlib is an extra

    plots.save(plots.PLOTS[name](document["figures"]), path)
