"""What goes from the consumer to the writer and back: a batch and whom to tell, and the groups that they form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sekali.delivery import Change
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
class ChangeTicket:
    """Changes of subscriptions on their way, and whom to tell that they are durable, or why that is not known."""

    changes: Sequence[Change]
    on_done: Callable[[SekaliError | None], None]
    failure: SekaliError | None = None


@dataclass(slots=True, eq=False)
class Group:
    """Tickets that are prepared together. ``generation`` counts the recoveries of the store before it."""

    tickets: list[Ticket]
    changes: list[ChangeTicket]
    generation: int
    prepared: Any = None
    prepared_changes: Any = None
    failure: SekaliError | None = None

    @property
    def is_prepared(self) -> bool:
        """Whether there is all of it to be committed: in trouble nothing is prepared."""
        return bool(self.prepared is not None or not self.tickets) and bool(
            self.prepared_changes is not None or not self.changes
        )

    @property
    def to_commit(self) -> list[Any]:
        """What the store is given."""
        return [one for one in (self.prepared, self.prepared_changes) if one is not None]

    def __len__(self) -> int:
        return sum(len(ticket.batch) for ticket in self.tickets)
