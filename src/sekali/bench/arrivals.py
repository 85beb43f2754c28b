"""When requests are due in an open loop, and what latencies amount to. Pure."""

import numpy as np
from numpy.typing import NDArray

from sekali.bench.job import Latency

_BLOCK = 4096
_PERCENTILES = (0, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99, 99.999, 100)


class Arrivals:
    """A Poisson process of ``rate`` requests a second: publishers that know nothing of each other."""

    def __init__(self, rate: float, seed: int) -> None:
        self._random = np.random.default_rng([seed, 1])
        self._mean_s = 1 / rate
        self._block: list[float] = []
        self._place = 0
        self.next_s = 0.0  # when the next request is due

    def start(self, at_s: float) -> None:
        """Let the first request be due some time after ``at_s``."""
        self.next_s = at_s
        self.advance()

    def advance(self) -> None:
        """Go on to the next request."""
        if self._place == len(self._block):
            self._block = (self.next_s + np.cumsum(self._random.exponential(self._mean_s, _BLOCK))).tolist()
            self._place = 0
        self.next_s = self._block[self._place]
        self._place += 1


def summarize(due_s: NDArray[np.float64], latencies_ms: NDArray[np.float64]) -> Latency:
    """Return percentiles of ``latencies_ms`` [n], and the longest of each second of ``due_s`` [n], from 0 on."""
    if not len(latencies_ms):
        return Latency()
    values = np.percentile(latencies_ms, _PERCENTILES).round(4).tolist()
    at = dict(zip(_PERCENTILES, values, strict=True))
    seconds = np.maximum(due_s, 0).astype(np.int64)
    longest = np.zeros(int(seconds.max()) + 1)
    np.maximum.at(longest, seconds, latencies_ms)
    return Latency(
        p50=at[50],
        p90=at[90],
        p99=at[99],
        p999=at[99.9],
        max=at[100],
        curve=list(zip(map(float, _PERCENTILES), values, strict=True)),
        max_by_second=longest.round(4).tolist(),
    )
