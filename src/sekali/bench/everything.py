"""All benchmarks, one after the other, and every figure to reach in one table: ``<out>/summary.json``."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sekali.bench import machine, suite, targets
from sekali.bench.children import BenchFailed
from sekali.bench.large import DISK_BYTES_PER_EVENT, require_disk
from sekali.bench.options import Notify, Options, Report, Table, part_of
from sekali.bench.targets import Target

# Growth comes before reads, which uses its store; what takes longest comes late.
ORDER = ("ingest", "ceiling", "index", "growth", "reads", "latency", "follow", "consume", "peers", "stall")


def run(
    options: Options, seconds: float | None, out: Path, notify: Notify, on_report: Callable[[str, Report], None]
) -> tuple[dict[str, Any], Report]:
    """Run every benchmark and write the summary; ``on_report`` is called after each. One that fails is told of there.

    Raises:
        BenchFailed: nothing could be begun.

    """
    suite.require_extra()
    out.mkdir(parents=True, exist_ok=True)
    reached: list[Target] = []
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        keep = options.keep
        if keep is None:
            keep = Path(stack.enter_context(TemporaryDirectory(prefix="sekali-bench-large-", dir=options.db_dir)))
        require_disk(keep, options.events * DISK_BYTES_PER_EVENT)
        facts = machine.facts(keep)
        for place, name in enumerate(ORDER):
            one = replace(options, seconds=suite.seconds_of(name, seconds), keep=None, store=None, only="")
            if name == "growth":
                one = replace(one, keep=keep)
            if name == "reads" and "growth" not in failures:
                one = replace(one, store=keep)
            try:
                _, report = suite.run(name, one, out, _named(name, part_of(notify, place, len(ORDER))))
            except BenchFailed as failure:
                failures[name] = str(failure)
                continue
            reached += report.targets
            on_report(name, report)
    document = {
        "bench": "summary",
        "machine": facts,
        "targets": targets.to_documents(reached),
        "failures": failures,
    }
    (out / "summary.json").write_text(json.dumps(document, indent=1) + "\n")
    notes = [f"{name} could not be measured: {reason}" for name, reason in failures.items()]
    met = sum(target.met for target in reached)
    title = f"figures to reach: {met} met, {len(reached) - met} missed"
    return document, Report({}, [Table(title, targets.COLUMNS, targets.rows(reached), notes)])


def _named(name: str, notify: Notify) -> Notify:
    return lambda what, done: notify(f"{name}: {what}", done)
