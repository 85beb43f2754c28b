"""What Linux tells of a process: its processor time and its memory, with those of the processes it started."""

import contextlib
import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_KIB = 1024


def family(pid: int) -> list[int]:
    """Return the process and all that it started and that still run."""
    found = [pid]
    for one in found:
        for task in _read_list(Path(f"/proc/{one}/task")):
            try:
                found += map(int, (task / "children").read_text().split())
            except OSError:
                continue
    return found


def cpu_s(pid: int) -> float:
    """Return the seconds of processor time of a process, its threads, and the processes it started."""
    total = 0.0
    for one in family(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # Fields 14 to 17 of proc(5): its own time in user and system mode, and that of its children that ended.
        total += sum(map(int, fields[11:15])) / _TICKS_PER_S
    return total


def private_bytes(pid: int) -> int:
    """Return the anonymous memory of a process and those it started: what cannot be read again from a file."""
    total = 0
    for one in family(pid):
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        total += int(rollup.partition("Anonymous:")[2].split()[0]) * _KIB
    return total


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder and below. Others may remove some meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _read_list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
