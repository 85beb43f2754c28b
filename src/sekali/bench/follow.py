"""Followers: many idle ones beside full ingest, and many live ones that each get everything as it is committed."""

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from sekali.bench import proc
from sekali.bench.children import BenchFailed, Server
from sekali.bench.followers import FollowJob, FollowResult
from sekali.bench.job import Job
from sekali.bench.loaded import figures_of, load_checked, wait_until_quiet
from sekali.bench.options import Notify, Options, Report, Table, part_of
from sekali.bench.targets import Target

IDLE = 1000
LIVE = 100
LIVE_EVENTS_PER_S = 2000
IDLE_SHARE_MIN = 0.95
REST_S = 5.0
CONNECTIONS_BESIDE = 200
WITHOUT, WITH = "no followers", "idle followers"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load that live followers follow."""

    batch: int
    connections: int
    rate: int

    @property
    def name(self) -> str:
        """What it is, for people."""
        kind = "single events" if self.batch == 1 else f"batches of {self.batch}"
        return f"{self.rate:,} events/s in {kind}"


# A little more than what is to be reached, because an open loop brings a little more or less than it should.
SCENARIOS = (
    Scenario(1, 64, 2100),
    Scenario(20, 8, 2100),
    Scenario(100, 8, 5000),
    Scenario(100, 8, 10_000),
)


class Followers:
    """The process of the followers of one run."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def wait_until_open(self) -> None:
        """Wait until all are connected.

        Raises:
            BenchFailed: they cannot.

        """
        self._line(b"ready\n")

    def come_to(self, seq: int) -> FollowResult:
        """Wait until all have come to the last event and return what they got.

        Raises:
            BenchFailed: it was not right.

        """
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d\n" % seq)
        self._process.stdin.flush()
        return self._line(None)

    def _line(self, expected: bytes | None) -> FollowResult:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line == expected:
            return FollowResult()
        result = msgspec.json.decode(line, type=FollowResult) if line else FollowResult(failure="their process ended")
        if result.failure is not None:
            raise BenchFailed(f"followers: {result.failure}")
        return result


