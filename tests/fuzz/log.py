"""What must be in the log after each request, and what must have been answered: a dict and a few counters."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fuzz.judge import Event


@dataclass
class Row:
    """A stored event, how often it came again, and the variants that were refused."""

    seq: int
    event: Event
    duplicates: int = 0
    variants: set[tuple[str, Any]] = field(default_factory=set)


class Log:
    """The log as it must be."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}
        self.counts: Counter[str] = Counter()

    @property
    def head(self) -> int:
        return len(self.rows)

    def publish(self, event: Event) -> tuple[str, int]:
        """Store an event, or not; return its outcome and seq."""
        row = self.rows.get(event.identity)
        if row is None:
            row = self.rows[event.identity] = Row(self.head + 1, event)
            outcome = "stored"
        elif row.event.content == event.content:
            row.duplicates += 1
            outcome = "duplicate"
        else:
            row.variants.add(event.content)
            outcome = "conflict"
        self.counts[outcome] += 1
        return outcome, row.seq

    def after(self, seq: int) -> list[Row]:
        """Return what was stored above a seq, in order."""
        return [row for row in self.rows.values() if row.seq > seq]
