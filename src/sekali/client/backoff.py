"""How long to wait before a request is sent again, and when to stop trying.

Exponential backoff with full jitter: the wait is uniform between nothing and a bound that doubles with every failure.
Of the usual variants it makes the least work for a server that many publishers wait for
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
"""

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST_BOUND_S = 0.1
LONGEST_BOUND_S = 5.0
RETRY_AFTER_S_MAX = 86_400.0
_DOUBLINGS_MAX = 30  # far beyond the longest bound; keeps the power of two a small number


def backoff_s(
    failures: int,
    share: float,
    retry_after_s: float = 0.0,
    *,
    first_bound_s: float = FIRST_BOUND_S,
    longest_bound_s: float = LONGEST_BOUND_S,
) -> float:
    """Return the seconds to wait after so many failures in a row (1 or more).

    ``share`` is a random number in [0, 1). ``retry_after_s`` is what the server asked for; the jitter comes on top,
    so that publishers that were sent away together do not come back together.
    """
    bound_s = min(longest_bound_s, first_bound_s * 2.0 ** min(failures - 1, _DOUBLINGS_MAX))
    return retry_after_s + bound_s * share


def parse_retry_after(value: str | None, now: datetime) -> float:
    """Return the seconds that a ``Retry-After`` header (RFC 9110: seconds or a date) asks for, 0 if it asks nothing."""
    if not value:
        return 0.0
    if value.isascii() and value.isdigit():
        return min(float(value), RETRY_AFTER_S_MAX)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max(0.0, (moment - now).total_seconds()), RETRY_AFTER_S_MAX)


class Patience:
    """The retries of one request: how long to wait after each failure, until it is time to give up.

    Args:
        give_up_after_s: seconds from now; 0 never waits, ``math.inf`` never gives up.
        clock: monotonic seconds.
        random_share: random numbers in [0, 1).

    """

    def __init__(self, give_up_after_s: float, clock: Callable[[], float], random_share: Callable[[], float]) -> None:
        self._deadline = clock() + give_up_after_s
        self._clock = clock
        self._random_share = random_share
        self.failures = 0

    def next_wait_s(self, retry_after_s: float = 0.0) -> float | None:
        """Count a failure and return the seconds to wait before the next attempt, or None: give up.

        A wait is cut at the deadline, for one last attempt. Where the server asks for a longer one, there is no point.
        """
        self.failures += 1
        left_s = self._deadline - self._clock()
        if left_s <= 0 or retry_after_s > left_s:
            return None
        return min(backoff_s(self.failures, self._random_share(), retry_after_s), left_s)
