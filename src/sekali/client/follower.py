"""The follower: reads the log as it grows, calls a handler, and tells it the position to go on from."""

import random
from collections.abc import Callable
from typing import Any

from sekali.client.backoff import backoff_s
from sekali.client.consuming import Consumer
from sekali.client.errors import Gone
from sekali.client.follow import Row, follow

RETRY_LONGEST_BOUND_S = 60.0


class Follower(Consumer):
    """Calls a handler with every event of a topic or pattern, in the order of seq. The server remembers nothing of it.

    The handler is called with the event (a dict as ``GET /events`` shows it) and its position. Whoever stores that with
    the effect of the event, in one transaction, and begins with it the next time, has each effect once: see
    ``Positions``. An exception of the handler holds up what follows: it is called with the same event again, after a
    while that grows (exponential, full jitter).

    Args:
        url: of the server.
        handle: called with an event and its position. It may be a coroutine function.
        topic: a topic or pattern; without it, all.
        after: where to begin: behind a position or a seq, ``earliest``, or ``latest``: with what comes now.
        batch_events_max: call the handler with a list of up to so many events, and the position of the last one.
        stop_on_error: end at the first exception of the handler, which ``run`` raises.
        api_key: ``id.secret``; else ``SEKALI_API_KEY`` of the environment.
        ca_file: certificates (PEM) to trust for https; else ``SEKALI_CA_FILE``, else the system's.
        random_share: random numbers in [0, 1), for waits.

    Raises:
        ValueError: an argument is not what it should be.

    """

    def __init__(
        self,
        url: str,
        handle: Callable[[Any, str], Any],
        *,
        topic: str | None = None,
        after: str | int = "latest",
        batch_events_max: int | None = None,
        stop_on_error: bool = False,
        api_key: str | None = None,
        ca_file: str | None = None,
        random_share: Callable[[], float] = random.random,
    ) -> None:
        if batch_events_max is not None and batch_events_max < 1:
            raise ValueError("batch_events_max is 1 or more")
        self._topic = topic
        self._after = str(after)
        self._batch_events_max = batch_events_max
        super().__init__(handle, (url, api_key, ca_file), 1, stop_on_error=stop_on_error, random_share=random_share)

    def _reset(self) -> None:
        super()._reset()
        self._hang_up: Callable[[], None] = lambda: None

    def stop(self) -> None:
        """Let it end after the event at hand. Returns at once; safe in a handler and in a signal handler."""
        super().stop()
        self._hang_up()

    def _opened(self, hang_up: Callable[[], None]) -> None:
        self._hang_up = hang_up
        if self._stopping:  # it may have been too early for the line above
            hang_up()

    def _work(self) -> None:
        is_position = self._after not in {"earliest", "latest"} and not self._after.isdigit()
        beginning = {"last_event_id" if is_position else "after": self._after}
        try:
            for rows in follow(
                self._server,
                topic=self._topic,
                **beginning,
                on_open=self._opened,
                sleep=self._pause,
                random_share=self._random_share,
            ):
                size = self._batch_events_max or 1
                for start in range(0, len(rows), size):
                    self._handle_part(rows[start : start + size])
        except Gone as error:
            raise Gone(410, f"{error}, with after='earliest' or 'latest' in place of the position") from None

    def _handle_part(self, rows: list[Row]) -> None:
        """Call the handler until it returns."""
        events = [row.event for row in rows]
        failures = 0
        while not self._stopping:
            try:
                self._call(events[0] if self._batch_events_max is None else events, rows[-1].id)
                return
            except Exception as error:
                if self._stops_on_error:
                    raise
                failures += 1
                self._notices.warn("events that could not be handled", f"{rows[0].id}: {error!r}", len(rows), error)
            self._pause(backoff_s(failures, self._random_share(), longest_bound_s=RETRY_LONGEST_BOUND_S))
