"""How much a sender may send: a token bucket for each name."""

import math
from collections.abc import Callable

# As with the other Retry-After: clients that read it give up when it is longer than the time they have left.
RETRY_AFTER_S_MAX = 5


class RateLimit:
    """Buckets that fill with ``per_s`` tokens a second, and hold one second's worth or a single one.

    A request takes one token and each of its events another. A request is let in where there is one for it, and its
    events may leave the bucket in debt, because how many it brings is seen only then; the next one waits for that to
    be paid. ``clock_s`` is monotonic.
    """

    def __init__(self, per_s: float, clock_s: Callable[[], float]) -> None:
        self.per_s = per_s
        self._full = max(per_s, 1.0)
        self._clock_s = clock_s
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when they were that many

    def take(self, name: str) -> int:
        """Take the token of a request and return 0, or leave it and return the seconds to wait, at most a few."""
        tokens = self._tokens(name)
        if tokens < 1:
            return min(math.ceil((1 - tokens) / self.per_s), RETRY_AFTER_S_MAX)
        self._keep(name, tokens - 1)
        return 0

    def charge(self, name: str, events: int) -> None:
        """Take the tokens of a request's events, whether they are there or not."""
        self._keep(name, self._tokens(name) - events)

    def _tokens(self, name: str) -> float:
        tokens, at_s = self._buckets.get(name, (self._full, 0.0))
        return min(self._full, tokens + (self._clock_s() - at_s) * self.per_s)

    def _keep(self, name: str, tokens: float) -> None:
        self._buckets[name] = tokens, self._clock_s()
