"""The dedup index alone: its rate, memory and disk against the number of keys, beside its rate at one million."""

import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sekali.bench.children import BenchFailed, watchdog_running
from sekali.bench.index_load import IndexJob, Point
from sekali.bench.large import require_disk
from sekali.bench.options import Notify, Options, Report, Table
from sekali.bench.targets import BESIDE, Target

SMALL_KEYS = 1_000_000
POINTS = 100
CONSTANT_KEYS = 5_000_000  # up to here the tables in memory, a constant, are what private memory is
_SLOWEST_KEYS_PER_S = 20_000
_DISK_BYTES_PER_KEY = 60  # 20 and as much again for each of two merges


def run(options: Options, notify: Notify) -> Report:
    """Fill an index with a million keys ``rounds`` times, then one with ``keys``."""
    small_keys = min(SMALL_KEYS, options.keys)
    small: list[list[Point]] = []
    for number in range(options.rounds):
        notify("index, 1 million keys", 0.1 * number / options.rounds)
        with options.folder() as folder:
            small.append(_fill(folder, small_keys, 10, lambda keys: None))
    with options.folder() as folder:
        require_disk(folder, options.keys * _DISK_BYTES_PER_KEY)
        what = f"index, {options.keys:,} keys"
        large = _fill(folder, options.keys, POINTS, lambda keys: notify(what, 0.1 + 0.9 * keys / options.keys))
    return _report(small, large)


def _fill(folder: Path, keys: int, points: int, on_point: Callable[[int], None]) -> list[Point]:
    """Fill an index in a process of its own.

    Raises:
        BenchFailed: it was wrong, or too slow.

    """
    job = IndexJob(str(folder), keys, max(keys // points, 1))
    process = subprocess.Popen(
        [sys.executable, "-m", "sekali.bench.index_load"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    found: list[Point] = []
    limit_s = 60 + keys / _SLOWEST_KEYS_PER_S
    with process, watchdog_running(threading.Timer(limit_s, process.kill)):
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(msgspec.json.encode(job))
        process.stdin.close()
        try:
            for line in process.stdout:
                found.append(msgspec.json.decode(line, type=Point))
                on_point(found[-1].keys)
        except BaseException:
            process.kill()
            raise
        errors = process.stderr.read().decode(errors="replace")
    if process.returncode != 0 or not found:
        raise BenchFailed(f"the index ended with {process.returncode} (limit {limit_s:g} s): {errors[-2000:]}")
    return found


def rate(points: Sequence[Point]) -> float:
    """Return keys looked up a second over some points."""
    points = [point for point in points if point.looked_up]
    return sum(point.looked_up for point in points) / sum(point.busy_s for point in points)


def _report(small: list[list[Point]], large: list[Point]) -> Report:
    # The rate at a size is that from half of it on: so there are runs, and merges of each size have their share.
    rates_small = [rate(points[len(points) // 2 :]) for points in small]
    *filling, end = large
    half = len(filling) // 2
    constant = [point.private_bytes for point in filling if point.keys <= CONSTANT_KEYS] or [0]
    private_bytes = max(point.private_bytes for point in filling)
    figures: dict[str, Any] = {
        "keys": end.keys,
        "rate_at_1_million": statistics.median(rates_small),
        "rates_at_1_million": rates_small,
        "rate_at_end": rate(filling[half:]),
        "private_bytes_per_key": (private_bytes - max(constant)) / end.keys,
        "private_bytes": private_bytes,
        "disk_bytes_per_key": end.disk_bytes / end.keys,
        "disk_bytes_per_key_while_merging": max(point.disk_bytes / point.keys for point in filling[half:]),
        "points": [(point.keys, rate([point]), point.private_bytes, point.disk_bytes) for point in filling],
    }
    rows = [
        (
            f"{point.keys:,}",
            f"{rate([point]):,.0f}",
            f"{point.private_bytes / 1e6:.0f}",
            f"{point.disk_bytes / 1e6:.0f}",
        )
        for point in filling[max(len(filling) // 10, 1) - 1 :: max(len(filling) // 10, 1)]
    ]
    small_row = ("1 million, median", f"{figures['rate_at_1_million']:,.0f}", "", "")
    title = "index alone: batches of 4,000 random hashes, 3,200 new and 800 recent"
    return Report(
        figures,
        [Table(title, ("keys", "keys/s", "private MB", "disk MB"), [small_row, *rows])],
        _targets(figures),
    )


def _targets(figures: dict[str, Any]) -> list[Target]:
    size = f"{figures['keys'] / 1e6:,.3g} million keys"
    return [
        Target(
            group=2,
            what=f"index alone at {size}",
            measured=figures["rate_at_end"] / figures["rate_at_1_million"],
            bound=0.8,
            text="{:.2f} of its rate at 1 million",
        ),
        Target(
            group=BESIDE,
            what=f"private memory of the index, {size}, beyond a constant",
            measured=figures["private_bytes_per_key"],
            bound=4,
            text="{:.2f} bytes a key",
            at_most=True,
        ),
        Target(
            group=BESIDE,
            what=f"disk of the index, {size}, merges done",
            measured=figures["disk_bytes_per_key"],
            bound=20,
            text="{:.1f} bytes a key",
            at_most=True,
        ),
    ]
