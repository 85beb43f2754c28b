"""A server under load: one run on one store, checked against what must have become of the events."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from sekali.bench import proc
from sekali.bench.children import BenchFailed, Server, canned_server, run_load
from sekali.bench.job import Job, LoadResult, Sample
from sekali.bench.options import Notify

HEADROOM_SECONDS = 1.5
QUIET_BUSY = 0.05  # of a core
QUIET_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Headroom:
    """How much faster the generator is than the load it made, against a server that does nothing.

    ``busy`` is the generator's share of a core meanwhile: where it is below 1, it was not the limit even there.
    """

    rate: float
    busy: float

    def over(self, rate: float) -> float:
        """Return how many times the generator's own rate is of ``rate``."""
        return self.rate / rate if rate else 0.0


def headroom(job: Job) -> Headroom:
    """Measure the load of ``job`` against a server that does nothing, as fast as it goes."""
    with canned_server(job.batch) as port:
        idle = msgspec.structs.replace(
            job, port=port, rate=None, seconds=HEADROOM_SECONDS, warmup_s=0.5, watched_pid=None, events_max=None
        )
        result = run_load(idle)
    return Headroom(result.rate, result.generator_cpu_s / result.window_s)


def load_checked(
    server: Server, job: Job, notify: Notify, what: str, watch: Callable[[Sample], None] = lambda _: None
) -> tuple[LoadResult, dict[str, float]]:
    """Run ``job`` against a server, and return what it did and the server's metrics of just this run.

    ``watch`` is called a few times a second meanwhile.

    Raises:
        BenchFailed: the server did not do to every event what it must.

    """
    before = server.metrics()
    stored_before = server.get_json("/stats")["unique_processed"]

    def on_sample(sample: Sample) -> None:
        watch(sample)
        by_time = sample.at_s / (job.warmup_s + job.seconds)
        by_count = 0.0 if job.events_max is None else sample.events / job.events_max
        notify(what, min(max(by_time, by_count), 1.0))

    job = msgspec.structs.replace(job, port=server.port, watched_pid=server.pid)
    result = run_load(job, on_sample)
    after = server.metrics()
    require_right(result, stored_before, server.get_json("/stats"))
    return result, {name: after[name] - before.get(name, 0.0) for name in after}


def wait_until_quiet(server: Server) -> None:
    """Wait until a server has nothing left to do.

    Raises:
        BenchFailed: it never is.

    """
    end_s = time.perf_counter() + QUIET_WAIT_S
    while time.perf_counter() < end_s:
        begun_s, before_s = time.perf_counter(), proc.cpu_s(server.pid)
        time.sleep(0.5)
        if proc.cpu_s(server.pid) - before_s < QUIET_BUSY * (time.perf_counter() - begun_s):
            return
    raise BenchFailed(f"the server is still busy {QUIET_WAIT_S:g} s after its load")


def require_right(result: LoadResult, stored_before: int, stats: dict[str, Any]) -> None:
    """Compare what was answered with what was sent, and with what the server says that it holds.

    ``stored_before`` is how many events it held before.

    Raises:
        BenchFailed: they differ; a figure of a server that is wrong means nothing.

    """
    expected = {
        "stored": (result.stored, result.unique),
        "duplicate": (result.duplicate, result.events - result.unique),
        "conflict": (result.conflict, 0),
        "invalid": (result.invalid, 0),
        "unique_processed of /stats": (stats["unique_processed"], stored_before + result.unique),
    }
    wrong = [f"{name} is {found}, not {wanted}" for name, (found, wanted) in expected.items() if found != wanted]
    if wrong:
        raise BenchFailed(f"the server is wrong: {'; '.join(wrong)} ({result.refused} answers were 503)")


def figures_of(result: LoadResult, metrics: dict[str, float]) -> dict[str, Any]:
    """Return what one run shows."""
    commits = metrics["sekali_commit_seconds_count"]
    return {
        "events_per_s": result.rate,
        "requests": result.requests,
        "events": result.events,
        "unique": result.unique,
        "refused": result.refused,
        "reconnects": result.reconnects,
        "paused_s": result.paused_s,
        "server_us_per_event": per_event_us(result.server_cpu_s, result),
        "generator_us_per_event": per_event_us(result.generator_cpu_s, result),
        "generator_busy": result.generator_cpu_s / result.window_s,
        "server_busy": result.server_cpu_s / result.window_s,
        "events_per_commit": result.events / commits if commits else 0.0,
        "commit_ms_mean": 1000 * metrics["sekali_commit_seconds_sum"] / commits if commits else 0.0,
        "latency_ms": msgspec.to_builtins(result.latency_ms),
    }


def kept_up(figures: dict[str, Any], offered: float) -> bool:
    """Return whether a server answered as much as an open loop of ``offered`` events a second gave it.

    How many requests fall into a window is itself by chance: four standard deviations are allowed for.
    """
    requests = max(figures["requests"], 1)
    return bool(figures["events_per_s"] >= offered * (0.99 - 4 / requests**0.5))


def per_event_us(seconds: float, result: LoadResult) -> float:
    """Return microseconds an event."""
    return 1e6 * seconds / result.window_events if result.window_events else 0.0
