"""How an endpoint fares: how many requests it gets at once, and when it counts as down. No I/O, no clock."""

from dataclasses import dataclass

from sekali.client.backoff import backoff_s
from sekali.push.outcome import Failure

DOWN_AFTER = 5  # failures in a row
REQUESTS_MAX = 8  # at once, to one endpoint
FIRST_PROBE_BOUND_S, LONGEST_PROBE_BOUND_S = 1.0, 300.0


@dataclass(slots=True)
class Health:
    """What is known of an endpoint since it was first tried. Times are in nanoseconds.

    ``window`` is how many requests may be under way: one more with each success and half as many with each failure, so
    one that never answers holds a single request.
    """

    window: int = 1
    failures: int = 0  # in a row
    down_since_ns: int | None = None
    not_before_ns: int = 0
    last_error: str | None = None
    last_error_at_ns: int | None = None
    last_success_at_ns: int | None = None

    @property
    def is_down(self) -> bool:
        """Whether it has failed several times in a row. Then it is probed, ever less often."""
        return self.down_since_ns is not None

    def succeeded(self, now_ns: int) -> None:
        """Note an acknowledgement."""
        self.window = min(self.window + 1, REQUESTS_MAX)
        self.failures = 0
        self.down_since_ns = None
        self.last_success_at_ns = now_ns

    def failed(self, failure: Failure, now_ns: int, share: float) -> bool:
        """Note a failed attempt, and return whether it is one of the event's: not where the endpoint is at fault.

        While it works, every failure counts. While it is down, only what it answered about the event does.
        ``share`` is a random number in [0, 1).
        """
        self.window = max(1, self.window // 2)
        self.failures += 1
        self.last_error, self.last_error_at_ns = failure.error, now_ns
        wait_s = failure.retry_after_s if failure.holds_all else 0.0
        if self.failures >= DOWN_AFTER:
            self.window = 1
            self.down_since_ns = self.down_since_ns or now_ns
            wait_s = backoff_s(
                self.failures - DOWN_AFTER + 1,
                share,
                wait_s,
                first_bound_s=FIRST_PROBE_BOUND_S,
                longest_bound_s=LONGEST_PROBE_BOUND_S,
            )
        self.not_before_ns = max(self.not_before_ns, now_ns + round(wait_s * 1e9))
        return not failure.is_gone and (failure.is_of_event or not self.is_down)

    def reason_to_pause(self, failure: Failure, now_ns: int, pause_after_s: float) -> str | None:
        """Say why nothing more shall be sent until somebody has seen to it; None where there is no reason."""
        if failure.is_gone:
            return f"the endpoint {failure.error}: it wants no events any more"
        if self.down_since_ns is None or now_ns - self.down_since_ns < pause_after_s * 1e9:
            return None
        return f"the endpoint has been down for {pause_after_s:g} s; the last error: {failure.error}"

    def wait_s(self, now_ns: int) -> float:
        """Return how long to wait before the next request, 0 where none is needed."""
        return max(self.not_before_ns - now_ns, 0) / 1e9
