"""What the server takes in: batches with ids in time order and at random, and single events; beside the ceiling."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from sekali.bench import ceiling, proc
from sekali.bench.children import BenchFailed, Server
from sekali.bench.events import IdKind
from sekali.bench.job import Job
from sekali.bench.loaded import Headroom, figures_of, headroom, load_checked
from sekali.bench.options import Notify, Options, Report, Table, part_of
from sekali.bench.targets import Target

TITLE = "ingest: 20 % duplicates of the last 10,000 ids, medians"
COLUMNS = (
    "load",
    "events/s",
    "from, to",
    "of ceiling",
    "p50 / p99 / max ms",
    "server µs/event",
    "generator µs/event",
    "generator headroom",
    "events/commit",
    "commit ms",
    "disk/JSON bytes",
)
HEADROOM_MIN = 2.0
WARMUP_S = 1.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of load."""

    name: str
    job: Job


SCENARIOS = (
    Scenario("batches of 500, UUIDv7", Job(port=0, warmup_s=WARMUP_S)),
    Scenario("batches of 500, UUIDv4", Job(port=0, warmup_s=WARMUP_S, id_kind=IdKind.UUID4)),
    Scenario("single events over 64 connections", Job(port=0, warmup_s=WARMUP_S, batch=1, connections=64)),
)


def run(options: Options, notify: Notify) -> Report:
    """Measure every scenario ``rounds`` times, one after the other in each round, and the ceiling with them."""
    wanted = [one for one in SCENARIOS if options.only.lower() in one.name.lower()]
    if not wanted:
        raise BenchFailed(f"--only {options.only}: there is {', '.join(one.name for one in SCENARIOS)}")
    scenarios = [Scenario(one.name, _timed(one.job, options.seconds)) for one in wanted]
    notify("the generator by itself", 0.0)
    headrooms = {one.name: headroom(one.job) for one in scenarios}
    per_round = len(scenarios) + (not options.only)
    steps = options.rounds * per_round
    runs: dict[str, list[dict[str, Any]]] = {one.name: [] for one in scenarios}
    ceilings: list[dict[str, Any]] = []
    tuning: ceiling.Tuning | None = None
    for number in range(options.rounds):
        for place, scenario in enumerate(scenarios):
            step = number * per_round + place
            runs[scenario.name].append(_round(scenario, options, part_of(notify, step, steps)))
        if options.only:
            continue
        rows = options.commit_rows or _commit_rows(runs[scenarios[0].name])
        part_of(notify, (number + 1) * per_round - 1, steps)("ceiling", 0.0)
        tuning = tuning or ceiling.tune(options, rows)
        with options.folder() as folder:
            one = ceiling.measure(folder, tuning, commit_rows=rows, seconds=options.seconds)
        ceilings.append({"commit_rows": rows, **asdict(one), "rows_per_s": one.rows_per_s})
    return _report(runs, ceilings, headrooms, tuning)


def _timed(job: Job, seconds: float) -> Job:
    return msgspec.structs.replace(job, seconds=seconds)


def _round(scenario: Scenario, options: Options, notify: Notify) -> dict[str, Any]:
    with options.folder() as folder, Server(folder, options.settings) as server:
        server.start()
        result, metrics = load_checked(server, scenario.job, notify, scenario.name)
        figures = figures_of(result, metrics)
        figures["private_bytes"] = proc.private_bytes(server.pid)
        server.stop()
        figures["disk_bytes_per_json_byte"] = proc.folder_bytes(folder) / result.body_bytes
    return figures


def _commit_rows(runs: Sequence[dict[str, Any]]) -> int:
    """Return how many rows the server wrote in a commit: the events of one without the duplicates."""
    rows: float = statistics.median(one["events_per_commit"] * one["unique"] / one["events"] for one in runs)
    return max(round(rows), 1)


