"""What the figures were measured on, and what a bare fsync costs there."""

import os
import platform
import statistics
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import apsw

from sekali.bench.pauses import WATCH

FSYNC_BYTES = 4096
FSYNC_COUNT = 200


def facts(folder: Path) -> dict[str, Any]:
    """Describe the machine, the programs, and the disk that ``folder`` is on."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "sekali": version("sekali"),
        "commit": _commit(),
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "fsync_ms": fsync_ms(folder),
    }


def fsync_ms(folder: Path) -> dict[str, float]:
    """Return what appending 4 KiB and syncing them takes in ``folder``: p50, p99 and the longest of 200."""
    path = folder / "fsync-probe"
    with path.open("wb", buffering=0) as file:
        times_ms = sorted(time_fsync_ms(file.fileno()) for _ in range(FSYNC_COUNT))
    path.unlink()
    return {
        "p50": round(statistics.median(times_ms), 3),
        "p99": round(times_ms[FSYNC_COUNT * 99 // 100], 3),
        "max": round(times_ms[-1], 3),
    }


def time_fsync_ms(descriptor: int) -> float:
    """Append 4 KiB, sync them, and return how long that took."""
    begun_s = time.perf_counter()
    os.write(descriptor, bytes(FSYNC_BYTES))
    os.fsync(descriptor)
    return WATCH.since_s(begun_s) * 1000


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"],  # noqa: S607 - whichever git there is
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
