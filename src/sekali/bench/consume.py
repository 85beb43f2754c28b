"""What consumers cost publishing: full ingest with followers, with durable subscriptions, and without either."""

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec

from sekali.bench.children import BenchFailed, Server, run_load
from sekali.bench.consumers import ConsumeJob, ConsumeResult, Kind
from sekali.bench.job import Job, Sample
from sekali.bench.loaded import figures_of, require_right
from sekali.bench.options import Notify, Options, Report, Table, part_of
from sekali.bench.targets import Target

LIVE, IDLE, RATE = 10, 10, 1000
SHARE_MIN = 0.85
KEPT_UP = 0.98  # of the rate that each consumer is to take
NAMES = {
    Kind.NOBODY: "no consumers",
    Kind.FOLLOWERS: f"{IDLE} idle followers, {LIVE} that take {RATE:,}/s each",
    Kind.SUBSCRIPTIONS: f"{IDLE} idle pull subscriptions, {LIVE} that take {RATE:,}/s each",
}


class _Consuming:
    """The process of the consumers."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.result = ConsumeResult()

    def read(self) -> bytes:
        """Return its next line."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def end(self) -> None:
        """Let it take what there is, and end.

        Raises:
            BenchFailed: what it got was not right.

        """
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        self.result = _result(self.read())


def _result(line: bytes) -> ConsumeResult:
    result = msgspec.json.decode(line, type=ConsumeResult) if line else ConsumeResult(failure="their process ended")
    if result.failure is not None:
        raise BenchFailed(f"consumers: {result.failure}")
    return result


@contextlib.contextmanager
def _consuming(job: ConsumeJob) -> Iterator[_Consuming]:
    """Have consumers while the body runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sekali.bench.consumers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        try:
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(job) + b"\n")
            process.stdin.flush()
            consuming = _Consuming(process)
            if (line := consuming.read()) != b"ready\n":
                _result(line)
            yield consuming
        finally:
            process.kill()


def run(options: Options, notify: Notify) -> Report:
    """Measure each kind of consumers turn by turn, in another order each round."""
    kinds = list(Kind)
    runs: dict[Kind, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    steps = options.rounds * len(kinds)
    for number in range(options.rounds):
        turn = number % len(kinds)
        for place, kind in enumerate(kinds[turn:] + kinds[:turn]):
            runs[kind].append(_measure(kind, options, part_of(notify, number * len(kinds) + place, steps)))
    summary = {kind.value: _summary(kind, runs) for kind in kinds}
    targets = [
        Target(
            group=10,
            what=f"full ingest beside {NAMES[kind]}",
            measured=summary[kind]["share"],
            bound=SHARE_MIN,
            text="{:.2f} of the rate without",
        )
        for kind in kinds[1:]
    ]
    by_name = {kind.value: some for kind, some in runs.items()}
    return Report({"summary": summary, "runs": by_name}, [_table(summary)], targets)


def _measure(kind: Kind, options: Options, notify: Notify) -> dict[str, Any]:
    """Measure full ingest beside one kind of consumers. What they consume is published beside the load in any case."""
    name = NAMES[kind]
    with options.folder() as folder, Server(folder, options.settings) as server:
        server.start()
        with _consuming(ConsumeJob(port=server.port, kind=kind, live=LIVE, idle=IDLE, rate=RATE)) as consuming:
            before = server.metrics()

            def on_sample(sample: Sample) -> None:
                notify(name, min(sample.at_s / (options.warmup_s + options.seconds), 1.0))

            job = Job(port=server.port, seconds=options.seconds, warmup_s=options.warmup_s, watched_pid=server.pid)
            result = run_load(job, on_sample)
            after = server.metrics()
            consuming.end()
        require_right(result, consuming.result.published, server.get_json("/stats"))
        server.stop()
    figures = figures_of(result, {metric: after[metric] - before.get(metric, 0.0) for metric in after})
    window_s = result.window_s
    return figures | {
        "consumer_events_per_s": consuming.result.events_per_s,
        "consumers_busy": consuming.result.cpu_s / (window_s + options.warmup_s),
    }


def _summary(kind: Kind, runs: dict[Kind, list[dict[str, Any]]]) -> dict[str, float]:
    """Return medians. ``share`` is of the rate without in the same round, what the consumers get included in both."""
    beside = LIVE * RATE
    shares = [
        (one["events_per_s"] + beside) / (without["events_per_s"] + beside)
        for one, without in zip(runs[kind], runs[Kind.NOBODY], strict=True)
    ]
    keys = ("events_per_s", "consumer_events_per_s", "server_us_per_event", "server_busy", "consumers_busy")
    medians = {key: float(statistics.median(one[key] for one in runs[kind])) for key in keys}
    return medians | {
        "share": statistics.median(shares),
        "share_min": min(shares),
        "share_max": max(shares),
        "generator_busy": statistics.median(one["generator_busy"] for one in runs[kind]),
        "p99_ms": statistics.median(one["latency_ms"]["p99"] for one in runs[kind]),
    }


def _table(summary: dict[str, dict[str, float]]) -> Table:
    rows = []
    notes = ["the consumers' own events are published beside the load in every run, and count in the rate"]
    for kind, name in NAMES.items():
        one = summary[kind.value]
        taken = one["consumer_events_per_s"]
        rows.append(
            (
                name,
                f"{one['events_per_s'] + LIVE * RATE:,.0f}",
                f"{one['share']:.2f}",
                f"{one['share_min']:.2f} to {one['share_max']:.2f}",
                "" if kind is Kind.NOBODY else f"{taken:,.0f}",
                f"{one['p99_ms']:.0f}",
                f"{one['server_us_per_event']:.2f}",
                f"{one['server_busy']:.2f} / {one['generator_busy']:.2f} / {one['consumers_busy']:.2f}",
            )
        )
        if kind is not Kind.NOBODY and taken < KEPT_UP * RATE:
            notes.append(f"{name}: the slowest took {taken:,.0f} events/s only")
    columns = (
        "beside",
        "events/s",
        "of without",
        "from, to",
        "slowest consumer/s",
        "p99 ms",
        "server µs/event",
        "cores: server / load / consumers",
    )
    return Table("full ingest in batches of 500, UUIDv7, medians", columns, rows, notes)
