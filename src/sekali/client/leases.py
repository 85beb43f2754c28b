"""What a subscriber holds: the events of a pull, which of them are done, and which the server was not told of. No I/O.

A worker goes through a lease while another thread keeps it, so it has a lock.
"""

from collections.abc import Iterable, Iterator
from threading import Lock
from typing import Any

Event = dict[str, Any]


class Lease:
    """The events of one pull, in order.

    Args:
        lease_id: as the server names it.
        events: as they came.
        is_ordered: whether nothing may go past an event that failed.

    """

    def __init__(self, lease_id: str, events: list[Event], *, is_ordered: bool) -> None:
        self.id = lease_id
        self._events = events
        self._is_ordered = is_ordered
        self._lock = Lock()
        self._held = {int(event["seq"]) for event in events}
        self._done: list[int] = []
        self._is_cut = False

    @property
    def is_held(self) -> bool:
        """Whether there is something left that the server counts as ours."""
        return bool(self._held) or self._is_cut

    def parts(self, events_max: int) -> Iterator[list[Event]]:
        """Yield what is held and not done, in order, up to so many events at a time; what cannot be read alone."""
        part: list[Event] = []
        for event in self._events:
            is_alone = is_unreadable(event)
            if part and (is_alone or len(part) == events_max):
                yield part
                part = []
            if event["seq"] in self._held:
                part.append(event)
            if is_alone and part:
                yield part
                part = []
        if part:
            yield part

    def done(self, part: Iterable[Event]) -> None:
        """Note that events were handled. What was lost meanwhile is not ours to acknowledge."""
        with self._lock:
            self._done += [seq for seq in _seqs(part) if seq in self._held]

    def take_done(self) -> list[int]:
        """Return what is to be acknowledged. The server may count it as settled from now on, and not as held."""
        with self._lock:
            done, self._done = self._done, []
            self._held -= set(done)
        return done

    def fail(self, part: Iterable[Event]) -> list[int]:
        """Return what is to be given back of events that failed. In order, that is the end of the lease."""
        with self._lock:
            failed = [seq for seq in _seqs(part) if seq in self._held]
            self._held -= set(failed)
            if self._is_ordered:
                self._is_cut = True
                self._held &= set(self._done)
        return failed

    def lose(self, still_held: Iterable[int] = ()) -> list[int]:
        """Note what the server still counts as ours; return what is lost."""
        with self._lock:
            lost = sorted(self._held.difference(still_held))
            self._held.difference_update(lost)
            self._done = [seq for seq in self._done if seq in self._held]
        return lost


def is_unreadable(event: Event) -> bool:
    """Tell whether this stands for an event that the server cannot read back."""
    return "topic" not in event


def _seqs(part: Iterable[Event]) -> list[int]:
    return [int(event["seq"]) for event in part]
