"""The publisher: takes events at any time, sends them in batches in the background, and says what became of each."""

import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, Unpack

from sekali.client.background import is_ours, ours, register
from sekali.client.connect import open_server
from sekali.client.delivery import Delivery, Verdict
from sekali.client.errors import ClientError, PublisherClosed
from sekali.client.events import Event, EventFields, Ids, new_event
from sekali.client.http import Server
from sekali.client.notices import Notices
from sekali.client.outbox_file import FileDesk, OutboxFile
from sekali.client.pump import Pump, ServerSink
from sekali.client.relay import Relay
from sekali.client.sending import Entry, Limits, Line, WhenFull

FLUSH_S = 30.0
CLOSE_S = 10.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What a publisher has done so far.

    Every event of ``published`` is one of the five outcomes, ``dropped`` (for whatever reason, on_drop says which) or
    one of ``held_events``. With an outbox ``published`` and ``dropped`` are of this publisher, while the outcomes are
    of what it sent from the outbox, whoever put it there.
    """

    published: int
    stored: int
    duplicate: int
    conflict: int
    invalid: int
    dropped: int
    held_events: int
    held_bytes: int


class Publisher:
    """Publishes events to a server. Safe to use from many threads.

    After a fork the parent sends what was published before, and the child's publisher is empty. With an outbox the
    child's is closed: SQLite does not survive a fork. Make publishers with an outbox after it.

    Args:
        url: of the server.
        api_key: ``id.secret``; else ``SEKALI_API_KEY`` of the environment.
        ca_file: certificates (PEM) to trust for https; else ``SEKALI_CA_FILE``, else the system's.
        source: that of events which do not say theirs.
        ids: how ids are made; see ``new_event``.
        limits: of the buffer and of a batch.
        when_full: what happens to an event for which there is no room: ``block``, ``raise``, ``drop_oldest`` or
            ``drop_newest``; with an outbox one of the first two.
        connections: requests under way at once. With one, the events of a topic are stored in the order in which they
            were published; with more they are not.
        outbox: a file. ``publish`` returns when its event is on disk there, and whatever is on disk is sent, now or by
            the next publisher with this outbox.
        on_verdict: told of each event and its verdict. Without it, conflicts and invalid events are logged.
        on_drop: told of each event that was dropped, given up or refused, and why. Without it that is logged.
        random_share: random numbers in [0, 1), for the waits between attempts.

    Callbacks run on a thread of the publisher and must not wait for it.

    Raises:
        ValueError: an argument is not what it should be.
        OutboxFailed: the file cannot be made or opened.

    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        ca_file: str | None = None,
        source: str = "",
        ids: Ids = "uuid7",
        limits: Limits = Limits(),  # noqa: B008 - frozen
        when_full: WhenFull | str = WhenFull.BLOCK,
        connections: int = 1,
        outbox: OutboxFile | str | os.PathLike[str] | None = None,
        on_verdict: Callable[[Event, Verdict], object] | None = None,
        on_drop: Callable[[Event, Exception], object] | None = None,
        random_share: Callable[[], float] = random.random,
    ) -> None:
        self._server_address = (url, api_key, ca_file)
        self._make_server().close()  # complains of the URL here rather than on another thread
        self._source, self._ids = source, ids
        self._limits, self._when_full = limits, WhenFull(when_full)
        self._connections = connections
        self._on_verdict, self._on_drop = on_verdict, on_drop
        self._random_share = random_share
        self._file = outbox if outbox is None or isinstance(outbox, OutboxFile) else OutboxFile(outbox)
        if connections < 1 or (self._file is not None and connections > 1):
            raise ValueError("there is one connection or more; with an outbox exactly one")
        if self._file is not None and self._when_full not in {WhenFull.BLOCK, WhenFull.RAISE}:
            raise ValueError("with an outbox nothing is dropped: when_full is block or raise")
        if self._file is not None:
            self._file.prepare()
        self._begin()
        if self._relay is not None:
            self._relay.start()
        self._is_of_parent = False
        register(self)

    def _make_server(self) -> Server:
        return open_server(*self._server_address, give_up_after_s=0)

    def _begin(self) -> None:
        """Make everything that a fork would break."""
        self._notices = Notices()
        self._lock = threading.RLock()  # a signal handler may publish while its own thread does
        self._tally: Counter[str] = Counter()
        self._untallied: deque[Mapping[str, int]] = deque()
        self._is_tallying = False
        self._has_ended: bool | None = None
        self._relay: Relay | None = None
        self._desk: FileDesk | None = None
        if self._file is not None:
            self._desk, self._relay = self._with_outbox(self._file)
        desk = self._desk
        # Whoever waits for the disk is waiting already, and with him everyone who comes meanwhile: no lingering.
        limits = self._limits if desk is None else replace(self._limits, linger_s=0.0)
        self._pump = Pump(
            Line(limits, self._when_full),
            (lambda: desk) if desk is not None else (lambda: ServerSink(self._make_server())),
            threads=self._connections,
            accepts_on_arrival=desk is not None,
            on_arrival=self._arrived,
            on_drop=lambda entries, error: self._dropped([entry.of for entry in entries], error),
            on_trouble=lambda trouble: self._notices.warn("attempts to publish came to nothing", trouble),
            random_share=self._random_share,
        )

    def _with_outbox(self, file: OutboxFile) -> tuple[FileDesk, Relay]:
        desk = FileDesk(file, waits_when_full=self._when_full is WhenFull.BLOCK)
        relay = Relay(
            self._server_address[0],
            file.outbox,
            file.open,
            api_key=self._server_address[1],
            ca_file=self._server_address[2],
            batch_events_max=self._limits.batch_events_max,
            on_verdict=lambda event, verdict: self._judged([(event, verdict)]),
            on_settled=desk.settle,
            on_standby=desk.look_up,
            random_share=self._random_share,
        )
        desk.on_written = relay.wake
        return desk, relay

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def new_event(self, topic: str, payload: Any, **fields: Unpack[EventFields]) -> Event:
        """Make an event as ``publish`` does, without publishing it; see ``sekali.client.new_event``."""
        fields.setdefault("source", self._source)
        return new_event(topic, payload, ids=self._ids, **fields)

    def publish(self, topic: str, payload: Any, **fields: Unpack[EventFields]) -> Delivery:
        """Publish an event, and return a handle on its verdict at once, or with an outbox when it is on disk.

        Args:
            topic: a path such as ``app/prod/api``.
            payload: any value that JSON can hold.
            fields: ``event_id``, ``timestamp``, ``source`` and ``source_seq``; see ``sekali.client.new_event``.

        Raises:
            TypeError, ValueError: see ``new_event``; or the event is larger than the buffer.
            BufferFull: there is no room, and ``when_full`` is ``raise``, or it is a callback that publishes.
            Unreachable: there was no room until the time to give up.
            OutboxFailed: it is not on disk. To try again, keep the event: ``new_event``, then ``publish_event``.
            PublisherClosed: too late.

        """
        return self.publish_event(self.new_event(topic, payload, **fields))

    def publish_event(self, event: Event) -> Delivery:
        """Publish an event that was made before. Raises as ``publish`` does."""
        entry = self.offer(event)
        if entry.accepted is not None:
            try:
                entry.accepted.result()
            except BaseException:
                self.withdraw(entry)
                raise
        return entry.delivery

    def offer(self, event: Event, *, may_wait: bool = True) -> Entry:
        """Take an event in without waiting: what ``publish`` does for threads, asyncio and log handlers alike.

        If the entry has ``accepted``, the event is taken when that is done. Raises as ``publish`` does.
        """
        if self._is_of_parent:
            raise PublisherClosed("the outbox was open before the process was forked; make a publisher after the fork")
        if self._relay is not None and may_wait and is_ours():
            raise RuntimeError("a callback cannot publish into the outbox, because it would wait for itself")
        entry = self._pump.offer(event, may_wait=may_wait)
        self._count({"published": 1})
        return entry

    def publish_or_drop(self, event: Event) -> None:
        """Publish an event if that needs no waiting, else drop it, whatever ``when_full`` is. For log handlers.

        With an outbox it does not wait for the disk either.
        """
        try:
            self.offer(event, may_wait=False)
        except (ClientError, ValueError) as error:
            self._count({"published": 1})
            with ours():  # what is logged about it is not published, and dropped, in its turn
                self._dropped([event], error)

    def withdraw(self, entry: Entry) -> None:
        """Take back what was offered, as far as it is not under way: nobody waits for it any more."""
        if self._pump.withdraw(entry):
            self._count({"published": -1})

    def counts(self) -> Counts:
        """Return what was done so far."""
        held_events, held_bytes = self._pump.held()
        self._count({})
        with self._lock:
            tally = self._tally.copy()
        names = ("published", "stored", "duplicate", "conflict", "invalid", "dropped")
        return Counts(**{name: tally[name] for name in names}, held_events=held_events, held_bytes=held_bytes)

    def flush(self, timeout_s: float = FLUSH_S) -> bool:
        """Wait until everything published so far has its verdict or was dropped; tell whether that is so.

        Raises:
            RuntimeError: called in a callback.

        """
        deadline_s = time.monotonic() + timeout_s
        is_done = self._pump.flush(timeout_s)
        if self._relay is not None:
            is_done = self._relay.flush(max(0.0, deadline_s - time.monotonic())) and is_done
        return is_done

    def close(self, timeout_s: float = CLOSE_S) -> bool:
        """Publish no more, wait for what is left, and end; tell whether everything got its verdict.

        What did not in time is dropped (``PublisherClosed``), or with an outbox stays on disk.

        Raises:
            RuntimeError: called in a callback.

        """
        if self._has_ended is None:
            deadline_s = time.monotonic() + timeout_s
            self._has_ended = self._pump.close(timeout_s)
            if self._relay is not None:
                self._has_ended &= self._relay.flush(max(0.0, deadline_s - time.monotonic()))
                self._relay.close(max(0.0, deadline_s - time.monotonic()))
            with ours():  # a log handler of this publisher shall not take it for a record
                self._notices.say_rest()
        return self._has_ended

    def at_exit(self, deadline_s: float) -> None:
        """Send what can be sent before the process ends."""
        if self._has_ended is None and not self.flush(max(0.0, deadline_s - time.monotonic())):
            held_events, _ = self._pump.held()
            with ours():
                self._notices.warn("events not sent at the end of the process", f"{held_events} were in the buffer")

    def after_fork(self) -> None:
        """Be empty in a child: what was published before is the parent's to send."""
        has_ended = self._has_ended
        self._begin()
        self._is_of_parent = self._file is not None
        if has_ended is not None or self._is_of_parent:
            self._has_ended = self._pump.close(0)

    def _count(self, more: Mapping[str, int]) -> None:
        self._untallied.append(more)
        with self._lock:
            if self._is_tallying:  # this is a signal handler, and its own thread is in the middle of an addition, below
                return
            self._is_tallying = True
            while self._untallied:
                self._tally.update(self._untallied.popleft())
            self._is_tallying = False

    def _arrived(self, entries: Sequence[Entry], verdicts: Sequence[Verdict] | None) -> None:
        if verdicts is None:  # on disk; the rest is up to the relay
            return
        for entry, verdict in zip(entries, verdicts, strict=True):
            entry.delivery.settle(verdict)
        self._judged([(entry.of, verdict) for entry, verdict in zip(entries, verdicts, strict=True)])

    def _judged(self, verdicts: list[tuple[Event, Verdict]]) -> None:
        self._count(Counter(verdict.outcome for _, verdict in verdicts))
        if self._on_verdict is not None:
            for event, verdict in verdicts:
                self._notices.call(self._on_verdict, event, verdict)
            return
        bad = [(event, verdict) for event, verdict in verdicts if not verdict.ok]
        if bad:
            event, verdict = bad[-1]
            self._notices.warn("events not stored", f"{event.topic}/{event.event_id}: {verdict}", len(bad))

    def _dropped(self, events: Sequence[Event], error: Exception) -> None:
        self._count({"dropped": len(events)})
        if self._on_drop is not None:
            for event in events:
                self._notices.call(self._on_drop, event, error)
        else:
            self._notices.warn("events dropped", str(error), len(events))
