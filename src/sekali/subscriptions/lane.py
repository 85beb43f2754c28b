"""A topic as one subscription sees it, and the words in which its events are given out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sekali.delivery import DeadLetter, LaneState, Open


@dataclass(slots=True, eq=False)
class Lease:
    """Events given to one consumer for a time. ``held`` are those not settled yet, with their lanes."""

    id: str
    expires_at_ns: int
    held: dict[int, "Lane"] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Given:
    """An event that is open: given out by a lease, or without one to be given again once it is due."""

    lease: Lease | None = None
    attempts: int = 0  # failed
    due_at_ns: int = 0


class Lane:
    """The events of one topic. Everything up to ``taken_to`` is settled or ``open``; above it nothing is."""

    __slots__ = (
        "again",
        "committing",
        "head",
        "holder",
        "is_queued",
        "is_read",
        "open",
        "settled_to",
        "taken_to",
        "topic",
    )

    def __init__(self, topic: str, taken_to: int, head: int) -> None:
        self.topic = topic
        self.taken_to = taken_to
        self.head = head  # there may be events up to here
        self.settled_to = taken_to  # up to here something is to be stored
        self.open: dict[int, Given] = {}
        self.again: set[int] = set()  # what is open and in no lease
        self.holder: Lease | None = None  # of an exclusive lane
        self.committing = 0  # settlements that are not durable yet
        self.is_read = False
        self.is_queued = False

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to know of it that the store does not know."""
        return not self.open and not self.committing and self.taken_to >= self.head

    def state(self) -> LaneState:
        """Return what is to be stored."""
        seqs = sorted(seq for seq in self.open if seq <= self.settled_to)
        kept = tuple(Open(seq, self.open[seq].attempts, self.open[seq].due_at_ns) for seq in seqs)
        return LaneState(self.topic, self.settled_to, kept)


@dataclass(frozen=True, slots=True)
class Want:
    """What to read of a lane: these seqs, then with ``is_fresh`` whatever is above ``after`` and not above ``head``.

    ``attempts`` tells which attempt it is, for those of the seqs of which it is not the first.
    """

    lane: Lane
    seqs: tuple[int, ...]
    is_fresh: bool
    after: int
    head: int
    attempts: dict[int, int]

    @property
    def topic(self) -> str:
        """The lane's topic."""
        return self.lane.topic


@dataclass(frozen=True, slots=True)
class Found:
    """The seqs that were read of a lane, in order. ``is_all``: nothing that was wanted is missing."""

    want: Want
    seqs: Sequence[int]
    is_all: bool


@dataclass(slots=True, eq=False)
class Settlement:
    """Lanes that have changed, and events that were given up: to be committed together."""

    lanes: dict[Lane, None] = field(default_factory=dict)  # in order
    dead: list[DeadLetter] = field(default_factory=list)

    def states(self) -> list[LaneState]:
        """Return the lanes as they are now."""
        return [lane.state() for lane in self.lanes]


@dataclass(slots=True)
class Counts:
    """What happened to events. ``returned`` counts those of which a consumer said that it failed."""

    delivered: int = 0
    redelivered: int = 0
    acknowledged: int = 0
    returned: int = 0
    expired: int = 0
    dead: int = 0
