"""Growth: what becomes of rate, memory, disk and start as a store of random ids fills, beside an empty one."""

import statistics
from dataclasses import dataclass
from typing import Any

from sekali.bench import proc
from sekali.bench.children import BenchFailed, Server, run_load
from sekali.bench.events import IdKind
from sekali.bench.job import Job, LoadResult, Sample
from sekali.bench.large import Kept, kept_folder, preload, sizes
from sekali.bench.loaded import figures_of, load_checked, wait_until_quiet
from sekali.bench.options import Notify, Options, Report, Table, part_of
from sekali.bench.targets import Target

SEED = 1
SEED_KILLED = 1000  # the loads that end with a kill: nobody knows how far they came
KILL_AFTER_S = 5.0
_RECENT, _EVENLY, _EMPTY = "large, recent", "large, evenly", "empty"
NAMES = {
    _EMPTY: "empty store, duplicates of the last 10,000",
    _RECENT: "large store, duplicates of the last 10,000",
    _EVENLY: "large store, duplicates of all",
}


@dataclass(slots=True)
class _Filled:
    """The server on the large store, and the number of the next new event of ``SEED``."""

    server: Server
    next_new: int


def run(options: Options, notify: Notify) -> Report:
    """Fill a store, then measure beside an empty one, then stop it and kill it."""
    kept = Kept(seed=SEED, id_kind=IdKind.UUID4, events=options.events)
    with kept_folder(options) as folder, Server(folder, options.settings) as server:
        server.start()
        result, points = preload(server, kept, part_of(notify, 0, 3))
        kept.write(folder)
        filled = {
            "events_per_s": result.events / result.window_s,
            "stored": result.unique,
            "json_bytes": result.body_bytes,
            **sizes(server),
        }
        large = _Filled(server, result.unique)
        windows, peak_bytes = _windows(large, options, part_of(notify, 1, 3))
        ready = _restarts(server, options, part_of(notify, 2, 3))
    figures: dict[str, Any] = {"points": points, "filled": filled, "windows": windows, "ready_s": ready}
    figures["private_bytes_max"] = max([peak_bytes, *(point["private_bytes"] for point in points)])
    figures["disk_bytes_per_json_byte"] = filled["folder_bytes"] / filled["json_bytes"]
    figures["rates"] = {name: statistics.median(one["events_per_s"] for one in some) for name, some in windows.items()}
    return Report(figures, _tables(figures), _targets(figures))


def _windows(large: _Filled, options: Options, notify: Notify) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """Measure the three loads in turn; return the figures of each and the most private memory of the large store."""
    windows: dict[str, list[dict[str, Any]]] = {_EMPTY: [], _RECENT: [], _EVENLY: []}
    memory = [0]

    def watch(sample: Sample) -> None:
        memory.append(proc.private_bytes(large.server.pid))

    steps = 3 * options.rounds
    for number in range(options.rounds):
        for place, name in enumerate(windows):
            # Neither is to carry what the other left to do: merges go on after the load.
            wait_until_quiet(large.server)
            here = part_of(notify, 3 * number + place, steps)
            if name == _EMPTY:
                with options.folder() as folder, Server(folder, options.settings) as server:
                    server.start()
                    job = _job(options, start=0, dup_window=10_000)
                    windows[name].append(figures_of(*load_checked(server, job, here, NAMES[name])))
                continue
            job = _job(options, start=large.next_new, dup_window=None if name == _EVENLY else 10_000)
            result, metrics = load_checked(large.server, job, here, NAMES[name], watch)
            large.next_new += result.unique
            windows[name].append(figures_of(result, metrics))
    return windows, max(memory)


def _job(options: Options, *, start: int, dup_window: int | None) -> Job:
    return Job(
        port=0,
        seed=SEED,
        id_kind=IdKind.UUID4,
        start=start,
        dup_window=dup_window,
        seconds=options.seconds,
        warmup_s=options.warmup_s,
    )


