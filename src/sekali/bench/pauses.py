"""Virtual machines stand still now and then, for seconds. What falls into such a pause says nothing of a program."""

import threading
import time
from collections.abc import Callable

PAUSE_S = 0.75  # a thread that has something to do and is not run for so long: the machine stood still
_LOOK_EVERY_S = 0.05


class Clock:
    """Seconds that do not pass while the machine stands still. Whoever uses it looks several times a second."""

    def __init__(self, raw_s: Callable[[], float] = time.perf_counter) -> None:
        self._raw_s = raw_s
        self._last_s = raw_s()
        self.paused_s = 0.0

    def now_s(self) -> float:
        """Return the time."""
        raw_s = self._raw_s()
        gap_s = raw_s - self._last_s
        if gap_s > PAUSE_S:
            self.paused_s += gap_s
        self._last_s = raw_s
        return raw_s - self.paused_s

    def skip(self) -> None:
        """Say that the time since the last look was spent on something else."""
        self._last_s = self._raw_s()


class PauseWatch:
    """A thread that notices pauses, for whoever waits for something else and cannot look at a clock meanwhile.

    ``pauses`` are (begin, end) in seconds of ``time.perf_counter``.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self.pauses: list[tuple[float, float]] = []

    def start(self) -> None:
        """Watch until the process ends. May be called again."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pause-watch", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        last_s = time.perf_counter()
        while True:
            time.sleep(_LOOK_EVERY_S)
            now_s = time.perf_counter()
            if now_s - last_s > PAUSE_S:
                self.pauses.append((last_s, now_s))
            last_s = now_s

    def since_s(self, begin_s: float) -> float:
        """Return the seconds since ``begin_s`` of ``time.perf_counter``, without pauses."""
        end_s = time.perf_counter()
        if end_s - begin_s <= PAUSE_S:
            return end_s - begin_s
        time.sleep(2 * _LOOK_EVERY_S)  # the thread may not have looked yet
        paused = [min(until_s, end_s) - max(from_s, begin_s) for from_s, until_s in self.pauses]
        return end_s - begin_s - sum(one for one in paused if one > 0)


WATCH = PauseWatch()  # one a process, as there is one machine; ``suite.run`` starts it
