"""A subscription on a disk that fails: what is said of it in the commits of a story, and what has to be kept then."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sekali.delivery import (
    Change,
    Create,
    DeadLetter,
    Definition,
    Delete,
    LaneState,
    Open,
    Progress,
    Seek,
    Subscription,
)
from sekali.ports import EventStore

NAME = "s"
PATTERN = "app/*"
MADE, FIRST, BURIED, SOUGHT, SECOND, MADE_ANEW, LAST = 1, 3, 5, 7, 9, 11, 13  # the commits in which something is said


@dataclass(frozen=True)
class State:
    """All that is kept of the subscription. Lanes are those that were said something of."""

    subscription: Subscription | None = None
    lanes: dict[str, LaneState] = field(default_factory=dict)
    dead: tuple[int, ...] = ()

    def after(self, changes: Sequence[Change]) -> "State":
        """Return what it is once these are made."""
        state = self
        for change in changes:
            match change:
                case Create(subscription):
                    state = State(subscription)
                case Delete():
                    state = State()
                case Seek(_, position) if state.subscription is not None:
                    old = state.subscription
                    moved = Subscription(old.name, old.definition, position, old.created_at_ns)
                    state = State(moved, {}, tuple(seq for seq in state.dead if seq <= position))
                case Progress(_, lanes, dead):
                    state = replace(
                        state,
                        lanes=state.lanes | {lane.topic: lane for lane in lanes},
                        dead=(*state.dead, *(one.seq for one in dead)),
                    )
        return state

    def pending(self, last_seqs: dict[str, int]) -> dict[str, LaneState]:
        """Return the lanes in which something is not settled, given the newest seq of each topic."""
        if self.subscription is None:
            return {}
        position = self.subscription.position
        lanes = {topic: self.lanes.get(topic) or LaneState(topic, position) for topic in last_seqs}
        return {topic: lane for topic, lane in lanes.items() if lane.open or last_seqs[topic] > lane.cursor}


class Consuming:
    """A consumer and its account: what was answered is kept, and of what was not, one thing or the other."""

    def __init__(self) -> None:
        self._possible = [State()]

    def says(self, number: int, seqs: dict[str, list[int]], store: EventStore) -> list[Change]:
        """Return what goes into a commit, for a topic's events by seq, and note that it may be kept."""
        state = self._possible[0] if len(self._possible) == 1 else self._found(store)
        changes = _said(number, state, seqs)
        if changes:
            self._possible.append(state.after(changes))
        return changes

    def hears(self) -> None:
        """Note that the commit was answered."""
        self._possible = self._possible[-1:]

    def _found(self, store: EventStore) -> State:
        """Return which of the states that may be kept is.

        Raises:
            LookupError: it is none of them.

        """
        subscriptions = store.subscriptions()
        last_seqs = {one.topic: one.last_seq for one in store.topics("", 100) if one.topic.startswith("app/")}
        pending = {lane.state.topic: lane.state for lane in store.pending(NAME)[1]}
        dead = tuple(one.seq for one in store.dead_letters(NAME, 0, 100))
        for state in reversed(self._possible):
            kept = [] if state.subscription is None else [state.subscription]
            if (subscriptions, pending, dead) == (kept, state.pending(last_seqs), state.dead):
                return state
        raise LookupError(f"of {self._possible} none is kept: {subscriptions}, {pending}, {dead}")

    def fault(self, store: EventStore) -> str | None:
        """Say what is wrong with what is kept, or None."""
        try:
            self._found(store)
        except LookupError as error:
            return str(error)
        return None


def _said(number: int, state: State, seqs: dict[str, list[int]]) -> list[Change]:
    new = Create(Subscription(NAME, Definition(PATTERN, "earliest"), 0, number))
    if number == MADE and state.subscription is None:
        return [new]
    if state.subscription is None:
        return []
    if number == SOUGHT:
        return [Seek(NAME, 2)]
    if number == MADE_ANEW and state.subscription.created_at_ns != number:
        return [Delete(NAME), new]
    if number not in {FIRST, BURIED, SECOND, LAST}:
        return []
    lanes, dead = [], []
    for topic, some in sorted(seqs.items()):
        lane = state.lanes.get(topic) or LaneState(topic, state.subscription.position)
        fresh = [seq for seq in some if seq > lane.cursor]
        if not fresh:
            continue
        # The first new one failed and the others are done; what failed before is done now, or given up.
        if number == BURIED:
            dead += [DeadLetter(one.seq, topic, one.attempts + 1, "no", number) for one in lane.open]
        lanes.append(LaneState(topic, fresh[-1], (Open(fresh[0], 1, number),)))
    return [Progress(NAME, lanes, dead)] if lanes else []