def _restarts(server: Server, options: Options, notify: Notify) -> dict[str, list[float]]:
    """Stop and start it, then kill it under load and start it, ``rounds`` times each; return the seconds to ready."""
    ready: dict[str, list[float]] = {"stopped": [], "killed": []}
    steps = 2 * options.rounds
    for number in range(options.rounds):
        notify("starting after a clean stop", number / steps)
        server.stop()
        server.start()
        ready["stopped"].append(server.ready_s)
    for number in range(options.rounds):
        notify("starting after a kill under load", (options.rounds + number) / steps)
        _kill_under_load(server, seed=SEED_KILLED + number, after_s=min(KILL_AFTER_S, options.seconds))
        ready["killed"].append(server.ready_s)
    server.stop()
    return ready


def _kill_under_load(server: Server, *, seed: int, after_s: float) -> LoadResult:
    before = server.get_json("/stats")["unique_processed"]

    def kill(sample: Sample) -> None:
        if sample.at_s >= after_s:
            server.kill()

    job = Job(port=server.port, seed=seed, id_kind=IdKind.UUID4, seconds=after_s + 60)
    result = run_load(job, kill, may_fail=True)
    if result.failure is None:
        raise BenchFailed("the server was killed and the load did not notice")
    server.start()
    stored = server.get_json("/stats")["unique_processed"] - before
    if not result.stored <= stored <= result.unique:
        raise BenchFailed(
            f"after a kill {stored} events are stored; {result.stored} were acknowledged and {result.unique} sent"
        )
    return result


def _targets(figures: dict[str, Any]) -> list[Target]:
    rates, ready = figures["rates"], figures["ready_s"]
    stored = f"{figures['filled']['stored'] / 1e6:,.3g} million stored"
    of_empty = "{:.2f} of the rate with an empty store"
    return [
        Target(
            group=2,
            what=f"UUIDv4, {stored}, duplicates of the last 10,000",
            measured=rates[_RECENT] / rates[_EMPTY],
            bound=0.8,
            text=of_empty,
        ),
        Target(
            group=2,
            what=f"UUIDv4, {stored}, duplicates of all",
            measured=rates[_EVENLY] / rates[_EMPTY],
            bound=0.5,
            text=of_empty,
        ),
        *(
            Target(
                group=4,
                what=f"ready {what}, {stored}",
                measured=statistics.median(ready[key]),
                bound=bound,
                text="{:.1f} s",
                at_most=True,
            )
            for key, what, bound in (("stopped", "after a clean stop", 3.0), ("killed", "after a kill", 10.0))
        ),
        Target(
            group=4,
            what=f"private memory under load, the most, {stored}",
            measured=figures["private_bytes_max"] / 1e6,
            bound=400,
            text="{:.0f} MB",
            at_most=True,
        ),
        Target(
            group=5,
            what="disk, indexes and write-ahead log included, 20 % duplicates",
            measured=figures["disk_bytes_per_json_byte"],
            bound=1.3,
            text="{:.2f} bytes a byte of JSON received",
            at_most=True,
        ),
    ]


def _tables(figures: dict[str, Any]) -> list[Table]:
    growth = [
        (
            f"{point['stored']:,}",
            f"{point['events_per_s']:,.0f}",
            *(f"{point[key] / 1e6:,.0f}" for key in ("private_bytes", "wal_bytes", "folder_bytes")),
        )
        for point in figures["points"][:: max(len(figures["points"]) // 10, 1)]
    ]
    base = figures["rates"][_EMPTY]
    windows = []
    for name, some in figures["windows"].items():
        rates = [one["events_per_s"] for one in some]
        p99 = statistics.median(one["latency_ms"]["p99"] for one in some)
        median = figures["rates"][name]
        ends = f"{min(rates):,.0f} to {max(rates):,.0f}"
        windows.append((NAMES[name], f"{median:,.0f}", ends, f"{median / base:.2f}", f"{p99:.0f}"))
    columns = ("stored events", "events/s", "private MB", "WAL MB", "folder MB")
    return [
        Table("growth: UUIDv4, batches of 500, 20 % duplicates of the last 10,000", columns, growth),
        Table("large beside empty", ("load", "events/s", "from, to", "of empty", "p99 ms"), windows),
    ]
