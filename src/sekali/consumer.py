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
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import structlog

from sekali.delivery import Change
from sekali.errors import CommitUnknown, QueueFull, SekaliError, Unavailable
from sekali.event import Batch, Outcome
from sekali.metrics import Metrics
from sekali.ports import EventStore, Progress, no_progress
from sekali.tickets import ChangeTicket, Group, OnDone, Ticket
from sekali.writer import Committed, Listener, Writer

# Told how many events a commit stored, the newest seq, and the topics of all that was sent, in any number of lists.
OnStored = Callable[[int, int, list[list[str]]], None]

# Groups prepared and not committed yet. With more, preparing goes on beside a commit; measured, both then wait for the
# interpreter lock so often that batches gain nothing and single events lose a third (docs/decisions/0008).
GROUPS_AHEAD_MAX = 1
# A disk that neither fails nor answers.
COMMIT_TIMEOUT_S = 30.0
LOOK_INTERVAL_S = 1.0

log = structlog.get_logger("sekali.consumer")


class Consumer:
    """Commits batches in the order accepted, and answers each after the commit that holds it.

    ``clock_s`` is monotonic. Start it on a running event loop, to which ``submit`` belongs.
    The queue holds at most ``queue_events_max`` events, those being committed included. ``on_recovery`` is told, on the
    writer's thread, how far the store has come where it takes long to get ready; ``on_give_up`` once, on the loop, why
    no commit works and none will be tried any more. ``on_stored`` is told on the loop of each commit that stored
    something; ``on_recovered`` when that may have happened without a word, because a commit failed. Requests get no
    verdict from a commit that takes longer than ``COMMIT_TIMEOUT_S``, and none are taken until it ends.
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
        on_give_up: Callable[[str], None] = lambda reason: None,
        on_stored: OnStored = lambda count, newest, topics: None,
        on_recovered: Callable[[], object] = lambda: None,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._clock_s = clock_s
        self._worker_count = workers
        self._queue_events_max = queue_events_max
        self._commit_events_max = commit_events_max
        self._commit_wait_s_max = commit_wait_ms_max / 1000
        self._on_give_up = on_give_up
        self._on_stored = on_stored
        self._accepted: deque[Ticket] = deque()
        self._changes: list[ChangeTicket] = []
        self._preparing_is_due = False
        self._groups_ahead = 0  # given to the writer and not finished
        self._stopping = False
        self._in_flight: deque[Ticket] = deque()  # in the order accepted, for the age of the oldest
        self._events_waiting = 0
        self._hanging: str | None = None
        listener = Listener(
            ready=lambda: self._on_loop(self.ready.set),
            done=lambda *done: self._on_loop(self._resolve, *done),
            failed=lambda: self._on_loop(metrics.commit_failed),
            gave_up=lambda reason: self._on_loop(self._on_give_up, reason),
            recovered=lambda: self._on_loop(on_recovered),
            recovering=on_recovery,
        )
        self._writer = Writer(store, clock_s, listener, commit_events_max=commit_events_max)

    def start(self) -> None:
        """Start the threads. Call once, on the event loop that will publish."""
        self._loop = asyncio.get_running_loop()
        self.ready = asyncio.Event()  # set once the store can commit for the first time
        self._worker = ThreadPoolExecutor(1, "sekali-worker") if self._worker_count else None
        self._look = self._loop.call_later(LOOK_INTERVAL_S, self._look_at_writer)
        self._writer.start()

    async def stop(self, timeout_s: float) -> bool:
        """Refuse what comes, commit what was accepted, stop the threads; False if that took longer."""
        if not self._stopping:
            self._stopping = True
            self._look.cancel()
            self._writer.begin_to_stop()
            while self._accepted or self._changes:
                self._prepare_next()
            if self._worker is None:
                self._writer.end()
            else:
                self._worker.submit(self._writer.end)
                self._worker.shutdown(wait=False)
        return await asyncio.to_thread(self._writer.join, timeout_s)

    @property
    def trouble(self) -> str | None:
        """Why nothing can be committed right now, or None."""
        return self._hanging or self._writer.trouble

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
        self.require_working()
        if self._events_waiting + len(batch) > self._queue_events_max:
            raise QueueFull(
                f"the queue is full: {self._events_waiting} events wait, at most {self._queue_events_max} may "
                "(QUEUE_EVENTS_MAX); send the request again"
            )
        ticket = Ticket(batch, accepted_at_s, on_done, keep)
        self._events_waiting += len(batch)
        self._in_flight.append(ticket)
        self._accepted.append(ticket)
        self._schedule()

    def change(self, changes: Sequence[Change], on_done: Callable[[SekaliError | None], None]) -> None:
        """Commit changes of subscriptions, with the next group of events, and call ``on_done`` on the event loop then.

        That gets the failure where the commit fails. Whatever was given here after changes that failed fails too: it
        may rest on them. A commit that hangs is not told of before it ends.

        Raises:
            Unavailable: the changes were not taken.

        """
        self.require_working()
        self._changes.append(ChangeTicket(changes, on_done))
        self._schedule()

    def require_working(self) -> None:
        """Refuse what could not be committed now.

        Raises:
            Unavailable: the server is stopping, or in trouble.

        """
        if self._stopping:
            raise Unavailable("the server is stopping; send the request again, to the one that follows it")
        if (trouble := self.trouble) is not None:
            raise Unavailable(trouble)

    def _schedule(self) -> None:
        """See to it that what waits is prepared: after what else is ready on the loop, which may bring more."""
        waits = self._accepted or self._changes
        if waits and not self._preparing_is_due and self._groups_ahead < GROUPS_AHEAD_MAX:
            self._preparing_is_due = True
            if self._commit_wait_s_max:
                self._loop.call_later(self._commit_wait_s_max, self._prepare_next)
            else:
                self._loop.call_soon(self._prepare_next)

    def _prepare_next(self) -> None:
        self._preparing_is_due = False
        tickets: list[Ticket] = []
        size = 0
        while self._accepted and (not tickets or size + len(self._accepted[0].batch) <= self._commit_events_max):
            tickets.append(self._accepted.popleft())
            size += len(tickets[-1].batch)
        changes, self._changes = self._changes, []
        if not tickets and not changes:
            return
        group = Group(tickets, changes, self._writer.generation)
        self._groups_ahead += 1
        if self._worker is None:
            self._prepare(group)
        else:
            self._worker.submit(self._prepare, group)
        self._schedule()

    def _prepare(self, group: Group) -> None:
        if self._writer.trouble is None:  # otherwise the writer gives it back
            try:
                if group.tickets:
                    group.prepared = self._store.prepare([ticket.batch for ticket in group.tickets])
                if group.changes:
                    changes = [change for ticket in group.changes for change in ticket.changes]
                    group.prepared_changes = self._store.prepare_changes(changes)
            except SekaliError as error:
                group.failure = error
            except Exception as error:  # a defect of ours: that group gets an answer and the others go on
                log.exception("prepare failed")
                group.failure = Unavailable(f"an internal error: {error!r}")
        self._writer.put(group)

    def _on_loop(self, callback: Callable[..., object], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(callback, *arguments)

    def _resolve(
        self, tickets: list[Ticket], changes: list[ChangeTicket], groups: int, committed: Committed | None
    ) -> None:
        """Take tickets back from the writer and answer them; so many groups are no longer ahead."""
        if committed is not None:
            self._metrics.committed(committed.counts, committed.latencies_s, committed.duration_s)
        elif changes:
            for change in self._changes:
                change.failure = changes[0].failure
            changes += self._changes
            self._changes = []
        self._groups_ahead -= groups
        if self._hanging is not None:
            log.info("the commit that hung has ended")
            self._hanging = None
        self._schedule()
        for ticket in tickets:
            ticket.done = True
            self._events_waiting -= len(ticket.batch)
            _answer(ticket)
        while self._in_flight and self._in_flight[0].done:
            self._in_flight.popleft()
        if committed is not None and (stored := committed.counts[Outcome.STORED]):
            _guarded(self._on_stored, stored, _newest(tickets), [ticket.batch.topics for ticket in tickets])
        for change in changes:
            _guarded(change.on_done, change.failure)

    def _look_at_writer(self) -> None:
        """Let nobody wait for a commit that hangs. Its events stay in the queue's count, until it ends."""
        self._look = self._loop.call_later(LOOK_INTERVAL_S, self._look_at_writer)
        since_s = self._writer.busy_since_s
        if self._hanging is not None or since_s is None or self._clock_s() - since_s < COMMIT_TIMEOUT_S:
            return
        self._hanging = (
            f"a commit has been under way for more than {COMMIT_TIMEOUT_S:g} s: the disk of the store does not answer"
        )
        log.error("a commit hangs", requests=len(self._in_flight), reason=self._hanging)
        self._metrics.commit_failed()
        for ticket in self._in_flight:
            if not ticket.keep:
                ticket.failure = CommitUnknown(self._hanging)
                _answer(ticket)


def _newest(tickets: list[Ticket]) -> int:
    """Return the highest seq of what was stored: that of the last, because seqs are given out in order."""
    verdicts = chain.from_iterable(reversed(ticket.verdicts) for ticket in reversed(tickets))
    return next(verdict.seq for verdict in verdicts if verdict.outcome is Outcome.STORED and verdict.seq is not None)


def _answer(ticket: Ticket) -> None:
    if ticket.answered:
        return
    ticket.answered = True
    _guarded(ticket.on_done, ticket.verdicts, ticket.failure)


def _guarded(callback: Callable[..., None], *arguments: object) -> None:
    try:
        callback(*arguments)
    except Exception:  # a defect of ours: the others get their answers
        log.exception("answering failed")
