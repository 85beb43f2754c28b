#!/usr/bin/env python
"""Measure an older commit and this one side by side: turn by turn in one run, so that noise meets both.

``scripts/compare.py 6108a54`` writes ``bench/results/compare.json``. The older one runs with what is installed here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parents[1]
LOADS = {"batches of 500, UUIDv7": "v7", "batches of 500, UUIDv4": "v4", "single events over 64 connections": "single"}


def measure(source: Path, only: str, seconds: float) -> float:
    """Return the events per second of one load against the server in a source folder."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "sekali", "bench", "ingest", "--only", only, "--rounds", "1"]
        subprocess.run(
            [*command, "--seconds", str(seconds), "--out", out],
            env=os.environ | {"PYTHONPATH": str(source)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        result = json.loads((Path(out) / "ingest.json").read_bytes())
    (row,) = result["tables"][0]["rows"]
    return float(row[result["tables"][0]["columns"].index("events/s")].replace(",", ""))


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    archive = subprocess.run(["git", "archive", arguments.commit, "src"], cwd=ROOT, capture_output=True, check=True)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
            tar.extractall(folder, filter="data")
        sources = {"before": Path(folder) / "src", "after": ROOT / "src"}
        orders = (list(sources), list(reversed(sources)))
        turns = [(load, name) for number in range(arguments.rounds) for load in LOADS for name in orders[number % 2]]
        rates: dict[str, dict[str, list[float]]] = {load: {name: [] for name in sources} for load in LOADS}
        for load, name in track(turns, "measuring", console=Console(stderr=True)):
            rates[load][name].append(measure(sources[name], LOADS[load], arguments.seconds))
    table = Table("load", "before", "after", "after / before")
    document: dict[str, Any] = {"command": " ".join(["scripts/compare.py", *sys.argv[1:]]), "loads": {}}
    for load, found in rates.items():
        before, after = (statistics.median(found[name]) for name in ("before", "after"))
        ratio = statistics.median(b / a for a, b in zip(found["before"], found["after"], strict=True))
        table.add_row(load, f"{before:,.0f}", f"{after:,.0f}", f"{ratio:.2f}")
        document["loads"][load] = {"before": before, "after": after, "ratio": round(ratio, 3), "rates": found}
    Console().print(table)
    (ROOT / "bench" / "results" / "compare.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
