"""What waits to be sent: a bounded line of events, cut into batches.

No I/O, no clock and no lock: times are handed in, and whoever shares a line between threads locks it. The blocking and
the asyncio face of the publisher stand on this one piece.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from enum import Enum, StrEnum
from typing import Any

from sekali.client.batches import REQUEST_BYTES_MAX
from sekali.client.delivery import Delivery, running_future
from sekali.client.errors import BufferFull
from sekali.client.events import Event

EVENT_OVERHEAD_BYTES = 1_000  # about what an event in the line takes beside its JSON


class WhenFull(StrEnum):
    """What happens to an event for which there is no room."""

    BLOCK = "block"  # its publisher waits; those who wait are served in their order
    RAISE = "raise"  # its publisher gets BufferFull
    DROP_NEWEST = "drop_newest"  # it is dropped
    DROP_OLDEST = "drop_oldest"  # what has waited longest is dropped for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much waits, and how much goes together.

    A batch goes when it is full or its first event has waited ``linger_s``. An event that was not answered (or with an
    outbox, not on disk) ``give_up_after_s`` after it was published is given up.
    """

    buffer_events_max: int = 10_000
    buffer_bytes_max: int = 64 * 1024 * 1024
    batch_events_max: int = 500
    batch_bytes_max: int = REQUEST_BYTES_MAX
    linger_s: float = 0.01
    give_up_after_s: float = math.inf

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 0 if field.name.endswith("_s") else 1
            if not getattr(self, field.name) >= least:
                raise ValueError(f"{field.name} is {getattr(self, field.name)!r}; it cannot be below {least}")


class Place(Enum):
    """Where an entry is."""

    OUTSIDE = "outside"  # its publisher waits for room
    WAITING = "waiting"
    UNDER_WAY = "under way"
    GONE = "gone"


class Entry:
    """An event in the line.

    ``accepted`` is there if its publisher has something to wait for before ``publish`` returns.
    """

    __slots__ = ("accepted", "deadline_s", "delivery", "due_s", "number", "of", "place", "size_bytes")

    def __init__(self, of: Event, *, accepted: "Future[Any] | None" = None) -> None:
        self.of = of
        self.delivery = Delivery(of.topic, of.event_id)
        self.accepted = accepted
        self.place = Place.OUTSIDE
        self.size_bytes = len(of.json) + EVENT_OVERHEAD_BYTES
        self.number = 0
        self.due_s = 0.0
        self.deadline_s = math.inf

    @property
    def event(self) -> bytes:
        """Its JSON; what ``publish_batch`` sends."""
        return self.of.json


