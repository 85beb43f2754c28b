"""The way from an accepted batch to its verdicts: bounded queue, workers, group commit, answers.

::

    event loop          worker threads              writer thread
    submit() ───queue──> take what waits, ──groups──> commit groups together ──> answers, back on the loop
                         prepare it

A group is put in line for the writer at the moment a worker takes it from the queue, so the way is first-in first-out
with any number of workers. Groups form by themselves: while the writer is busy, requests wait, and whatever waits is
committed together. The consumer knows the store only as a port.
"""

import asyncio
import logging
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from sekali.errors import CommitUnknown, QueueFull, SekaliError, Unavailable
from sekali.event import Batch, Outcome, Verdict, count_outcomes
from sekali.metrics import Metrics
from sekali.ports import EventStore, Progress, no_progress

PROBE_INTERVAL_S = 1.0

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
    """Tickets that a worker took together; the writer waits for ``ready``."""

    tickets: list[_Ticket]
    ready: threading.Event = field(default_factory=threading.Event)
    prepared: Any = None
    failure: Exception | None = None

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
        self._queue: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self._taking = threading.Lock()
        self._groups: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()
        self._groups_ahead = threading.Semaphore(workers + 1)
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
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
        self._threads = [
            threading.Thread(target=self._work, name=f"sekali-worker-{number}", daemon=True)
            for number in range(self._worker_count)
        ]
        self._threads.append(threading.Thread(target=self._write, name="sekali-writer", daemon=True))
        for thread in self._threads:
            thread.start()

    async def stop(self, timeout_s: float) -> bool:
        """Refuse what comes, commit what was accepted, stop the threads; False if that took longer."""
        self._stopping.set()
        self._queue.put(None)
        deadline_s = self._clock_s() + timeout_s
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(deadline_s - self._clock_s(), 0))
        return not any(thread.is_alive() for thread in self._threads)

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
        self._accept(_Ticket(batch, accepted_at_s, on_done, keep))

    def _accept(self, ticket: _Ticket) -> None:
        if self._stopping.is_set():
            raise Unavailable("the server is stopping; send the request again, to the one that follows it")
        if self._trouble is not None:
            raise Unavailable(self._trouble)
        if self._events_waiting + len(ticket.batch) > self._queue_events_max:
            raise QueueFull(
                f"the queue is full: {self._events_waiting} events wait, at most {self._queue_events_max} may "
                "(QUEUE_EVENTS_MAX); send the request again"
            )
        self._events_waiting += len(ticket.batch)
        self._in_flight.append(ticket)
        self._queue.put(ticket)

    # On the worker threads.

    def _work(self) -> None:
        while True:
            self._groups_ahead.acquire()
            with self._taking:
                group = self._take()
                self._groups.put(group)
            if group is None:
                return
            try:
                group.prepared = self._store.prepare([ticket.batch for ticket in group.tickets])
            except Exception as error:  # a defect of ours: that group gets an answer and the others go on
                log.exception("prepare failed")
                group.failure = error
            group.ready.set()

    def _take(self) -> _Group | None:
        """Wait for a ticket, then take all that waits, up to the size of a commit."""
        first = self._queue.get()
        if first is None:
            self._queue.put(None)  # for the other workers
            return None
        tickets, size = [first], len(first.batch)
        deadline_s = self._clock_s() + self._commit_wait_s_max
        while size < self._commit_events_max:
            try:
                wait_s = deadline_s - self._clock_s() if self._commit_wait_s_max else 0
                ticket = self._queue.get(block=wait_s > 0, timeout=max(wait_s, 0))
            except queue.Empty:
                break
            if ticket is None:
                self._queue.put(None)
                break
            tickets.append(ticket)
            size += len(ticket.batch)
        return _Group(tickets)

    # On the writer thread.

    def _write(self) -> None:
        self._open_store()
        waiting: deque[_Group] = deque()
        workers_running = self._worker_count
        while workers_running or waiting:
            workers_running -= self._line_up(waiting, wait=bool(workers_running))
            if self._trouble is not None:
                self._refuse_all(waiting)
                self._recover()
            elif waiting:
                self._commit(self._next_groups(waiting))
        if self._retry:
            log.error("stopped before these could be committed", requests=len(self._retry))
            self._fail(self._retry, Unavailable())

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

    def _line_up(self, waiting: deque[_Group], *, wait: bool) -> int:
        """Move the groups in line to ``waiting``, and wait for one if there is none; return how many workers ended.

        In trouble the wait ends when it is time to probe.
        """
        ended = 0
        while True:
            try:
                if waiting or ended or not wait:
                    group = self._groups.get_nowait()
                elif self._trouble is None:
                    group = self._groups.get()
                else:
                    group = self._groups.get(timeout=max(self._probe_at_s - self._clock_s(), 0))
            except queue.Empty:
                return ended
            if group is None:
                ended += 1
            else:
                waiting.append(group)

    def _next_groups(self, waiting: deque[_Group]) -> list[_Group]:
        """Take the first group, once it is ready, and those behind it that are ready too and fit into its commit."""
        waiting[0].ready.wait()
        groups = [waiting.popleft()]
        size = len(groups[0])
        while waiting and waiting[0].ready.is_set() and size + len(waiting[0]) <= self._commit_events_max:
            groups.append(waiting.popleft())
            size += len(groups[-1])
        self._groups_ahead.release(len(groups))
        return groups

    def _commit(self, groups: Sequence[_Group]) -> None:
        tickets: list[_Ticket] = []
        prepared: list[Any] = []
        for group in groups:
            if group.failure is None:
                tickets += group.tickets
                prepared.append(group.prepared)
            else:
                self._fail(group.tickets, Unavailable(f"an internal error: {group.failure!r}"))
        self._try_commit(tickets, lambda: prepared)

    def _try_commit(self, tickets: list[_Ticket], prepare: Callable[[], list[Any]]) -> None:
        started_at_s = self._clock_s()
        try:
            verdicts = self._store.commit(prepare())
        except CommitUnknown as error:
            log.error("commit failed", reason=str(error))
            self._in_trouble(str(error))
            self._give_back(tickets, error)
        except Exception as error:  # a defect of ours: it must not stop the writer, nor be tried again for ever
            log.exception("commit failed")
            self._in_trouble(f"an internal error: {error!r}")
            self._fail(tickets, CommitUnknown(self._trouble))
        else:
            self._trouble = None
            if tickets:
                self._answer(tickets, verdicts, started_at_s)

    def _in_trouble(self, reason: str) -> None:
        self._loop.call_soon_threadsafe(self._metrics.commit_failed)
        # The first probe comes at once: one failed sync need not mean that the next one fails.
        self._probe_at_s = self._clock_s() + (0 if self._trouble is None else PROBE_INTERVAL_S)
        self._trouble = reason

    def _answer(self, tickets: list[_Ticket], verdicts: list[list[Verdict]], started_at_s: float) -> None:
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
        self._loop.call_soon_threadsafe(self._finish, tickets, counts, latencies_s, now_s - started_at_s)

    def _refuse_all(self, waiting: deque[_Group]) -> None:
        """Answer what was already in line when a commit failed: its publishers should not wait for the recovery."""
        while waiting:
            group = waiting.popleft()
            group.ready.wait()
            self._groups_ahead.release()
            self._give_back(group.tickets, Unavailable(self._trouble))

    def _recover(self) -> None:
        """When it is time, recover the store and try a real commit, of what still has to be committed if anything."""
        if self._clock_s() < self._probe_at_s:
            return
        retry, self._retry = self._retry, []
        try:
            self._store.recover(self._report_recovery)
        except SekaliError as error:
            self._in_trouble(str(error))
            self._retry = retry
            return
        self._try_commit(retry, lambda: [self._store.prepare([ticket.batch for ticket in retry])])
        if self._trouble is None:
            log.info("commits work again")

    def _give_back(self, tickets: list[_Ticket], failure: SekaliError) -> None:
        self._retry += [ticket for ticket in tickets if ticket.keep]
        self._fail([ticket for ticket in tickets if not ticket.keep], failure)

    def _fail(self, tickets: list[_Ticket], failure: SekaliError) -> None:
        for ticket in tickets:
            ticket.failure = failure
        self._settle(tickets)

    def _settle(self, tickets: list[_Ticket]) -> None:
        if tickets:
            self._loop.call_soon_threadsafe(self._resolve, tickets)

    # On the event loop again.

    def _finish(
        self, tickets: list[_Ticket], counts: Counter[Outcome], latencies_s: list[float], duration_s: float
    ) -> None:
        self._metrics.committed(counts, latencies_s, duration_s)
        self._resolve(tickets)

    def _resolve(self, tickets: list[_Ticket]) -> None:
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
