"""What became of what the writers sent, counted after Jepsen's workload for queues (github.com/jepsen-io/nats).

Each writer numbers its events from 0, so its own account says what must be there, what may be, and what must not.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Read(NamedTuple):
    """An event as it is read back. ``intact``: it has the content that its writer gave it first."""

    seq: int
    writer: str
    counter: int
    intact: bool


@dataclass(slots=True)
class Sent:
    """A writer's account: counters below ``attempted`` were sent, ``acknowledged`` has the seqs that it was told."""

    attempted: int = 0
    acknowledged: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one writer. What is lost is told apart by where it is missing.

    Lost in the middle proves a loss; a lost postfix may be a reader that came too early, a lost prefix a log that
    began anew. ``recovered`` was never acknowledged and is there all the same, which is allowed.
    """

    writer: str
    attempted: int
    acknowledged: int
    read: int
    lost_prefix: int
    lost_middle: int
    lost_postfix: int
    unexpected: int
    duplicated: int
    recovered: int

    @property
    def lost(self) -> int:
        return self.lost_prefix + self.lost_middle + self.lost_postfix


@dataclass(frozen=True, slots=True)
class Findings:
    """The figures of all writers, and of the log as a whole."""

    rows: list[Row]
    gaps: int  # places in the log where a seq is missing, or comes twice or too early
    moved: int  # events that are at another seq than the one acknowledged
    damaged: int  # events with other content than was sent

    def total(self, figure: str) -> int:
        """Return a figure of the rows, summed up."""
        return sum(getattr(row, figure) for row in self.rows)

    @property
    def harm(self) -> dict[str, int]:
        """Whatever must be 0."""
        names = ("lost_prefix", "lost_middle", "lost_postfix", "unexpected", "duplicated")
        return {name: self.total(name) for name in names} | {
            "gaps": self.gaps,
            "moved": self.moved,
            "damaged": self.damaged,
        }


def check(sent: Mapping[str, Sent], log: Iterable[Read]) -> Findings:
    """Compare a whole log, in its order, with what was sent to it."""
    times: defaultdict[str, Counter[int]] = defaultdict(Counter)
    gaps = moved = damaged = last_seq = 0
    for seq, writer, counter, intact in log:
        gaps += seq != last_seq + 1
        last_seq = seq
        times[writer][counter] += 1
        damaged += not intact
        if writer in sent:
            moved += sent[writer].acknowledged.get(counter, seq) != seq
    writers = sorted(sent.keys() | times.keys())
    return Findings([_row(name, sent.get(name, Sent()), times[name]) for name in writers], gaps, moved, damaged)


def _row(writer: str, sent: Sent, times: Counter[int]) -> Row:
    expected = [counter for counter in times if 0 <= counter < sent.attempted]
    first, last = min(expected, default=0), max(expected, default=-1)
    lost = [counter for counter in sent.acknowledged if counter not in times]
    return Row(
        writer=writer,
        attempted=sent.attempted,
        acknowledged=len(sent.acknowledged),
        read=len(times),
        lost_prefix=sum(counter < first for counter in lost),
        lost_middle=sum(first <= counter <= last for counter in lost),
        lost_postfix=sum(counter > last and counter >= first for counter in lost),
        unexpected=len(times) - len(expected),
        duplicated=sum(count > 1 for count in times.values()),
        recovered=sum(counter not in sent.acknowledged for counter in expected),
    )