class Line:
    """Events first come, first served, from ``offer`` over ``take`` to ``settle``. Holds each until it is settled.

    Times are monotonic seconds.
    """

    def __init__(self, limits: Limits, when_full: WhenFull) -> None:
        self._limits = limits
        self._when_full = when_full
        self._outside: deque[Entry] = deque()
        self._waiting: deque[Entry] = deque()
        self._waiting_bytes = 0
        self._under_way: dict[int, Entry] = {}
        self._last_number = 0
        self._hurry_to = 0
        self.held_events = 0
        self.held_bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether everything that was offered is settled."""
        return not self.held_events and not self._outside

    def offer(self, entry: Entry, now_s: float, *, may_wait: bool = True) -> list[Entry]:
        """Take an event in, or keep it outside until there is room (``entry.place`` tells).

        Returns:
            What was dropped, perhaps the entry itself.

        Raises:
            BufferFull: it was not taken: the line is full and raises, or it would have to wait and may not.
            ValueError: it is larger than the whole buffer.

        """
        if entry.size_bytes > self._limits.buffer_bytes_max:
            raise ValueError(f"the event takes {entry.size_bytes} bytes and the buffer {self._limits.buffer_bytes_max}")
        dropped: list[Entry] = []
        if self._outside or not self._fits(entry):
            match self._when_full:
                case WhenFull.BLOCK if may_wait:
                    entry.accepted = entry.accepted or running_future()
                    self._number(entry, now_s)
                    self._outside.append(entry)
                    return dropped
                case WhenFull.BLOCK | WhenFull.RAISE:
                    raise BufferFull(
                        f"there is no room for more: {self.held_events} events in {self.held_bytes} bytes wait"
                    )
                case WhenFull.DROP_NEWEST:
                    return [entry]
                case WhenFull.DROP_OLDEST:
                    while self._waiting and not self._fits(entry):
                        dropped.append(self._pop_first())
                        self._release(dropped[-1])
                    if not self._fits(entry):  # what is under way fills it
                        return [*dropped, entry]
        self._number(entry, now_s)
        self._admit(entry)
        return dropped

    def _number(self, entry: Entry, now_s: float) -> None:
        self._last_number += 1
        entry.number = self._last_number
        entry.due_s = now_s + self._limits.linger_s
        entry.deadline_s = now_s + self._limits.give_up_after_s

    def _fits(self, entry: Entry) -> bool:
        return (
            self.held_events < self._limits.buffer_events_max
            and self.held_bytes + entry.size_bytes <= self._limits.buffer_bytes_max
        )

    def _admit(self, entry: Entry) -> None:
        entry.place = Place.WAITING
        self._waiting.append(entry)
        self._waiting_bytes += entry.size_bytes
        self.held_events += 1
        self.held_bytes += entry.size_bytes

    def _pop_first(self) -> Entry:
        entry = self._waiting.popleft()
        self._waiting_bytes -= entry.size_bytes
        return entry

    def _release(self, entry: Entry) -> None:
        entry.place = Place.GONE
        self.held_events -= 1
        self.held_bytes -= entry.size_bytes

    def hurry(self) -> int:
        """Let nothing of what was offered so far wait for company; return the number of the newest of it."""
        self._hurry_to = self._last_number
        return self._last_number

    def oldest_number(self) -> float:
        """Return the number of the oldest that is not settled, infinity if there is none."""
        firsts = [entries[0].number for entries in (self._waiting, self._outside) if entries]
        return min([*firsts, *self._under_way], default=math.inf)

    def due_in_s(self, now_s: float) -> float:
        """Return the seconds until ``take`` gives a batch or ``expire`` something, if nothing else happens."""
        moments = [entries[0].deadline_s for entries in (self._waiting, self._outside) if entries]
        if self._waiting:
            moments.append(self._next_batch_s())
        return max(0.0, min(moments, default=math.inf) - now_s)

    def _next_batch_s(self) -> float:
        first = self._waiting[0]
        is_full = (
            len(self._waiting) >= self._limits.batch_events_max or self._waiting_bytes >= self._limits.batch_bytes_max
        )
        return -math.inf if is_full or first.number <= self._hurry_to else first.due_s

    def take(self, now_s: float) -> list[Entry]:
        """Return the next batch, in order, if one is due; else nothing. It stays in the line until it is settled."""
        if not self._waiting or self._next_batch_s() > now_s:
            return []
        batch: list[Entry] = []
        batch_bytes = 0
        while self._waiting and len(batch) < self._limits.batch_events_max:
            batch_bytes += len(self._waiting[0].event) + 1
            if batch and batch_bytes > self._limits.batch_bytes_max:
                break
            entry = self._pop_first()
            entry.place = Place.UNDER_WAY
            self._under_way[entry.number] = entry
            batch.append(entry)
        return batch

    def settle(self, entries: Iterable[Entry]) -> list[Entry]:
        """Let go of what was under way, and return those of it that were not given up meanwhile."""
        settled = [entry for entry in entries if self._under_way.pop(entry.number, None) is not None]
        for entry in settled:
            self._release(entry)
        return settled

    def admit(self) -> list[Entry]:
        """Let in what waits outside, as far as there is room, and return it."""
        admitted: list[Entry] = []
        while self._outside and self._fits(self._outside[0]):
            admitted.append(self._outside.popleft())
            self._admit(admitted[-1])
        return admitted

    def expire(self, now_s: float, under_way: Sequence[Entry] = ()) -> list[Entry]:
        """Give up what has been in line too long, of a batch ``under_way`` as well, and return it."""
        expired = self.settle([entry for entry in under_way if entry.deadline_s <= now_s])
        while self._waiting and self._waiting[0].deadline_s <= now_s:
            expired.append(self._pop_first())
            self._release(expired[-1])
        while self._outside and self._outside[0].deadline_s <= now_s:
            expired.append(self._outside.popleft())
            expired[-1].place = Place.GONE
        return expired

    def withdraw(self, entry: Entry) -> bool:
        """Take back what is not under way yet; tell whether that was so."""
        if entry.place is Place.OUTSIDE and entry in self._outside:
            self._outside.remove(entry)
            entry.place = Place.GONE
        elif entry.place is Place.WAITING:
            self._waiting.remove(entry)
            self._waiting_bytes -= entry.size_bytes
            self._release(entry)
        else:
            return False
        return True

    def abandon(self) -> list[Entry]:
        """Give up everything and return it."""
        left = [*self.settle(list(self._under_way.values())), *self._waiting, *self._outside]
        for entry in self._waiting:
            self._release(entry)
        for entry in self._outside:
            entry.place = Place.GONE
        self._waiting.clear()
        self._outside.clear()
        self._waiting_bytes = 0
        return left
