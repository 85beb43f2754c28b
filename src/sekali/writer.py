"""The one thread that commits: groups in the order prepared, and what to do when a commit fails.

A commit that failed is *unknown*: its publishers are told to send again, the store is recovered from what is stored,
and a real commit shows whether it works again. That is tried a bounded number of times. Only a full disk is waited for,
because that ends by itself.
"""

import logging
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from sekali.errors import CommitUnknown, DiskFull, SekaliError, Unavailable
from sekali.event import Outcome, Verdict, count_outcomes
from sekali.ports import EventStore, Progress, no_progress
from sekali.tickets import ChangeTicket, Group, Ticket

PROBE_INTERVAL_S = 1.0
PROBES_MAX = 30

log = structlog.get_logger("sekali.writer")


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit did. Times are in seconds."""

    counts: Counter[Outcome]
    latencies_s: list[float]  # of each ticket
    duration_s: float


@dataclass(frozen=True, slots=True)
class Listener:
    """Whom the writer tells, on its own thread. ``done`` gets tickets, and of how many groups they were.

    Those of changes have failed if there is no ``Committed``.
    """

    ready: Callable[[], None]
    done: Callable[[list[Ticket], list[ChangeTicket], int, Committed | None], None]
    failed: Callable[[], None]
    gave_up: Callable[[str], None]
    recovered: Callable[[], None] = lambda: None
    recovering: Progress = no_progress


class Writer:
    """Commits what is put in line. ``trouble`` says why it cannot; ``generation`` counts its recoveries of the store.

    ``clock_s`` is monotonic. After ``PROBES_MAX`` failures in a row it gives up.
    """

    def __init__(
        self,
        store: EventStore,
        clock_s: Callable[[], float],
        listener: Listener,
        *,
        commit_events_max: int,
    ) -> None:
        self._store = store
        self._clock_s = clock_s
        self._listener = listener
        self._commit_events_max = commit_events_max
        self._groups: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._retry: list[Ticket] = []  # respond-async tickets whose commit failed
        self._probe_at_s = 0.0
        self._probes_failed = 0
        self._has_given_up = False
        self._store_is_sound = False
        self.trouble: str | None = "the server is starting"
        self.generation = 0
        self.busy_since_s: float | None = None  # when the commit that is under way began
        self._thread = threading.Thread(target=self._run, name="sekali-writer", daemon=True)

    def start(self) -> None:
        """Start the thread. Call once."""
        self._thread.start()

    def put(self, group: Group) -> None:
        """Put a group in line."""
        self._groups.put(group)

    def begin_to_stop(self) -> None:
        """Try nothing again that can be left."""
        self._stopping.set()

    def end(self) -> None:
        """Say that no group comes any more."""
        self._groups.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the thread; False if it did not come."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # On the thread.

    def _run(self) -> None:
        try:
            self._open_store()
            self._write()
        except BaseException as error:  # a defect of ours; without this thread nothing is ever answered
            log.exception("the writer ended")
            self.trouble = f"an internal error: {error!r}"
            self._give_up()

    def _write(self) -> None:
        waiting: deque[Group] = deque()
        running = True
        while running or waiting:
            running = self._line_up(waiting, wait=running) and running
            if self.trouble is not None:
                self._refuse_all(waiting)
                self._recover()
            elif waiting:
                self.busy_since_s = self._clock_s()
                self._commit(self._next_groups(waiting))
                self.busy_since_s = None
        if self._retry:
            log.error("stopped before these could be committed", requests=len(self._retry))
            self._fail(self._retry, [], Unavailable(), 0)

    def _open_store(self) -> None:
        """Get the store ready for its first commit, however long that takes."""
        while True:
            try:
                self._store.recover(self._report_recovery)
            except SekaliError as error:
                if self._stopping.is_set():
                    return
                log.error("the store cannot be opened", reason=str(error))
                self.trouble = str(error)
                self._count_failure(error)
                self._stopping.wait(PROBE_INTERVAL_S)
            else:
                self.trouble = None
                self._store_is_sound = True
                self._probes_failed = 0
                self._listener.ready()
                return

    def _report_recovery(self, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise Unavailable("stopped while the dedup index was made; the next start goes on with it")
        self.trouble = f"the dedup index is being made from the log: {done:,} of {total:,} events"
        self._listener.recovering(done, total)

    def _line_up(self, waiting: deque[Group], *, wait: bool) -> bool:
        """Move the groups in line to ``waiting``, and wait for one if there is none; False when no more will come.

        In trouble the wait ends when it is time to probe.
        """
        while True:
            try:
                if waiting or not wait:
                    group = self._groups.get_nowait()
                elif self.trouble is None:
                    group = self._groups.get()
                else:
                    group = self._groups.get(timeout=max(self._probe_at_s - self._clock_s(), 0))
            except queue.Empty:
                return True
            if group is None:
                return False
            waiting.append(group)

    def _next_groups(self, waiting: deque[Group]) -> list[Group]:
        """Take the first group, and those behind it that fit into its commit."""
        groups = [waiting.popleft()]
        size = len(groups[0])
        while waiting and groups[-1].failure is None and size + len(waiting[0]) <= self._commit_events_max:
            groups.append(waiting.popleft())
            size += len(groups[-1])
        return groups

    def _commit(self, groups: Sequence[Group]) -> None:
        last = groups[-1]
        if last.failure is not None:  # nothing comes behind a group that failed, see _next_groups
            groups = groups[:-1]
        if groups:
            tickets = [ticket for group in groups for ticket in group.tickets]
            changes = [change for group in groups for change in group.changes]
            # One may also have been left unprepared in trouble that is over by now.
            stale = any(group.generation != self.generation or not group.is_prepared for group in groups)
            if stale:
                again = Unavailable("the store was recovering; send the request again")
                self._give_back(tickets, changes, again, len(groups))
            else:
                self._try_commit(
                    tickets, changes, lambda: [one for group in groups for one in group.to_commit], len(groups)
                )
        if last.failure is not None:
            if isinstance(last.failure, CommitUnknown | DiskFull):
                log.error("prepare failed", reason=str(last.failure))
                self._in_trouble(last.failure)
            self._give_back(last.tickets, last.changes, last.failure, 1)

    def _try_commit(
        self, tickets: list[Ticket], changes: list[ChangeTicket], prepare: Callable[[], list[Any]], groups: int
    ) -> None:
        started_at_s = self._clock_s()
        try:
            verdicts = self._store.commit(prepare())
        except SekaliError as error:
            if str(error) != self.trouble:
                log.error("commit failed", reason=str(error))
            self._in_trouble(error)
            self._give_back(tickets, changes, error, groups)
        except Exception as error:  # a defect of ours: it must not stop the writer, nor be tried again for ever
            log.exception("commit failed")
            unknown = CommitUnknown(f"an internal error: {error!r}")
            self._in_trouble(unknown)
            self._fail(tickets, changes, unknown, groups)
        else:
            self.trouble = None
            self._probes_failed = 0
            if tickets or changes:
                self._answer(tickets, changes, verdicts, started_at_s, groups)

    def _in_trouble(self, error: SekaliError) -> None:
        self._listener.failed()
        # Whoever has nothing left on the disk has changed nothing, in the file or in memory.
        self._store_is_sound = self._store_is_sound and isinstance(error, DiskFull)
        # The first probe comes at once: one failed sync need not mean that the next one fails.
        self._probe_at_s = self._clock_s() + (0 if self.trouble is None else PROBE_INTERVAL_S)
        self.trouble = str(error)
        self._count_failure(error)

    def _count_failure(self, error: SekaliError) -> None:
        if isinstance(error, DiskFull):
            return
        self._probes_failed += 1
        if self._probes_failed > PROBES_MAX:
            self._give_up()

    def _give_up(self) -> None:
        if not self._has_given_up:
            self._has_given_up = True
            self._fail(self._retry, [], Unavailable(self.trouble), 0)
            self._retry = []
            self._listener.gave_up(str(self.trouble))

    def _answer(
        self,
        tickets: list[Ticket],
        changes: list[ChangeTicket],
        verdicts: list[list[Verdict]],
        started_at_s: float,
        groups: int,
    ) -> None:
        now_s = self._clock_s()
        counts: Counter[Outcome] = Counter()
        for ticket, ticket_verdicts in zip(tickets, verdicts, strict=True):
            ticket.verdicts = ticket_verdicts
            counts.update(count_outcomes(ticket_verdicts))
        if log.is_enabled_for(logging.INFO):
            named_counts = {outcome.value: count for outcome, count in counts.items() if count}
            if changes:
                named_counts["changes"] = len(changes)
            log.info("commit", requests=len(tickets), ms=round((now_s - started_at_s) * 1000, 1), **named_counts)
        if counts[Outcome.DUPLICATE] and log.is_enabled_for(logging.DEBUG):
            _log_duplicates(tickets)
        latencies_s = [now_s - ticket.accepted_at_s for ticket in tickets]
        self._listener.done(tickets, changes, groups, Committed(counts, latencies_s, now_s - started_at_s))

    def _refuse_all(self, waiting: deque[Group]) -> None:
        """Answer what was already in line when a commit failed: its publishers should not wait for the recovery."""
        while waiting:
            group = waiting.popleft()
            if group.prepared is not None:  # and the store counts on its being committed
                self._store_is_sound = False
            self._give_back(group.tickets, group.changes, Unavailable(self.trouble), 1)

    def _recover(self) -> None:
        """When it is time, recover the store and try a real commit, of what still has to be committed if anything."""
        if self._clock_s() < self._probe_at_s or self._has_given_up or (self._stopping.is_set() and not self._retry):
            return
        retry, self._retry = self._retry, []
        if not self._store_is_sound:
            self.generation += 1
            try:
                self._store.recover(self._report_recovery)
            except SekaliError as error:
                self._retry = retry
                self._in_trouble(error)
                return
            self._store_is_sound = True
            self._listener.recovered()
        batches = [ticket.batch for ticket in retry]
        self._try_commit(retry, [], lambda: [self._store.prepare(batches)], 0)
        if self.trouble is None:
            log.info("commits work again")

    def _give_back(self, tickets: list[Ticket], changes: list[ChangeTicket], failure: SekaliError, groups: int) -> None:
        self._retry += [ticket for ticket in tickets if ticket.keep]
        self._fail([ticket for ticket in tickets if not ticket.keep], changes, failure, groups)

    def _fail(self, tickets: list[Ticket], changes: list[ChangeTicket], failure: SekaliError, groups: int) -> None:
        for ticket in tickets:
            ticket.failure = failure
        for change in changes:
            change.failure = failure
        self._listener.done(tickets, changes, groups, None)


def _log_duplicates(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        for position, verdict in enumerate(ticket.verdicts):
            if verdict.outcome is Outcome.DUPLICATE:
                log.debug("[DUP] drop %s/%s", ticket.batch.topics[position], ticket.batch.event_ids[position])
