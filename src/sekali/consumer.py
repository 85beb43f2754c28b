"""The way from an accepted batch to its verdicts: bounded queue, preparing, group commit, answers.

::

    event loop                                        writer thread
    submit() ─queue─> take what waits, prepare it ──> commit the groups in line together ──> answers, back on the loop

Groups form by themselves: while the writer commits one, requests wait, and whatever waits is prepared and committed
together. The loop prepares by itself, because beside it another thread would mostly wait for the interpreter lock; with
``workers`` a thread does it, and the loop never waits for a disk. Either way there is one first-in first-out way. The
consumer knows the store only as a port.
"""

import asyncio
import logging
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import structlog

from sekali.errors import CommitUnknown, QueueFull, SekaliError, Unavailable
from sekali.event import Batch, Outcome, Verdict, count_outcomes
from sekali.metrics import Metrics
from sekali.ports import EventStore, Progress, no_progress

PROBE_INTERVAL_S = 1.0
# Groups prepared and not committed yet. With more, preparing goes on beside a commit; measured, both then wait for the
# interpreter lock so often that batches gain nothing and single events lose a third (docs/decisions/0008).
GROUPS_AHEAD_MAX = 1

log = structlog.get_logger("sekali.consumer")


# Told the verdicts, or why there are none.
OnDone = Callable[[list[Verdict], SekaliError | None], None]


@dataclass(slots=True, eq=False)
class _Ticket:
    """A batch on its way. ``keep``: after a failed commit it is tried again (``respond-async``)."""

    batch: Batch
    accepted_at_s: float
    on_done: OnDone
    keep: bool
    verdicts: list[Verdict] = field(default_factory=list)
    failure: SekaliError | None = None
    done: bool = False


@dataclass(slots=True, eq=False)
class _Group:
    """Tickets that are prepared together. ``generation`` counts the recoveries of the store before it."""

    tickets: list[_Ticket]
    generation: int
    prepared: Any = None
    failure: SekaliError | None = None

    def __len__(self) -> int:
        return sum(len(ticket.batch) for ticket in self.tickets)


