"""Reading what lanes want from the store. It blocks, and runs on a thread."""

from collections.abc import Sequence
from dataclasses import dataclass

from sekali.ports import EventStore, Query, StoredEvent, Unreadable
from sekali.subscriptions.lane import Found, Want

LANES_BYTES_MAX = 1024 * 1024  # with more than this, no further lane is read

Event = StoredEvent | Unreadable


@dataclass(frozen=True, slots=True)
class Taken:
    """The events read of a lane, in order. ``is_all``: nothing that was wanted is missing."""

    want: Want
    events: list[Event]
    is_all: bool

    @property
    def found(self) -> Found:
        """As the core is told."""
        return Found(self.want, [event.seq for event in self.events], self.is_all)


def read_lanes(store: EventStore, wants: Sequence[Want], events_max: int) -> list[Taken]:
    """Read lanes in order, as far as there is room for their events.

    Raises:
        StoreBroken, Unavailable: the store cannot be read, or not in time.

    """
    taken: list[Taken] = []
    left, size = events_max, 0
    for want in wants:
        if left == 0 or size > LANES_BYTES_MAX:
            break
        one = _read_lane(store, want, left)
        left -= len(one.events)
        size += sum(len(event.payload) for event in one.events if isinstance(event, StoredEvent))
        taken.append(one)
    return taken


def _read_lane(store: EventStore, want: Want, events_max: int) -> Taken:
    events: list[Event] = []
    if want.seqs:
        seqs = want.seqs[:events_max]
        page = store.read(Query(topic=want.topic, seqs=seqs, limit=len(seqs)))
        events = page.events if page.next is not None else _with_missing(seqs, page.events)
        if len(events) < len(want.seqs):
            return Taken(want, events, is_all=False)
    if not want.is_fresh or len(events) == events_max:
        return Taken(want, events, is_all=not want.is_fresh)
    page = store.read(Query(topic=want.topic, after=want.after, up_to=want.head, limit=events_max - len(events)))
    return Taken(want, events + page.events, is_all=page.next is None)


def _with_missing(seqs: Sequence[int], events: list[Event]) -> list[Event]:
    """Put something in the place of events that the log has lost, so that they can be acknowledged."""
    found = {event.seq: event for event in events}
    return [found.get(seq) or Unreadable(seq, "the row is missing") for seq in seqs]


def topics_of(store: EventStore, seqs: Sequence[int]) -> dict[int, str]:
    """Return the topics of events by seq, of those that can be read."""
    query = Query(seqs=tuple(seqs), limit=len(seqs))
    found: dict[int, str] = {}
    while True:
        page = store.read(query)
        found |= {event.seq: event.topic for event in page.events if isinstance(event, StoredEvent)}
        if page.next is None:
            return found
        query = Query(seqs=query.seqs, limit=query.limit, position=page.next)
