"""What the client has to say when nobody asked to be called back: lines on the logger ``sekali.client``."""

import logging
import threading
import time
from collections.abc import Callable

EVERY_S = 10.0
_logger = logging.getLogger("sekali.client")


class Notices:
    """Warns of the first of a kind at once, and of more of it at most once in ``EVERY_S``, with how many there were.

    An outage is one line now and then, not one for each event.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()  # a signal handler may warn while its own thread does
        self._next_s: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def warn(self, kind: str, example: str, count: int = 1, error: BaseException | None = None) -> None:
        """Warn that ``count`` more of a kind happened, ``events dropped`` say; ``example`` is the last of them.

        With an ``error`` the traceback is logged as well.
        """
        now_s = self._clock()
        with self._lock:
            count += self._unsaid.pop(kind, 0)
            if now_s < self._next_s.get(kind, now_s):
                self._unsaid[kind] = count
                return
            self._next_s[kind] = now_s + EVERY_S
        _logger.warning("%s: %d. The last: %s", kind, count, example, exc_info=error)

    def call(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call back. What the callback raises is warned of, and ends nothing here."""
        try:
            callback(*arguments)
        except Exception as error:
            self.warn("failures of a callback", repr(error))

    def say_rest(self) -> None:
        """Warn of what was only counted so far."""
        with self._lock:
            self._next_s.clear()
            kinds = list(self._unsaid)
        for kind in kinds:
            self.warn(kind, "not told one by one", 0)