class Consumer:
    """Commits batches in the order accepted, and answers each after the commit that holds it.

    ``clock_s`` is monotonic. Start it on a running event loop, to which ``submit`` belongs.
    The queue holds at most ``queue_events_max`` events, those being committed included. ``on_recovery`` is told, on the
    writer's thread, how far the store has come where it takes long to get ready.
    """

    def __init__(
        self,
        store: EventStore,
        metrics: Metrics,
        clock_s: Callable[[], float],
        *,
        workers: int,
        queue_events_max: int,
        commit_events_max: int,
        commit_wait_ms_max: float,
        on_recovery: Progress = no_progress,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._clock_s = clock_s
        self._worker_count = workers
        self._queue_events_max = queue_events_max
        self._commit_events_max = commit_events_max
        self._commit_wait_s_max = commit_wait_ms_max / 1000
        self._accepted: deque[_Ticket] = deque()
        self._preparing_is_due = False
        self._groups_ahead = 0  # given to the writer and not finished
        self._groups: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()
        self._generation = 0
        self._stopping = threading.Event()
        self._in_flight: deque[_Ticket] = deque()  # in the order accepted, for the age of the oldest
        self._retry: list[_Ticket] = []  # respond-async tickets whose commit failed; the writer's own
        self._events_waiting = 0
        self._trouble: str | None = "the server is starting"
        self._probe_at_s = 0.0
        self._on_recovery = on_recovery

    def start(self) -> None:
        """Start the threads. Call once, on the event loop that will publish."""
        self._loop = asyncio.get_running_loop()
        self.ready = asyncio.Event()  # set once the store can commit for the first time
        self._worker = ThreadPoolExecutor(1, "sekali-worker") if self._worker_count else None
        self._writer = threading.Thread(target=self._write, name="sekali-writer", daemon=True)
        self._writer.start()

    async def stop(self, timeout_s: float) -> bool:
        """Refuse what comes, commit what was accepted, stop the threads; False if that took longer."""
        if not self._stopping.is_set():
            self._stopping.set()
            while self._accepted:
                self._prepare_next()
            if self._worker is None:
                self._groups.put(None)
            else:
                self._worker.submit(self._groups.put, None)
                self._worker.shutdown(wait=False)
        await asyncio.to_thread(self._writer.join, timeout_s)
        return not self._writer.is_alive()

    @property
    def trouble(self) -> str | None:
        """Why nothing can be committed right now, or None."""
        return self._trouble

    @property
    def events_waiting(self) -> int:
        """Events accepted and not yet answered."""
        return self._events_waiting

    @property
    def oldest_waiting_s(self) -> float:
        """Age of the oldest batch accepted and not yet readable; 0 when there is none."""
        return self._clock_s() - self._in_flight[0].accepted_at_s if self._in_flight else 0.0

    def submit(self, batch: Batch, accepted_at_s: float, on_done: OnDone, *, keep: bool = False) -> None:
        """Take a batch to commit it, and call ``on_done`` on the event loop once its verdicts are known.

        Where the commit fails, that gets the failure: Unavailable, or CommitUnknown where some of it may be stored;
        with ``keep`` it is tried until it is committed or the server stops.

        Raises:
            QueueFull: the batch was not taken.
            Unavailable: likewise.

        """
        if self._stopping.is_set():
            raise Unavailable("the server is stopping; send the request again, to the one that follows it")
        if self._trouble is not None:
            raise Unavailable(self._trouble)
        if self._events_waiting + len(batch) > self._queue_events_max:
            raise QueueFull(
                f"the queue is full: {self._events_waiting} events wait, at most {self._queue_events_max} may "
                "(QUEUE_EVENTS_MAX); send the request again"
            )
        ticket = _Ticket(batch, accepted_at_s, on_done, keep)
        self._events_waiting += len(batch)
        self._in_flight.append(ticket)
        self._accepted.append(ticket)
        self._schedule()

    def _schedule(self) -> None:
        """See to it that what waits is prepared: after what else is ready on the loop, which may bring more."""
        if self._accepted and not self._preparing_is_due and self._groups_ahead < GROUPS_AHEAD_MAX:
            self._preparing_is_due = True
            if self._commit_wait_s_max:
                self._loop.call_later(self._commit_wait_s_max, self._prepare_next)
            else:
                self._loop.call_soon(self._prepare_next)

    def _prepare_next(self) -> None:
        self._preparing_is_due = False
        tickets: list[_Ticket] = []
        size = 0
        while self._accepted and (not tickets or size + len(self._accepted[0].batch) <= self._commit_events_max):
            tickets.append(self._accepted.popleft())
            size += len(tickets[-1].batch)
        if not tickets:
            return
        group = _Group(tickets, self._generation)
        self._groups_ahead += 1
        if self._worker is None:
            self._prepare(group)
        else:
            self._worker.submit(self._prepare, group)
        self._schedule()

    def _prepare(self, group: _Group) -> None:
        if self._trouble is None:  # otherwise the writer gives it back
            try:
                group.prepared = self._store.prepare([ticket.batch for ticket in group.tickets])
            except SekaliError as error:
                group.failure = error
            except Exception as error:  # a defect of ours: that group gets an answer and the others go on
                log.exception("prepare failed")
                group.failure = Unavailable(f"an internal error: {error!r}")
        self._groups.put(group)

    # On the writer thread.

    def _write(self) -> None:
        self._open_store()
        waiting: deque[_Group] = deque()
        running = True
        while running or waiting:
            running = self._line_up(waiting, wait=running) and running
            if self._trouble is not None:
                self._refuse_all(waiting)
                self._recover()
            elif waiting:
                self._commit(self._next_groups(waiting))
        if self._retry:
            log.error("stopped before these could be committed", requests=len(self._retry))
            self._fail(self._retry, Unavailable(), 0)

    def _open_store(self) -> None:
        """Get the store ready for its first commit, however long that takes."""
        while True:
            try:
                self._store.recover(self._report_recovery)
            except SekaliError as error:
                if self._stopping.is_set():
                    return
                log.error("the store cannot be opened", reason=str(error))
                self._trouble = str(error)
                self._stopping.wait(PROBE_INTERVAL_S)
            else:
                self._trouble = None
                self._loop.call_soon_threadsafe(self.ready.set)
                return

    def _report_recovery(self, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise Unavailable("stopped while the dedup index was made; the next start goes on with it")
        self._trouble = f"the dedup index is being made from the log: {done:,} of {total:,} events"
        self._on_recovery(done, total)

    def _line_up(self, waiting: deque[_Group], *, wait: bool) -> bool:
        """Move the groups in line to ``waiting``, and wait for one if there is none; False when no more will come.

        In trouble the wait ends when it is time to probe.
        """
        while True:
            try:
                if waiting or not wait:
                    group = self._groups.get_nowait()
                elif self._trouble is None:
                    group = self._groups.get()
                else:
                    group = self._groups.get(timeout=max(self._probe_at_s - self._clock_s(), 0))
            except queue.Empty:
                return True
            if group is None:
                return False
            waiting.append(group)

    def _next_groups(self, waiting: deque[_Group]) -> list[_Group]:
        """Take the first group, and those behind it that fit into its commit."""
        groups = [waiting.popleft()]
        size = len(groups[0])
        while waiting and groups[-1].failure is None and size + len(waiting[0]) <= self._commit_events_max:
            groups.append(waiting.popleft())
            size += len(groups[-1])
        return groups

    def _commit(self, groups: Sequence[_Group]) -> None:
        last = groups[-1]
        if last.failure is not None:  # nothing comes behind a group that failed, see _next_groups
            groups = groups[:-1]
        if groups:
            tickets = [ticket for group in groups for ticket in group.tickets]
            stale = any(group.generation != self._generation for group in groups)
            if stale:
                self._give_back(tickets, Unavailable("the store was recovering; send the request again"), len(groups))
            else:
                self._try_commit(tickets, lambda: [group.prepared for group in groups], len(groups))
        if last.failure is not None:
            if isinstance(last.failure, CommitUnknown):
                log.error("prepare failed", reason=str(last.failure))
                self._in_trouble(str(last.failure))
            self._give_back(last.tickets, last.failure, 1)

    def _try_commit(self, tickets: list[_Ticket], prepare: Callable[[], list[Any]], groups: int) -> None:
        started_at_s = self._clock_s()
        try:
            verdicts = self._store.commit(prepare())
        except SekaliError as error:
            log.error("commit failed", reason=str(error))
            self._in_trouble(str(error))
            self._give_back(tickets, error, groups)
        except Exception as error:  # a defect of ours: it must not stop the writer, nor be tried again for ever
            log.exception("commit failed")
            self._in_trouble(f"an internal error: {error!r}")
            self._fail(tickets, CommitUnknown(self._trouble), groups)
        else:
            self._trouble = None
            if tickets:
                self._answer(tickets, verdicts, started_at_s, groups)

    def _in_trouble(self, reason: str) -> None:
        self._loop.call_soon_threadsafe(self._metrics.commit_failed)
        # The first probe comes at once: one failed sync need not mean that the next one fails.
        self._probe_at_s = self._clock_s() + (0 if self._trouble is None else PROBE_INTERVAL_S)
        self._trouble = reason

    def _answer(self, tickets: list[_Ticket], verdicts: list[list[Verdict]], started_at_s: float, groups: int) -> None:
        now_s = self._clock_s()
        counts: Counter[Outcome] = Counter()
        for ticket, ticket_verdicts in zip(tickets, verdicts, strict=True):
            ticket.verdicts = ticket_verdicts
            counts.update(count_outcomes(ticket_verdicts))
        if log.is_enabled_for(logging.INFO):
            named_counts = {outcome.value: count for outcome, count in counts.items() if count}
            log.info("commit", requests=len(tickets), ms=round((now_s - started_at_s) * 1000, 1), **named_counts)
        if counts[Outcome.DUPLICATE] and log.is_enabled_for(logging.DEBUG):
            _log_duplicates(tickets)
        latencies_s = [now_s - ticket.accepted_at_s for ticket in tickets]
        self._loop.call_soon_threadsafe(self._finish, tickets, groups, counts, latencies_s, now_s - started_at_s)

    def _refuse_all(self, waiting: deque[_Group]) -> None:
        """Answer what was already in line when a commit failed: its publishers should not wait for the recovery."""
        while waiting:
            self._give_back(waiting.popleft().tickets, Unavailable(self._trouble), 1)

    def _recover(self) -> None:
        """When it is time, recover the store and try a real commit, of what still has to be committed if anything."""
        if self._clock_s() < self._probe_at_s or (self._stopping.is_set() and not self._retry):
            return
        retry, self._retry = self._retry, []
        self._generation += 1
        try:
            self._store.recover(self._report_recovery)
        except SekaliError as error:
            self._in_trouble(str(error))
            self._retry = retry
            return
        batches = [ticket.batch for ticket in retry]
        self._try_commit(retry, lambda: [self._store.prepare(batches)] if batches else [], 0)
        if self._trouble is None:
            log.info("commits work again")

    def _give_back(self, tickets: list[_Ticket], failure: SekaliError, groups: int) -> None:
        self._retry += [ticket for ticket in tickets if ticket.keep]
        self._fail([ticket for ticket in tickets if not ticket.keep], failure, groups)

    def _fail(self, tickets: list[_Ticket], failure: SekaliError, groups: int) -> None:
        for ticket in tickets:
            ticket.failure = failure
        self._loop.call_soon_threadsafe(self._resolve, tickets, groups)

    # On the event loop again.

    def _finish(
        self,
        tickets: list[_Ticket],
        groups: int,
        counts: Counter[Outcome],
        latencies_s: list[float],
        duration_s: float,
    ) -> None:
        self._metrics.committed(counts, latencies_s, duration_s)
        self._resolve(tickets, groups)

    def _resolve(self, tickets: list[_Ticket], groups: int) -> None:
        """Answer tickets; so many groups are no longer ahead."""
        self._groups_ahead -= groups
        self._schedule()
        for ticket in tickets:
            ticket.done = True
            self._events_waiting -= len(ticket.batch)
            try:
                ticket.on_done(ticket.verdicts, ticket.failure)
            except Exception:  # a defect of ours: the others get their answers
                log.exception("answering failed")
        while self._in_flight and self._in_flight[0].done:
            self._in_flight.popleft()


def _log_duplicates(tickets: list[_Ticket]) -> None:
    for ticket in tickets:
        for position, verdict in enumerate(ticket.verdicts):
            if verdict.outcome is Outcome.DUPLICATE:
                log.debug("[DUP] drop %s/%s", ticket.batch.topics[position], ticket.batch.event_ids[position])
