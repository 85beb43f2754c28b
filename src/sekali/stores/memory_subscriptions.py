"""What a store keeps of subscriptions, in the plainest code: the state of every event is looked up, none is kept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from sekali.delivery import (
    Alter,
    Change,
    Create,
    DeadLetter,
    Delete,
    Figures,
    Forget,
    LaneState,
    PendingLane,
    Progress,
    Seek,
    Subscription,
)
from sekali.ports import StoredEvent
from sekali.topics import matches


@dataclass
class _Kept:
    name: str
    subscription: Subscription
    lanes: dict[str, LaneState] = field(default_factory=dict)
    dead: dict[int, DeadLetter] = field(default_factory=dict)  # by seq, in the order of their numbers

    def lane(self, topic: str) -> LaneState:
        return self.lanes.get(topic) or LaneState(topic, self.subscription.position)

    def is_settled(self, event: StoredEvent) -> bool:
        lane = self.lane(event.topic)
        return event.seq <= lane.cursor and all(open_.seq != event.seq for open_ in lane.open)


class Subscriptions:
    """Subscriptions over a log, which is a list of events."""

    def __init__(self, log: Sequence[StoredEvent]) -> None:
        self._log = log
        self._kept: dict[str, _Kept] = {}
        self._dead_seen = 0

    def apply(self, change: Change) -> None:
        """Make a change."""
        if isinstance(change, Create):
            new = change.subscription
            self._kept[new.name] = _Kept(new.name, new)
            return
        kept = self._kept.get(change.name)
        if kept is None:
            return
        old = kept.subscription
        match change:
            case Alter(_, definition, pause):
                kept.subscription = replace(old, definition=definition, pause=pause)
            case Delete(name):
                del self._kept[name]
            case Seek(_, position):
                kept.subscription = replace(old, position=position)
                kept.lanes.clear()
                kept.dead = {seq: dead for seq, dead in kept.dead.items() if seq <= position}
            case Progress(_, lanes, dead):
                kept.lanes |= {lane.topic: lane for lane in lanes}
                for one in dead:
                    self._bury(kept, one)
            case Forget(_, seqs):
                kept.dead = {} if seqs is None else {seq: dead for seq, dead in kept.dead.items() if seq not in seqs}

    def _bury(self, kept: _Kept, dead: DeadLetter) -> None:
        self._dead_seen += 1
        kept.dead.pop(dead.seq, None)
        kept.dead[dead.seq] = DeadLetter(dead.seq, dead.topic, dead.attempts, dead.error, dead.at_ns, self._dead_seen)

    def all(self) -> list[Subscription]:
        """See ``SubscriptionStore.subscriptions``."""
        return [self._kept[name].subscription for name in sorted(self._kept)]

    def pending(self, name: str) -> list[PendingLane]:
        """See ``SubscriptionStore.pending``."""
        if name not in self._kept:
            return []
        topics = sorted({event.topic for event in self._unsettled(name)})
        last_seqs = {event.topic: event.seq for event in self._log}
        return [PendingLane(self._kept[name].lane(topic), last_seqs[topic]) for topic in topics]

    def _unsettled(self, name: str) -> Iterator[StoredEvent]:
        kept = self._kept.get(name)
        if kept is not None:
            pattern = kept.subscription.definition.topic
            yield from (event for event in self._log if matches(pattern, event.topic) and not kept.is_settled(event))

    def figures(self, name: str, lag_max: int) -> Figures:
        """See ``SubscriptionStore.figures``."""
        unsettled = list(self._unsettled(name))
        oldest_at_ns = unsettled[0].processed_at_ns if unsettled else None
        dead = len(self._kept[name].dead) if name in self._kept else 0
        return Figures(min(len(unsettled), lag_max), len(unsettled) <= lag_max, oldest_at_ns, dead)

    def dead_letters(self, name: str, after: int, limit: int, seqs: Sequence[int] | None) -> list[DeadLetter]:
        """See ``SubscriptionStore.dead_letters``."""
        dead = self._kept[name].dead.values() if name in self._kept else ()
        return [one for one in dead if one.number > after and (seqs is None or one.seq in seqs)][:limit]
