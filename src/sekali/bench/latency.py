"""Latency at a given load: publishers that do not wait for one another (open loop), from when a request was due."""

import statistics
from dataclasses import dataclass
from typing import Any

import msgspec

from sekali.bench.children import BenchFailed, Server, canned_server, run_load
from sekali.bench.job import Job
from sekali.bench.loaded import figures_of, kept_up, load_checked, wait_until_quiet
from sekali.bench.options import Notify, Options, Report, Table, part_of
from sekali.bench.targets import Target

FLOOR_SECONDS = 1.5
PERCENTILES = ("p50", "p90", "p99", "p999", "max")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load of so many events a second; ``p99_ms_max`` where a target stands for it."""

    batch: int
    connections: int
    rate: int
    p99_ms_max: float | None = None

    @property
    def name(self) -> str:
        """What it is, for people."""
        kind = "single events" if self.batch == 1 else f"batches of {self.batch}"
        return f"{kind} over {self.connections} connections, {self.rate:,} events/s"

    def job(self, options: Options, seed: int) -> Job:
        """Return the load, of a seed of its own because one that failed may have been stored in part."""
        return Job(
            port=0,
            batch=self.batch,
            connections=self.connections,
            rate=self.rate,
            seconds=options.seconds,
            warmup_s=options.warmup_s,
            seed=seed,
        )


SCENARIOS = (
    Scenario(1, 64, 5_000, p99_ms_max=3.0),
    Scenario(1, 64, 20_000, p99_ms_max=10.0),
    Scenario(500, 8, 50_000),
    Scenario(500, 8, 100_000),
    Scenario(500, 8, 200_000),
)


def run(options: Options, notify: Notify) -> Report:
    """Measure every scenario ``rounds`` times, one after the other in each round, each round on a new store."""
    scenarios = [one for one in SCENARIOS if options.only.lower() in one.name]
    if not scenarios:
        raise BenchFailed(f"--only {options.only}: there is {'; '.join(one.name for one in SCENARIOS)}")
    floors = {}
    for scenario in scenarios:
        notify(f"the generator by itself: {scenario.name}", 0.0)
        floors[scenario.name] = _floor_ms(scenario, options)
    runs: dict[str, list[dict[str, Any]]] = {one.name: [] for one in scenarios}
    steps = options.rounds * len(scenarios)
    for number in range(options.rounds):
        with options.folder() as folder, Server(folder, options.settings) as server:
            server.start()
            for place, scenario in enumerate(scenarios):
                step = number * len(scenarios) + place
                runs[scenario.name].append(_one(server, scenario, options, 1 + step, part_of(notify, step, steps)))
            server.stop()
    summary = {
        one.name: _summary(runs[one.name], one.rate) | {"generator_p99_ms": floors[one.name]} for one in scenarios
    }
    figures = {"summary": summary, "runs": runs}
    return Report(figures, [_table(scenarios, summary)], _targets(scenarios, summary))


def _floor_ms(scenario: Scenario, options: Options) -> float:
    """Return the p99 of the same load against a server that does nothing: what the generator itself adds."""
    with canned_server(scenario.batch) as port:
        job = msgspec.structs.replace(scenario.job(options, 1), port=port, seconds=FLOOR_SECONDS, warmup_s=0.5)
        return run_load(job).latency_ms.p99


def _one(server: Server, scenario: Scenario, options: Options, seed: int, notify: Notify) -> dict[str, Any]:
    wait_until_quiet(server)
    try:
        return figures_of(*load_checked(server, scenario.job(options, seed), notify, scenario.name))
    except BenchFailed as failure:
        # A load that it cannot take is a finding about this load, not the end of the others.
        return {"failure": str(failure)}


def _summary(runs: list[dict[str, Any]], offered: float) -> dict[str, Any]:
    """Return medians over the runs, and the curve of the run in the middle."""
    good = sorted((one for one in runs if "failure" not in one), key=lambda one: one["latency_ms"]["p99"])
    failures = [one["failure"] for one in runs if "failure" in one]
    if not good or failures:
        return {"failures": failures}
    medians: dict[str, Any] = {
        f"{key}_ms": statistics.median(one["latency_ms"][key] for one in good) for key in PERCENTILES
    }
    return medians | {
        "events_per_s": statistics.median(one["events_per_s"] for one in good),
        "curve": good[len(good) // 2]["latency_ms"]["curve"],
        "refused": sum(one["refused"] for one in good),
        "kept_up": all(kept_up(one, offered) for one in good),
    }


def _table(scenarios: list[Scenario], summary: dict[str, dict[str, Any]]) -> Table:
    rows: list[tuple[str, ...]] = []
    notes = []
    for scenario in scenarios:
        one = summary[scenario.name]
        floor = f"{one['generator_p99_ms']:.2f}"
        if "failures" in one:
            rows.append((scenario.name, "failed", *[""] * len(PERCENTILES), floor))
            notes += [f"{scenario.name}: {failure}" for failure in one["failures"]]
            continue
        cells = [f"{one[f'{key}_ms']:.2f}" for key in PERCENTILES]
        rows.append((scenario.name, f"{one['events_per_s']:,.0f}", *cells, floor))
        if not one["kept_up"]:
            notes.append(f"{scenario.name}: the server did not keep up, so requests waited longer and longer")
        if one["refused"]:
            notes.append(f"{scenario.name}: {one['refused']} answers were 503 and the requests sent again")
    columns = ("load offered", "events/s", "p50 ms", "p90", "p99", "p99.9", "max", "generator p99")
    return Table("latency from when a request was due, open loop, medians", columns, rows, notes)


def _targets(scenarios: list[Scenario], summary: dict[str, dict[str, Any]]) -> list[Target]:
    return [
        Target(
            group=3,
            what=scenario.name,
            measured=summary[scenario.name].get("p99_ms"),
            bound=scenario.p99_ms_max,
            text="p99 {:.1f} ms",
            at_most=True,
        )
        for scenario in scenarios
        if scenario.p99_ms_max is not None
    ]