def _report(
    runs: dict[str, list[dict[str, Any]]],
    ceilings: list[dict[str, Any]],
    headrooms: dict[str, Headroom],
    tuning: ceiling.Tuning | None,
) -> Report:
    top = statistics.median([one["rows_per_s"] for one in ceilings] or [0.0]) / (1 - ceiling.DUP_RATIO)
    summary: dict[str, dict[str, float]] = {}
    notes = []
    for name, some in runs.items():
        medians = {key: statistics.median(one[key] for one in some) for key in _MEDIANS}
        latency = {key: statistics.median(one["latency_ms"][key] for one in some) for key in ("p50", "p99", "max")}
        room = headrooms[name].over(medians["events_per_s"])
        summary[name] = medians | {f"{key}_ms": value for key, value in latency.items()}
        summary[name] |= {"of_ceiling": medians["events_per_s"] / top if top else 0.0, "generator_headroom": room}
        if room < HEADROOM_MIN:
            notes.append(f"{name}: the generator by itself is only {room:.1f} times as fast; it may be the limit")
        refused = sum(one["refused"] for one in some)
        if refused:
            notes.append(f"{name}: {refused} answers were 503 and the requests sent again")
    figures = {
        "summary": summary,
        "ceiling": {"events_per_s": top, "tuning": tuning and asdict(tuning), "runs": ceilings},
        "generator": {name: asdict(one) for name, one in headrooms.items()},
        "runs": runs,
    }
    return Report(figures, [_table(summary, runs, top, ceilings, notes)], _targets(summary))


def _targets(summary: dict[str, dict[str, float]]) -> list[Target]:
    found = []
    if (v7 := summary.get(SCENARIOS[0].name)) is not None:
        what = "batches of 500 over 8 connections, UUIDv7"
        rate, share = v7["events_per_s"], v7["of_ceiling"]
        found.append(Target(group=1, what=what, measured=rate, bound=300_000, text="{:,.0f} events/s"))
        if share:
            found.append(Target(group=1, what=what, measured=share, bound=0.5, text="{:.2f} of the ceiling"))
    if (singles := summary.get(SCENARIOS[2].name)) is not None:
        rate = singles["events_per_s"]
        found.append(Target(group=3, what=SCENARIOS[2].name, measured=rate, bound=20_000, text="{:,.0f} events/s"))
    return found


_MEDIANS = (
    "events_per_s",
    "server_us_per_event",
    "generator_us_per_event",
    "server_busy",
    "generator_busy",
    "events_per_commit",
    "commit_ms_mean",
    "disk_bytes_per_json_byte",
    "private_bytes",
)


def _table(
    summary: dict[str, dict[str, float]],
    runs: dict[str, list[dict[str, Any]]],
    top: float,
    ceilings: list[dict[str, Any]],
    notes: list[str],
) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, one in summary.items():
        rates = [run["events_per_s"] for run in runs[name]]
        rows.append(
            (
                name,
                f"{one['events_per_s']:,.0f}",
                f"{min(rates):,.0f} to {max(rates):,.0f}",
                f"{one['of_ceiling']:.2f}" if top else "",
                f"{one['p50_ms']:.1f} / {one['p99_ms']:.1f} / {one['max_ms']:.0f}",
                f"{one['server_us_per_event']:.2f}",
                f"{one['generator_us_per_event']:.2f}",
                f"x{one['generator_headroom']:.1f}",
                f"{one['events_per_commit']:,.0f}",
                f"{one['commit_ms_mean']:.1f}",
                f"{one['disk_bytes_per_json_byte']:.2f}",
            )
        )
    if not ceilings:
        return Table(TITLE, COLUMNS, rows, notes)
    rates = [one["rows_per_s"] / (1 - ceiling.DUP_RATIO) for one in ceilings]
    commit_rows = round(statistics.median(one["commit_rows"] for one in ceilings))
    ends = f"{min(rates):,.0f} to {max(rates):,.0f}"
    rows.append((f"ceiling, {commit_rows} rows a commit", f"{top:,.0f}", ends, "1.00", *[""] * 7))
    return Table(TITLE, COLUMNS, rows, notes)
