"""The closing report of a publisher: counts, rate and latency of a run."""

import math
import time
from collections import Counter
from collections.abc import Callable
from threading import Lock
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sekali.client.http import Answer
from sekali.client.lines import Item
from sekali.printable import escape_controls

FAULTS_SHOWN_MAX = 20
_LATENCY_STEP = math.log(1.02)  # classes 2 % wide: enough for a report, and the memory does not grow with the run


class Latencies:
    """Seconds, kept in classes of like size."""

    def __init__(self) -> None:
        self._classes: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count one."""
        self._classes[round(math.log(max(seconds, 1e-6)) / _LATENCY_STEP)] += 1

    def percentile_ms(self, share: float) -> float | None:
        """Return the milliseconds that a share of them did not exceed, within about 1 %; None if there are none."""
        rank = max(1, math.ceil(share * self._classes.total()))
        for number in sorted(self._classes):
            rank -= self._classes[number]
            if rank <= 0:
                return round(math.exp(number * _LATENCY_STEP) * 1000, 3)
        return None


class Report:
    """What became of everything a run published. Safe to call from many threads.

    ``sent`` are the events that the server answered. ``invalid`` counts those it refused, and lines that could not be
    sent at all. Up to ``FAULTS_SHOWN_MAX`` places of what was invalid or in conflict go to ``show``, as they are found.
    """

    def __init__(self, show: Callable[[Text], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._show = show
        self._clock = clock
        self._lock = Lock()
        self._started_s = clock()
        self._latencies = Latencies()
        self._faults = 0
        self.sent = self.stored = self.duplicate = self.conflict = self.invalid = self.retries = 0

    def settle(self, batch: list[Item], answer: Answer) -> None:
        """Count the answer to a batch."""
        with self._lock:
            self.sent += len(batch)
            self.stored += answer.stored
            self.duplicate += answer.duplicate
            self.conflict += answer.conflict
            self.invalid += answer.invalid
            self._latencies.add(answer.latency_s)
            if answer.conflict or answer.invalid:
                for item, verdict in zip(batch, answer.results, strict=True):
                    self._note(item.place, verdict)

    def refuse(self, place: str, fault: str) -> None:
        """Count a line that could not be sent."""
        with self._lock:
            self.invalid += 1
            self._note(place, {"outcome": "invalid", "error": fault})

    def retry(self) -> None:
        """Count an attempt that has to be made again."""
        with self._lock:
            self.retries += 1

    def _note(self, place: str, verdict: dict[str, Any]) -> None:
        if verdict.get("outcome") == "invalid":
            fault = f"invalid: {verdict.get('error')}"
        elif verdict.get("outcome") == "conflict":
            fault = f"conflict: other content than seq {verdict.get('seq')} of the same identity; see /conflicts"
        else:
            return
        self._faults += 1
        if self._faults <= FAULTS_SHOWN_MAX:
            self._show(Text(escape_controls(f"{place}: {fault}")))
        elif self._faults == FAULTS_SHOWN_MAX + 1:
            self._show(Text("further ones are only counted"))

    def figures(self) -> dict[str, Any]:
        """Return the report for programs: counts, ``elapsed_s``, ``rate_per_s`` and ``latency_ms`` of a request."""
        elapsed_s = self._clock() - self._started_s
        counts = {
            name: getattr(self, name) for name in ("sent", "stored", "duplicate", "conflict", "invalid", "retries")
        }
        return {
            **counts,
            "elapsed_s": round(elapsed_s, 3),
            "rate_per_s": round(self.sent / elapsed_s, 1) if elapsed_s > 0 else None,
            "latency_ms": {"p50": self._latencies.percentile_ms(0.50), "p99": self._latencies.percentile_ms(0.99)},
        }


def print_report(figures: dict[str, Any], console: Console) -> None:
    """Show a report to people."""
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(justify="right")
    styles = {"stored": "green", "conflict": "red", "invalid": "red", "retries": "yellow"}
    for name in ("sent", "stored", "duplicate", "conflict", "invalid", "retries"):
        table.add_row(name, Text(f"{figures[name]:,}", style=styles.get(name, "") if figures[name] else "dim"))
    table.add_row("elapsed", f"{figures['elapsed_s']:,.2f} s")
    for name, value, unit in (
        ("rate", figures["rate_per_s"], "events/s"),
        ("request p50", figures["latency_ms"]["p50"], "ms"),
        ("request p99", figures["latency_ms"]["p99"], "ms"),
    ):
        table.add_row(name, "-" if value is None else f"{value:,.1f} {unit}")
    console.print(table)
