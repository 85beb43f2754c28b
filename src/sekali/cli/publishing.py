"""One run of the publisher: takes batches, sends them over one or more connections, shows how far it is."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from sekali.client.batches import publish_batch
from sekali.client.http import Answer, Server
from sekali.client.lines import Item
from sekali.printable import escape_controls

INTERRUPT_GRACE_S = 5.0


class Stopped(Exception):
    """The run was stopped while a request waited to be sent again."""


class Stop:
    """Ends a run early. Set once, by Ctrl-C or by a connection that failed."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.set = self._event.set
        self.is_set = self._event.is_set

    def sleep(self, seconds: float) -> None:
        """Wait, at most until the stop."""
        self._event.wait(seconds)

    def sleep_or_raise(self, seconds: float) -> None:
        """Wait.

        Raises:
            Stopped: the stop came.

        """
        if self._event.wait(seconds):
            raise Stopped


def publish_all(
    server: Server,
    batches: Iterator[list[Item]],
    *,
    connections: int,
    stop: Stop,
    settle: Callable[[list[Item], Answer], None],
) -> None:
    """Publish every batch, in order where there is one connection, and settle each answer.

    Returns once everything is answered.

    Raises:
        KeyboardInterrupt: what was taken from ``batches`` by then was published, if that took no more than
            ``INTERRUPT_GRACE_S``.
        ClientError: see ``Server.publish``.

    """
    taking = threading.Lock()
    # Each thread says how it ended. (Joining a thread does not do: in Python 3.11 a join that Ctrl-C interrupted makes
    # the thread look as if it had ended.)
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def work() -> None:
        failure: BaseException | None = None
        try:
            while not stop.is_set():
                with taking:
                    batch = next(batches, None)
                if batch is None:
                    break
                for part, answer in publish_batch(server, batch):
                    settle(part, answer)
        except Stopped:
            pass
        except BaseException as error:  # raised again in the thread that can tell the user
            failure = error
            stop.set()
        ended.put(failure)

    for _ in range(connections):
        threading.Thread(target=work, daemon=True).start()
    try:
        failures = [ended.get() for _ in range(connections)]
    except KeyboardInterrupt:
        stop.set()
        with suppress(Empty):
            for _ in range(connections):
                ended.get(timeout=INTERRUPT_GRACE_S)
        raise
    for failure in failures:
        if failure is not None:
            raise failure


class Screen:
    """The progress bar. Only on a terminal; safe to call from many threads."""

    def __init__(self, progress: Progress, total: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task("publishing", total=total, sent=0)

    def advance(self, amount: int) -> None:
        """Move the bar on, in the unit of its total."""
        self._progress.advance(self._task, amount)

    def show_sent(self, sent: int) -> None:
        """Show how many events were answered."""
        self._progress.update(self._task, sent=sent, description="publishing")

    def show_waiting(self, reason: str) -> None:
        """Show why nothing moves."""
        self._progress.update(self._task, description=f"waiting: {escape_controls(reason)}")


@contextmanager
def progress_screen(console: Console, total: int | None) -> Iterator[Screen]:
    """Show a progress bar of ``total`` units, or a moving one where the total is not known, for a while."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[sent]:,} events"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield Screen(progress, total)
