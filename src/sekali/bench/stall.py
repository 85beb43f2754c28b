"""Stalls: the longest answer in minutes of steady load, through merges and checkpoints, beside a bare fsync."""

import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sekali.bench.children import BenchFailed, Server
from sekali.bench.events import IdKind
from sekali.bench.job import Job
from sekali.bench.large import DISK_BYTES_PER_EVENT, require_disk
from sekali.bench.loaded import figures_of, kept_up, load_checked, wait_until_quiet
from sekali.bench.machine import time_fsync_ms
from sekali.bench.options import Notify, Options, Report, Table, part_of
from sekali.bench.targets import Target

SHARE = 0.7  # of the maximum
MAXIMUM_SECONDS = 15.0
PROBE_EVERY_S = 0.05
MEDIANS_MAX = 10.0
FSYNCS_MAX = 3.0


class FsyncProbe:
    """A thread that writes 4 KiB and syncs them every ``PROBE_EVERY_S``: what the disk alone takes meanwhile.

    ``taken`` are (seconds since its start, milliseconds), in order.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "fsync-probe"
        self._ended = threading.Event()
        self.taken: list[tuple[float, float]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Probe while the body runs."""
        thread = threading.Thread(target=self._run, name="fsync-probe", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        begun_s = time.perf_counter()
        with self._path.open("wb", buffering=0) as file:
            while not self._ended.wait(PROBE_EVERY_S):
                at_s = time.perf_counter() - begun_s
                self.taken.append((at_s, time_fsync_ms(file.fileno())))
                if os.lseek(file.fileno(), 0, os.SEEK_CUR) >= 1 << 24:
                    os.lseek(file.fileno(), 0, os.SEEK_SET)

    def max_by_second(self) -> list[float]:
        """Return the longest of each second since the start."""
        longest = [0.0] * (int(self.taken[-1][0]) + 1 if self.taken else 0)
        for at_s, taken_ms in self.taken:
            longest[int(at_s)] = max(longest[int(at_s)], taken_ms)
        return longest


def run(options: Options, notify: Notify) -> Report:
    """Find the maximum of batches of random ids, then send 70 % of it for ``seconds`` in an open loop."""
    with options.folder() as folder, Server(folder, options.settings) as server:
        server.start()
        first = Job(
            port=0, id_kind=IdKind.UUID4, seconds=min(options.seconds, MAXIMUM_SECONDS), warmup_s=options.warmup_s
        )
        maximum, _ = load_checked(server, first, part_of(notify, 0, 10), "the maximum")
        rate = SHARE * maximum.rate
        require_disk(folder, round(rate * options.seconds * DISK_BYTES_PER_EVENT))
        wait_until_quiet(server)
        probe = FsyncProbe(folder)
        steady = Job(
            port=0,
            id_kind=IdKind.UUID4,
            seconds=options.seconds,
            warmup_s=options.warmup_s,
            start=maximum.unique,
            rate=rate,
        )
        with probe.running():
            result, metrics = load_checked(
                server,
                steady,
                lambda what, done: notify(what, 0.1 + 0.9 * done),
                f"steady load of {rate:,.0f} events/s",
            )
        server.stop()
    if not probe.taken:
        raise BenchFailed("the load ended before one bare fsync was measured: give more --seconds")
    bare_ms = [taken_ms for _, taken_ms in probe.taken]
    figures = {
        "maximum_events_per_s": maximum.rate,
        "offered_events_per_s": rate,
        "steady": figures_of(result, metrics),
        "fsync_ms": {
            "count": len(bare_ms),
            "p50": statistics.median(bare_ms),
            "max": max(bare_ms),
            "max_by_second": probe.max_by_second(),
        },
    }
    return Report(figures, [_table(figures)], [_target(figures)])


def _target(figures: dict[str, Any]) -> Target:
    latency, bare = figures["steady"]["latency_ms"], figures["fsync_ms"]
    by_median, by_fsync = MEDIANS_MAX * latency["p50"], FSYNCS_MAX * bare["max"]
    reason = (
        f"{MEDIANS_MAX:g} medians of {latency['p50']:.1f} ms"
        if by_median >= by_fsync
        else f"{FSYNCS_MAX:g} of the longest bare fsync, {bare['max']:.1f} ms"
    )
    seconds = len(latency["max_by_second"])
    return Target(
        group=7,
        what=f"longest answer in {seconds / 60:.2g} minutes at {SHARE:.0%} of the maximum; the bound is {reason}",
        measured=latency["max"],
        bound=max(by_median, by_fsync),
        text="{:.0f} ms",
        at_most=True,
    )


def _table(figures: dict[str, Any]) -> Table:
    steady, bare = figures["steady"], figures["fsync_ms"]
    latency = steady["latency_ms"]
    cells = [f"{latency[key]:.1f}" for key in ("p50", "p99", "p999", "max")]
    rows = [
        ("answers", f"{steady['events_per_s']:,.0f} events/s", *cells),
        ("bare 4 KiB fsync", f"{bare['count']:,}", f"{bare['p50']:.1f}", "", "", f"{bare['max']:.1f}"),
    ]
    notes = []
    if not kept_up(steady, figures["offered_events_per_s"]):
        notes.append("the server did not keep up with the load, so requests waited longer and longer")
    if steady["refused"]:
        notes.append(f"{steady['refused']} answers were 503 and the requests sent again")
    title = f"steady load of {figures['offered_events_per_s']:,.0f} events/s, {SHARE:.0%} of the maximum measured first"
    return Table(title, ("", "load", "p50 ms", "p99", "p99.9", "max"), rows, notes)
