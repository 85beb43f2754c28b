"""UUIDv7 (RFC 9562): ids that sort by the time they were made, which keeps the server's index small and quick."""

import secrets
import time
from collections.abc import Callable
from threading import RLock

_COUNTER_BITS = 42
_TAIL_BITS = 32
_NS_PER_MS = 1_000_000


class Uuid7:
    """Makes UUIDv7s, each greater than the one before. Safe to call from many threads.

    Below the 48 bits of milliseconds lie a counter of 42 bits and 32 random bits (RFC 9562, 6.2, method 1). The counter
    starts at a random number in each millisecond and is raised by one for each id within it. A clock that goes back
    does not take the ids back: they stay in the last millisecond until the clock has caught up.

    Args:
        clock_ns: nanoseconds since 1970.
        random_bits: returns a random integer of so many bits.

    """

    def __init__(
        self,
        clock_ns: Callable[[], int] = time.time_ns,
        random_bits: Callable[[int], int] = secrets.randbits,
    ) -> None:
        self._clock_ns = clock_ns
        self._random_bits = random_bits
        self._lock = RLock()  # a signal handler may want an id while its own thread makes one
        self._ms = -1
        self._counter = 0

    def __call__(self) -> str:
        """Return the next id in its usual form, 36 characters."""
        with self._lock:
            self._advance()
            bits = self._ms << 80 | self._counter << _TAIL_BITS | self._random_bits(_TAIL_BITS)
        digits = f"{_with_version_and_variant(bits):032x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

    def _advance(self) -> None:
        now_ms = self._clock_ns() // _NS_PER_MS
        if now_ms > self._ms:
            self._ms = now_ms
        elif self._counter + 1 < 1 << _COUNTER_BITS:
            self._counter += 1
            return
        else:  # the counter is used up: borrow from the next millisecond
            self._ms += 1
        # The highest bit is left free, so that there is room to count.
        self._counter = self._random_bits(_COUNTER_BITS - 1)


def _with_version_and_variant(bits: int) -> int:
    """Put the version (7) and the variant (binary 10) between 48 bits of time, from bit 80 on, and 74 bits below."""
    ms, below = bits >> 80, bits & (1 << 74) - 1
    return ms << 80 | 7 << 76 | below >> 62 << 64 | 0b10 << 62 | below & (1 << 62) - 1
