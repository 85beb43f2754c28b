"""The threads that carry what waits in a line to where it goes: to the server, or to an outbox on disk."""

import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

from sekali.client.background import is_ours, ours, start_thread
from sekali.client.backoff import Patience
from sekali.client.batches import publish_batch
from sekali.client.delivery import Verdict, read_verdict, running_future
from sekali.client.errors import BufferFull, ClientError, PublisherClosed, Unreachable
from sekali.client.events import Event
from sekali.client.http import Server
from sekali.client.sending import Entry, Line, Place


class Sink(Protocol):
    """Where events go. One thread uses it."""

    def send(self, batch: list[Entry]) -> Iterator[tuple[list[Entry], list[Verdict] | None]]:
        """Send a batch, and yield its parts in order as they arrive, with verdicts if there are any.

        Raises:
            Unreachable: what was not yielded may be sent again.
            ClientError: sending it again would not help.

        """

    def close(self) -> None:
        """Close what is open."""


class ServerSink:
    """The server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def send(self, batch: list[Entry]) -> Iterator[tuple[list[Entry], list[Verdict]]]:
        """Publish a batch."""
        for part, answer in publish_batch(self._server, batch):
            yield part, [read_verdict(result) for result in answer.results]

    def close(self) -> None:
        """Close the connection."""
        self._server.close()


class Pump:
    """Drives a line: takes events in, lets threads carry them, and tells how each ended.

    Args:
        line: used by nobody else.
        make_sink: makes a thread its sink, when the first event comes.
        threads: how many carry at once; with one, events arrive in the order in which they came.
        accepts_on_arrival: whether a publisher waits until the sink has its event, not only until there is room.
        on_arrival: told of events and their verdicts, None where there are none yet.
        on_drop: told of events that will never arrive, and why.
        on_trouble: told why an attempt came to nothing.
        random_share: random numbers in [0, 1), for the waits between attempts.

    """

    def __init__(
        self,
        line: Line,
        make_sink: Callable[[], Sink],
        *,
        threads: int,
        accepts_on_arrival: bool,
        on_arrival: Callable[[Sequence[Entry], Sequence[Verdict] | None], object],
        on_drop: Callable[[Sequence[Entry], ClientError], object],
        on_trouble: Callable[[str], object],
        random_share: Callable[[], float] = random.random,
    ) -> None:
        self._line = line
        self._make_sink = make_sink
        self._threads_max = threads
        self._accepts_on_arrival = accepts_on_arrival
        self._on_arrival = on_arrival
        self._on_drop = on_drop
        self._on_trouble = on_trouble
        self._random_share = random_share
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._being_told: set[int] = set()  # entries out of the line whose end was not told to everyone yet
        self._is_offering = False
        self._closing = False

    def held(self) -> tuple[int, int]:
        """Return how many events wait or are under way, and how many bytes they take."""
        with self._changed:
            return self._line.held_events, self._line.held_bytes

    def offer(self, event: Event, *, may_wait: bool = True) -> Entry:
        """Take an event in without waiting. If the entry has ``accepted``, its publisher is to wait for that.

        Raises:
            PublisherClosed: too late.
            BufferFull: there is no room, and nobody may wait for it; or a signal handler came just here.
            ValueError: the event is larger than the buffer.

        """
        entry = Entry(event, accepted=running_future() if self._accepts_on_arrival else None)
        with self._changed:
            if self._closing:
                raise PublisherClosed("the publisher is closed")
            if self._is_offering:  # by this very thread, below: the line is in the middle of a step
                raise BufferFull("a signal handler has interrupted the publisher")
            self._is_offering = True
            try:
                self._start_threads()
                now_s = time.monotonic()
                due_before_s = self._line.due_in_s(now_s)
                dropped = self._begin_to_tell(self._line.offer(entry, now_s, may_wait=may_wait and not is_ours()))
                if self._line.due_in_s(now_s) < due_before_s:
                    self._changed.notify_all()
            finally:
                self._is_offering = False
        self._drop(dropped, BufferFull("dropped, because there was no room"))
        return entry

    def withdraw(self, entry: Entry) -> bool:
        """Take an event back, unless it is under way; tell whether that was so."""
        with self._changed:
            is_back = self._line.withdraw(entry)
            self._changed.notify_all()
        return is_back

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything that was offered has ended one way or the other; tell whether that is so.

        Raises:
            RuntimeError: called by a thread of the publisher.

        """
        if is_ours():
            raise RuntimeError("a callback cannot wait for the thread that calls it")
        with self._changed:
            to_number = self._line.hurry()
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._oldest_number() > to_number, _bounded(timeout_s))

    def _oldest_number(self) -> float:
        return min([self._line.oldest_number(), *self._being_told])

    def close(self, timeout_s: float) -> bool:
        """Take nothing in any more, wait for the rest, and drop what is left after the time; tell if nothing was.

        Raises:
            RuntimeError: called by a thread of the publisher.

        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            self._closing = True
        has_ended = self.flush(timeout_s)
        with self._changed:
            left = self._begin_to_tell(self._line.abandon())
        self._drop(left, PublisherClosed("the publisher was closed before this was answered; it may be stored"))
        for thread in self._threads:
            thread.join(_bounded(max(0.0, deadline_s - time.monotonic())))
        return has_ended

    def _start_threads(self) -> None:
        while len(self._threads) < self._threads_max:
            sink = self._make_sink()
            try:
                self._threads.append(start_thread("sekali-publisher", partial(self._run, sink)))
            except RuntimeError as error:
                raise PublisherClosed("the process is ending, and nothing more can be sent") from error

    def _run(self, sink: Sink) -> None:
        try:
            while batch := self._next_batch():
                self._carry(sink, batch)
        finally:
            sink.close()

    def _next_batch(self) -> list[Entry]:
        """Wait for a batch; an empty one is the end."""
        while True:
            with self._changed:
                now_s = time.monotonic()
                expired = self._begin_to_tell(self._line.expire(now_s))
                admitted = self._line.admit()
                batch = self._line.take(now_s)
                wait_s = self._line.due_in_s(now_s)
                if not batch and not expired and not admitted:
                    if self._closing and self._line.is_empty:
                        return []
                    self._changed.wait(_bounded(wait_s))
                    continue
                if wait_s < math.inf:  # there is more, for another thread
                    self._changed.notify_all()
            self._let_in(admitted)
            self._drop(expired, Unreachable("given up, because it could not be sent in time"))
            if batch:
                return batch

    def _carry(self, sink: Sink, batch: list[Entry]) -> None:
        """Send a batch, as often as it takes."""
        patience = Patience(math.inf, time.monotonic, self._random_share)
        while batch:
            try:
                for part, verdicts in sink.send(batch):
                    batch = batch[len(part) :]
                    self._settle(part, verdicts)
                    patience = Patience(math.inf, time.monotonic, self._random_share)
            except Unreachable as error:
                self._on_trouble(str(error))
                batch = self._pause(batch, patience.next_wait_s(error.retry_after_s) or 0.0, error)
            except ClientError as error:
                self._give_up(batch, error)
                return
            except Exception as error:  # a defect of ours; the events that wait behind must not suffer
                self._give_up(batch, ClientError(f"the publisher failed: {error!r}"))
                return

    def _settle(self, part: list[Entry], verdicts: list[Verdict] | None) -> None:
        by_number = dict(zip((entry.number for entry in part), verdicts, strict=True)) if verdicts else {}
        with self._changed:
            settled = self._begin_to_tell(self._line.settle(part))
            admitted = self._line.admit()
        self._let_in(admitted)
        if self._accepts_on_arrival:
            for entry in settled:
                _accept(entry)
        self._on_arrival(settled, [by_number[entry.number] for entry in settled] if verdicts else None)
        self._end_telling(settled)

    def _pause(self, batch: list[Entry], wait_s: float, error: Unreachable) -> list[Entry]:
        """Wait before the next attempt; return what of a batch is still to be sent then."""
        until_s = time.monotonic() + wait_s
        while True:
            with self._changed:
                now_s = time.monotonic()
                expired = self._begin_to_tell(self._line.expire(now_s, batch))
                admitted = self._line.admit()
                batch = [entry for entry in batch if entry.place is Place.UNDER_WAY]
                if not expired and not admitted:
                    if not batch or now_s >= until_s:
                        return batch
                    self._changed.wait(min(until_s, batch[0].deadline_s) - now_s)
                    continue
            self._let_in(admitted)
            self._drop(expired, Unreachable(f"given up: {error}"))

    def _give_up(self, batch: list[Entry], error: ClientError) -> None:
        with self._changed:
            settled = self._begin_to_tell(self._line.settle(batch))
            admitted = self._line.admit()
        self._let_in(admitted)
        self._drop(settled, error)

    def _let_in(self, admitted: Sequence[Entry]) -> None:
        if not self._accepts_on_arrival:
            for entry in admitted:
                _accept(entry)

    def _drop(self, entries: Sequence[Entry], error: ClientError) -> None:
        if not entries:
            return
        with ours():  # also where it is the publisher's own thread
            self._on_drop(entries, error)
        for entry in entries:
            entry.delivery.fail(error)
            if entry.accepted is not None and not entry.accepted.done():
                entry.accepted.set_exception(error)
        self._end_telling(entries)

    def _begin_to_tell(self, entries: list[Entry]) -> list[Entry]:
        """Note what left the line, with the lock held: a flush ends when everyone was told, not before."""
        if entries:
            self._being_told.update(entry.number for entry in entries)
            self._changed.notify_all()  # there is room
        return entries

    def _end_telling(self, entries: Sequence[Entry]) -> None:
        with self._changed:
            self._being_told.difference_update(entry.number for entry in entries)
            self._changed.notify_all()


def _accept(entry: Entry) -> None:
    if entry.accepted is not None and not entry.accepted.done():
        entry.accepted.set_result(None)


def _bounded(timeout_s: float) -> float | None:
    """Return a time-out as the standard library takes it."""
    return None if timeout_s == math.inf else min(timeout_s, threading.TIMEOUT_MAX)
