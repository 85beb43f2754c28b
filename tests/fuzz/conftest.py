"""How long to try: a few seconds, or as long as ``--fuzz-minutes`` says; and the figures of it."""

import json
import platform
import random
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sekali import __version__

CLOCK_S = time.monotonic


class Fuzz:
    """A run: its seed, its length, and what it counted."""

    def __init__(self, seed: int, minutes: float | None) -> None:
        self.seed = seed
        self.minutes = minutes
        self.figures: dict[str, Any] = {}

    def seeds(self, share: float) -> Iterator[int]:
        """Give one seed; or more, until a share of the minutes is over."""
        until_s = CLOCK_S() + 60 * share * (self.minutes or 0)
        number = 0
        while number == 0 or CLOCK_S() < until_s:
            yield self.seed + number
            number += 1


@pytest.fixture(scope="session")
def fuzz(pytestconfig: pytest.Config) -> Iterator[Fuzz]:
    chosen = pytestconfig.getoption("--fuzz-seed")
    run = Fuzz(random.randrange(2**32) if chosen is None else chosen, pytestconfig.getoption("--fuzz-minutes"))
    begun_s = CLOCK_S()
    yield run
    report = pytestconfig.getoption("--fuzz-report")
    if report is not None:
        machine = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "sekali": __version__,
            "python": platform.python_version(),
        }
        document = {
            "machine": machine,
            "command": " ".join(["python -m pytest", *sys.argv[1:]]),
            "seed": run.seed,
            "seconds": round(CLOCK_S() - begun_s),
            "requests": sum(figures["requests"] for figures in run.figures.values()),
        }
        Path(report).write_text(json.dumps(document | run.figures, indent=1) + "\n")