@contextlib.contextmanager
def _following(job: FollowJob) -> Iterator[Followers]:
    """Connect followers, and have them while the body runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sekali.bench.followers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        try:
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(job) + b"\n")
            process.stdin.flush()
            followers = Followers(process)
            followers.wait_until_open()
            yield followers
        finally:
            process.kill()


def run(options: Options, notify: Notify) -> Report:
    """Measure full ingest without and with idle followers side by side, then loads that live ones follow."""
    idle_wanted = options.only.lower() in WITH
    scenarios = [one for one in SCENARIOS if options.only.lower() in one.name]
    if not idle_wanted and not scenarios:
        raise BenchFailed(f"--only {options.only}: there is {WITH}; {'; '.join(one.name for one in SCENARIOS)}")
    settings = dict(options.settings) | {"CONNECTIONS_MAX": str(IDLE + CONNECTIONS_BESIDE)}
    idle: dict[str, list[dict[str, Any]]] = {WITHOUT: [], WITH: []}
    live: dict[str, list[dict[str, Any]]] = {one.name: [] for one in scenarios}
    per_round = 2 * idle_wanted + len(scenarios)
    steps = options.rounds * per_round
    for number in range(options.rounds):
        step = number * per_round
        if idle_wanted:
            for name in (WITHOUT, WITH) if number % 2 == 0 else (WITH, WITHOUT):
                idle[name].append(_beside(name, options, settings, part_of(notify, step, steps)))
                step += 1
        for scenario in scenarios:
            live[scenario.name].append(_live(scenario, options, settings, part_of(notify, step, steps)))
            step += 1
    figures: dict[str, Any] = {"idle": _idle_summary(idle) if idle_wanted else {}, "live": _live_summary(live)}
    tables = ([_idle_table(figures["idle"], idle)] if idle_wanted else []) + (
        [_live_table(figures["live"])] if live else []
    )
    return Report(figures | {"runs": {"idle": idle, "live": live}}, tables, _targets(figures))


def _beside(name: str, options: Options, settings: dict[str, str], notify: Notify) -> dict[str, Any]:
    """Measure full ingest, beside idle followers or without."""
    with options.folder() as folder, Server(folder, settings) as server, contextlib.ExitStack() as stack:
        server.start()
        of_followers: dict[str, Any] = {}
        if name == WITH:
            before_bytes = proc.private_bytes(server.pid)
            followers = stack.enter_context(_following(FollowJob(port=server.port, followers=IDLE, idle=True)))
            wait_until_quiet(server)
            of_followers["bytes_per_follower"] = (proc.private_bytes(server.pid) - before_bytes) / IDLE
            begun_s, before_s = time.perf_counter(), proc.cpu_s(server.pid)
            time.sleep(REST_S)
            of_followers["busy_at_rest"] = (proc.cpu_s(server.pid) - before_s) / (time.perf_counter() - begun_s)
        job = Job(port=0, seconds=options.seconds, warmup_s=options.warmup_s)
        figures = figures_of(*load_checked(server, job, notify, name))
        if name == WITH:
            followers.come_to(0)
        stack.close()
        server.stop()
    return figures | of_followers


def _live(scenario: Scenario, options: Options, settings: dict[str, str], notify: Notify) -> dict[str, Any]:
    """Let live followers follow a load of an open loop, all of it new events, and see that each gets all of it."""
    job = Job(
        port=0,
        batch=scenario.batch,
        connections=scenario.connections,
        rate=scenario.rate,
        dup_ratio=0.0,
        seconds=options.seconds,
        warmup_s=options.warmup_s,
    )
    with options.folder() as folder, Server(folder, settings) as server:
        server.start()
        with _following(FollowJob(port=server.port, followers=LIVE)) as followers:
            try:
                figures = figures_of(*load_checked(server, job, notify, f"{LIVE} live followers, {scenario.name}"))
                got = followers.come_to(int(server.get_json("/stats")["unique_processed"]))
            except BenchFailed as failure:
                return {"failure": str(failure)}  # more than the machine can do, which is a finding about this load
        server.stop()
    return figures | {
        "follower_events_per_s": got.events_per_s,
        "follower_latency_ms": msgspec.to_builtins(got.latency_ms),
    }


def _idle_summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    def median(name: str, key: str) -> float:
        found: float = statistics.median(one[key] for one in runs[name])
        return found

    rates = {name: median(name, "events_per_s") for name in runs}
    return {
        "events_per_s": rates,
        "share": rates[WITH] / rates[WITHOUT],
        "server_us_per_event": {name: median(name, "server_us_per_event") for name in runs},
        "bytes_per_follower": median(WITH, "bytes_per_follower"),
        "busy_at_rest": median(WITH, "busy_at_rest"),
    }


def _live_summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    summary: dict[str, dict[str, Any]] = {}
    for name, some in runs.items():
        if failures := [one["failure"] for one in some if "failure" in one]:
            summary[name] = {"failures": failures}
            continue
        summary[name] = {
            key: statistics.median(one[key] for one in some)
            for key in ("events_per_s", "follower_events_per_s", "server_busy")
        }
        for whose, key in (("follower", "follower_latency_ms"), ("publisher", "latency_ms")):
            for at in ("p50", "p99", "max"):
                summary[name][f"{whose}_{at}_ms"] = statistics.median(one[key][at] for one in some)
    return summary


def _idle_table(summary: dict[str, Any], runs: dict[str, list[dict[str, Any]]]) -> Table:
    rows = []
    for name, some in runs.items():
        rates = [one["events_per_s"] for one in some]
        rows.append(
            (
                name if name == WITHOUT else f"{IDLE:,} {name}",
                f"{summary['events_per_s'][name]:,.0f}",
                f"{min(rates):,.0f} to {max(rates):,.0f}",
                f"{summary['events_per_s'][name] / summary['events_per_s'][WITHOUT]:.2f}",
                f"{summary['server_us_per_event'][name]:.2f}",
            )
        )
    note = (
        f"an idle follower takes {summary['bytes_per_follower'] / 1024:.1f} KiB of the server's memory; {IDLE:,} of "
        f"them at rest take {summary['busy_at_rest']:.1%} of a core"
    )
    columns = ("batches of 500, UUIDv7", "events/s", "from, to", "of without", "server µs/event")
    return Table("full ingest beside followers of topics to which nobody publishes, medians", columns, rows, [note])


def _live_table(summary: dict[str, dict[str, Any]]) -> Table:
    rows: list[tuple[str, ...]] = []
    notes = []
    for name, one in summary.items():
        if "failures" in one:
            rows.append((name, "failed", *[""] * 6))
            notes += [f"{name}: {failure}" for failure in one["failures"]]
            continue
        rows.append(
            (
                name,
                f"{one['events_per_s']:,.0f}",
                f"{one['follower_events_per_s']:,.0f}",
                *(f"{one[f'follower_{at}_ms']:.1f}" for at in ("p50", "p99", "max")),
                f"{one['publisher_p99_ms']:.1f}",
                f"{one['server_busy']:.2f}",
            )
        )
    columns = (
        "load",
        "committed/s",
        "slowest follower/s",
        "p50 ms",
        "p99",
        "max",
        "publishers' p99",
        "server, cores",
    )
    title = f"{LIVE} followers of everything; from when an event's commit began to when a follower has it, medians"
    return Table(title, columns, rows, notes)


def _targets(figures: dict[str, Any]) -> list[Target]:
    found = []
    if figures["idle"]:
        what = f"full ingest beside {IDLE:,} idle followers"
        share = figures["idle"]["share"]
        found.append(
            Target(group=9, what=what, measured=share, bound=IDLE_SHARE_MIN, text="{:.2f} of the rate without")
        )
    for scenario in SCENARIOS[:2]:
        if (one := figures["live"].get(scenario.name)) is not None:
            found.append(
                Target(
                    group=9,
                    what=f"each of {LIVE} live followers, {scenario.name}",
                    measured=one.get("follower_events_per_s"),
                    bound=LIVE_EVENTS_PER_S,
                    text="{:,.0f} events/s",
                )
            )
    return found
