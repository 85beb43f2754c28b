"""What goes from the consumer to the writer and back: a batch and whom to tell, and the groups that they form."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sekali.errors import SekaliError
from sekali.event import Batch, Verdict

# Told the verdicts, or why there are none.
OnDone = Callable[[list[Verdict], SekaliError | None], None]


@dataclass(slots=True, eq=False)
class Ticket:
    """A batch on its way. ``keep``: after a failed commit it is tried again (``respond-async``)."""

    batch: Batch
    accepted_at_s: float
    on_done: OnDone
    keep: bool
    verdicts: list[Verdict] = field(default_factory=list)
    failure: SekaliError | None = None
    answered: bool = False
    done: bool = False  # the writer has given it back


@dataclass(slots=True, eq=False)
class Group:
    """Tickets that are prepared together. ``generation`` counts the recoveries of the store before it."""

    tickets: list[Ticket]
    generation: int
    prepared: Any = None
    failure: SekaliError | None = None

    def __len__(self) -> int:
        return sum(len(ticket.batch) for ticket in self.tickets)
