"""The relay: sends what is in an outbox, and deletes or marks each row by the server's verdict.

At least once: a relay that dies between the answer and the deletion sends the row again, and the server finds the
duplicate. A row is never passed by, because nothing but the row itself says that it was sent.
"""

import math
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from sekali.client.background import is_ours, leave_to_the_parent, register, start_thread
from sekali.client.backoff import Patience
from sekali.client.batches import REQUEST_BYTES_MAX, publish_batch
from sekali.client.connect import open_server
from sekali.client.delivery import Verdict, read_verdict
from sekali.client.errors import ClientError, Unreachable
from sekali.client.events import Event
from sekali.client.notices import Notices
from sekali.client.outbox import Outbox, Settled, Waiting
from sekali.client.sql import Database, database_of
from sekali.client.turns import Turn, turn_of

POLL_S = 0.5
BATCH_EVENTS_MAX = 500
CLOSE_S = 10.0


@dataclass(slots=True, eq=False)
class _Flush:
    """Someone who waits until everything up to a row is sent; ``to_row`` is found by the relay."""

    to_row: int | None = None
    done: "Future[bool]" = field(default_factory=Future)


class Relay:
    """Sends from an outbox on a thread of its own, for as long as it takes.

    One relay sends at a time, whatever the number of processes; another one takes over when it ends. Trouble of any
    kind, a refused key included, is waited out: a row stays until the server has said what became of it. After a fork
    the parent's relay goes on; a child needs one of its own, and with SQLite only if nothing of the file was open.

    Args:
        url: of the server.
        outbox: the table.
        connect: opens a connection for the relay alone, with the library that the application uses for this database:
            two SQLite libraries in one process must not have one file open.
        api_key: ``id.secret``; else ``SEKALI_API_KEY`` of the environment.
        ca_file: certificates (PEM) to trust for https; else ``SEKALI_CA_FILE``, else the system's.
        batch_events_max: events in a request.
        poll_s: how often it looks for rows when there were none; ``wake`` makes it look at once.
        on_verdict: told of each event and its verdict, on the relay's thread. Without it, what is not stored is logged.
        on_settled: called with the connection and the rows of a request, before ``on_verdict``.
        on_standby: called with the connection while another relay has the turn.
        random_share: random numbers in [0, 1), for the waits between attempts.

    Raises:
        ValueError: the URL, the key or the file of certificates is not what it should be.

    """

    def __init__(
        self,
        url: str,
        outbox: Outbox,
        connect: Callable[[], Any],
        *,
        api_key: str | None = None,
        ca_file: str | None = None,
        batch_events_max: int = BATCH_EVENTS_MAX,
        poll_s: float = POLL_S,
        on_verdict: Callable[[Event, Verdict], object] | None = None,
        on_settled: Callable[[Database, Settled], object] = lambda database, settled: None,
        on_standby: Callable[[Database], object] = lambda database: None,
        random_share: Callable[[], float] = random.random,
    ) -> None:
        self._server_address = (url, api_key, ca_file)
        self._outbox = outbox
        self._connect = connect
        self._batch_events_max = batch_events_max
        self._poll_s = poll_s
        self._on_verdict = on_verdict
        self._on_settled = on_settled
        self._on_standby = on_standby
        self._random_share = random_share
        self._reset()
        register(self)

    def _reset(self) -> None:
        self._server = open_server(*self._server_address, give_up_after_s=0)
        self._notices = Notices()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_of_parent = False
        self._stopping = False
        self._woken = False
        self._flushes: list[_Flush] = []
        self._database: Database | None = None
        self._turn: Turn | None = None
        self._patience = self._new_patience()
        self.trouble: str | None = None
        """Why nothing is sent at present, None while all is well."""

    def _new_patience(self) -> Patience:
        return Patience(math.inf, time.monotonic, self._random_share)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start(self) -> None:
        """Start to send. It may be called again.

        Raises:
            RuntimeError: this is a child, and the relay was started before the fork.

        """
        if self._is_of_parent:
            raise RuntimeError("the relay was started before the fork: start one after it, with connections of its own")
        with self._changed:
            if self._thread is None and not self._stopping:
                self._thread = start_thread("sekali-relay", self._run)

    def wake(self) -> None:
        """Look for rows now. Call it after a commit that matters; otherwise the next poll finds them."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything that was committed before this call is sent; tell whether that is so.

        Raises:
            RuntimeError: called by the relay's own thread.

        """
        if is_ours():
            raise RuntimeError("flush cannot be called in a callback, because it waits for its thread")
        flush = _Flush()
        with self._changed:
            if self._thread is None or self._stopping:
                return False
            self._flushes.append(flush)
        self.wake()
        try:
            return flush.done.result(timeout_s)
        except TimeoutError:
            with self._changed:
                if flush in self._flushes:
                    self._flushes.remove(flush)
            return False

    def close(self, timeout_s: float = CLOSE_S) -> bool:
        """Stop after the request that is under way; tell whether it ended in time. Rows stay for the next relay."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is None:
            return True
        if not is_ours():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def at_exit(self, deadline_s: float) -> None:
        """Nothing: what is not sent stays in the outbox."""

    def after_fork(self) -> None:
        """Be lost in a child, if it had started."""
        if self._database is not None:
            leave_to_the_parent(self._database)
        if self._turn is not None:
            self._turn.close()
        was_started = self._thread is not None
        self._reset()
        self._is_of_parent = was_started

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._serve()
            except Exception as error:  # of whatever driver: it may be over by the next attempt
                self._wait_out(f"the outbox: {error!r}")
        with self._changed:
            for flush in self._flushes:
                flush.done.set_result(False)
            self._flushes.clear()
        self._server.close()

    def _serve(self) -> None:
        """Work with one connection until the end or until it fails."""
        self._database = database = database_of(self._connect())
        try:
            database.take_over()
            self._turn = turn = turn_of(database, self._outbox.table)
            try:
                while not self._stopping:
                    has_sent = self._round(database, turn)
                    self._answer_flushes(database)
                    database.rollback()
                    if not has_sent:
                        self._rest()
            finally:
                turn.close()
        finally:
            self._database = None
            with suppress(Exception):
                database.close()

    def _round(self, database: Database, turn: Turn) -> bool:
        """Send one batch; tell whether there was one."""
        if not turn.take():
            database.rollback()
            self._on_standby(database)
            return False
        rows = self._outbox.claim(database, self._batch_events_max, REQUEST_BYTES_MAX)
        settled, error = self._send(rows)
        if settled:
            database.begin()
            self._outbox.settle(database, settled)
            database.commit()
            self._patience = self._new_patience()
            self._on_settled(database, settled)
            self._tell(settled)
        if error is None:
            self.trouble = None
        else:
            database.rollback()
            self._wait_out(str(error), error.retry_after_s if isinstance(error, Unreachable) else 0.0)
        return bool(rows)

    def _send(self, rows: list[Waiting]) -> tuple[Settled, ClientError | None]:
        """Publish rows; return those that got a verdict, and what kept the others from it."""
        settled: Settled = []
        if not rows:
            return settled, None
        try:
            for part, answer in publish_batch(self._server, rows):
                settled += zip(part, map(read_verdict, answer.results), strict=True)
        except ClientError as error:
            return settled, error
        return settled, None

    def _tell(self, settled: Settled) -> None:
        for row, verdict in settled:
            if self._on_verdict is not None:
                self._notices.call(self._on_verdict, Event(row.topic, row.event_id, row.event), verdict)
            elif not verdict.ok:
                self._notices.warn("events failed in the outbox", f"{row.topic}/{row.event_id}: {verdict}")

    def _answer_flushes(self, database: Database) -> None:
        with self._changed:
            flushes = list(self._flushes)
        for flush in flushes:
            if flush.to_row is None:
                flush.to_row = self._outbox.newest(database)
            if self._outbox.is_sent_to(database, flush.to_row):
                with self._changed:
                    if flush in self._flushes:
                        self._flushes.remove(flush)
                flush.done.set_result(True)

    def _wait_out(self, trouble: str, retry_after_s: float = 0.0) -> None:
        self.trouble = trouble
        self._notices.warn("attempts of the relay came to nothing", trouble)
        wait_s = self._patience.next_wait_s(retry_after_s)
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, wait_s)

    def _rest(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._woken or self._stopping, self._poll_s)
            self._woken = False
