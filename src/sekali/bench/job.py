"""What the load generator is told and what it reports: the lines between ``sekali bench`` and its process."""

import msgspec

from sekali.bench.events import IdKind

DRAIN_S = 60.0  # how long the last answers may take


class Job(msgspec.Struct, kw_only=True, frozen=True):
    """One run of load: ``warmup_s`` that do not count, then a window of ``seconds`` that does, then the last answers.

    With ``events_max`` it also ends after so many events. ``rate`` is in events a second, at times that do not wait for
    answers (open loop, Poisson); without it each connection sends as soon as it has its answer.
    """

    port: int
    host: str = "127.0.0.1"
    connections: int = 8
    batch: int = 500
    seed: int = 1
    id_kind: IdKind = IdKind.UUID7
    dup_ratio: float = 0.2
    dup_window: int | None = 10_000
    start: int = 0  # the number of the first new event
    oldest: int = 0  # the store holds the events from here to start already
    seconds: float = 5.0
    warmup_s: float = 1.0
    events_max: int | None = None
    rate: float | None = None
    watched_pid: int | None = None  # the server, for its processor time in the window


class Sample(msgspec.Struct, frozen=True):
    """How far the load is. ``at_s`` is since its start; ``events`` are answered, ``unique`` made so far."""

    at_s: float
    events: int
    unique: int


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds from when a request was due to its whole answer, over the requests answered in the window."""

    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    p999: float = 0.0
    max: float = 0.0
    curve: list[tuple[float, float]] = []  # percentile, milliseconds
    max_by_second: list[float] = []


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of load did. Counts are of the whole run; ``window_*``, processor times and latency of the window.

    ``unique`` is how many different events were sent, that is, how many must be stored. ``refused`` counts answers
    503, each of which was sent again, ``reconnects`` connections that the server closed. For ``paused_s`` the machine
    stood still, which counts nowhere. ``failure`` says why a run was given up.
    """

    requests: int
    events: int
    unique: int
    stored: int
    duplicate: int
    conflict: int
    invalid: int
    refused: int
    body_bytes: int
    window_s: float
    window_events: int
    generator_cpu_s: float
    server_cpu_s: float
    latency_ms: Latency
    samples: list[Sample]
    paused_s: float = 0.0
    reconnects: int = 0
    failure: str | None = None

    @property
    def rate(self) -> float:
        """Events acknowledged a second, in the window."""
        return self.window_events / self.window_s if self.window_s else 0.0
