"""Reads of a large store, at rest and while it takes in half of what it can; and the export of everything."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sekali.bench.children import Server
from sekali.bench.job import Job, LoadResult, Sample
from sekali.bench.large import Kept, large_store
from sekali.bench.loaded import load_checked, wait_until_quiet
from sekali.bench.options import Notify, Options, Report, Table, part_of
from sekali.bench.reader import Reader, draw_paths
from sekali.bench.targets import Target

READ_RUNS = 3  # reading while writing takes so many times --seconds: p99 wants many requests
P99_MS_MAX = 5.0
EXPORT_EVENTS_PER_S = 300_000
EXPORT_S_MAX = 1800.0
_SEED_FIRST = 1_000_000  # seeds that no other benchmark writes into a store


class _Measurement:
    """One server on one store, and the loads that are put on it."""

    def __init__(self, server: Server, kept: Kept, options: Options) -> None:
        self._server = server
        self._kept = kept
        self._options = options
        self._paths = draw_paths(kept, np.random.default_rng(1))

    def stored(self) -> int:
        """Return how many events there are."""
        return int(self._server.get_json("/stats")["unique_processed"])

    def _job(self, *, seconds: float, rate: float | None) -> Job:
        # New events of a seed of their own, whose event times come after all others.
        stored = self.stored()
        return Job(
            port=0,
            seed=_SEED_FIRST + stored,
            id_kind=self._kept.id_kind,
            start=stored,
            oldest=stored,
            seconds=seconds,
            warmup_s=self._options.warmup_s,
            rate=rate,
        )

    def maximum(self, notify: Notify) -> LoadResult:
        """Write as fast as it goes."""
        job = self._job(seconds=self._options.seconds, rate=None)
        return load_checked(self._server, job, notify, "writing as fast as it goes")[0]

    @contextmanager
    def writing(self, seconds: float, rate: float, notify: Notify, what: str) -> Iterator["Future[LoadResult]"]:
        """Write at ``rate`` for ``seconds`` meanwhile, from when it has warmed up; at the end, wait for its end."""
        job = self._job(seconds=seconds, rate=rate)
        warm = Event()

        def watch(sample: Sample) -> None:
            if sample.at_s >= job.warmup_s:
                warm.set()

        with ThreadPoolExecutor(1) as pool:
            load = pool.submit(lambda: load_checked(self._server, job, notify, what, watch)[0])
            load.add_done_callback(lambda _: warm.set())
            warm.wait()
            yield load

    def read(self, ended: Callable[[], bool]) -> dict[str, NDArray[np.float64]]:
        """Read by every road in turn, once at least, until it has ``ended``; return milliseconds by kind."""
        taken_ms: dict[str, list[float]] = {}
        with Reader(self._server.port) as reader:
            while True:
                for kind, path in next(self._paths):
                    taken_ms.setdefault(kind, []).append(reader.timed_ms(kind, path))
                if ended():
                    break
        return {kind: np.array(some) for kind, some in taken_ms.items()}

    def export(self, ended: Callable[[], bool]) -> dict[str, float]:
        """Export all that is there now."""
        with Reader(self._server.port) as reader:
            events, seconds = reader.export(self.stored(), ended)
        return {"events": events, "seconds": seconds, "events_per_s": events / seconds}


def run(options: Options, notify: Notify) -> Report:
    """Read at rest, find the maximum of writing, read at half of it; export at rest and at half of it."""
    with large_store(options, part_of(notify, 0, 2)) as (server, kept):
        then = part_of(notify, 1, 2)
        one = _Measurement(server, kept, options)
        figures: dict[str, Any] = {"stored": one.stored()}
        wait_until_quiet(server)
        then("reading at rest", 0.0)
        rest = one.read(_after(options.seconds))
        maximum = one.maximum(part_of(then, 1, 5))
        half = maximum.rate / 2
        what = "reading while writing at half of the maximum"
        with one.writing(READ_RUNS * options.seconds, half, part_of(then, 2, 5), what) as load:
            busy = one.read(load.done)
            figures["writing"] = _writing(maximum, load.result())
        wait_until_quiet(server)
        part_of(then, 3, 5)("exporting at rest", 0.0)
        figures["export"] = {"at rest": one.export(lambda: False)}
        export_s = min(2 * figures["export"]["at rest"]["seconds"] + 1, EXPORT_S_MAX)
        with one.writing(export_s, half, part_of(then, 4, 5), "exporting while writing at half") as load:
            figures["export"]["while writing"] = one.export(load.done)
            figures["writing_during_export"] = _writing(maximum, load.result())
        server.stop()
    figures["reads"] = {kind: {"at rest": _summary(rest[kind]), "while writing": _summary(busy[kind])} for kind in rest}
    return Report(figures, _tables(figures), _targets(figures))


def _after(seconds: float) -> Callable[[], bool]:
    end_s = time.perf_counter() + seconds
    return lambda: time.perf_counter() > end_s


def _writing(maximum: LoadResult, load: LoadResult) -> dict[str, float]:
    return {
        "maximum_events_per_s": maximum.rate,
        "events_per_s": load.rate,
        "p50_ms": load.latency_ms.p50,
        "p99_ms": load.latency_ms.p99,
        "refused": load.refused,
    }


def _summary(taken_ms: NDArray[np.float64]) -> dict[str, float]:
    p50, p99 = np.percentile(taken_ms, (50, 99)).tolist()
    return {"count": len(taken_ms), "p50_ms": p50, "p99_ms": p99, "max_ms": float(taken_ms.max())}


def _tables(figures: Mapping[str, Any]) -> list[Table]:
    rows = [
        (
            kind,
            *(
                f"{one[when][key]:.2f}"
                for when in ("at rest", "while writing")
                for key in ("p50_ms", "p99_ms", "max_ms")
            ),
            f"{one['while writing']['count']:,}",
        )
        for kind, one in figures["reads"].items()
    ]
    writing = figures["writing"]
    notes = [
        f"writing {writing['events_per_s']:,.0f} events/s meanwhile, the maximum is "
        f"{writing['maximum_events_per_s']:,.0f}; p99 of writing {writing['p99_ms']:.0f} ms"
    ]
    exports = [
        (f"everything as NDJSON, {when}", f"{one['events']:,}", f"{one['seconds']:.1f}", f"{one['events_per_s']:,.0f}")
        for when, one in figures["export"].items()
    ]
    columns = ("page of 100", "p50 ms at rest", "p99", "max", "p50 ms while writing", "p99", "max", "requests")
    return [
        Table(f"reads of {figures['stored']:,} events, one after the other over one connection", columns, rows, notes),
        Table("export", ("what", "events", "s", "events/s"), exports),
    ]


def _targets(figures: Mapping[str, Any]) -> list[Target]:
    stored = f"{figures['stored'] / 1e6:,.3g} million stored"
    pages = [
        Target(
            group=4,
            what=f"{kind}, while writing at half speed, {stored}",
            measured=one["while writing"]["p99_ms"],
            bound=P99_MS_MAX,
            text="p99 {:.1f} ms",
            at_most=True,
        )
        for kind, one in figures["reads"].items()
    ]
    return [
        *pages,
        Target(
            group=4,
            what=f"NDJSON export of everything, {stored}",
            measured=figures["export"]["at rest"]["events_per_s"],
            bound=EXPORT_EVENTS_PER_S,
            text="{:,.0f} events/s",
        ),
    ]
