"""Every figure the server keeps, in one table: what ``/metrics`` shows, and what ``/stats`` is computed from.

Counters are plain numbers, and are turned into Prometheus samples when somebody asks.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sekali.event import Outcome

LATENCIES_KEPT = 4096
REFUSAL_STATUSES = (401, 403, 429)
THROUGHPUT_WINDOW_S = 60
COMMIT_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """One line of the reference: a metric's name as scraped, its type, and what it tells."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


METRICS = (
    MetricInfo("sekali_events_total", "counter", "Events by outcome since the process started.", ("outcome",)),
    MetricInfo("sekali_responses_total", "counter", "Answers to publishers by HTTP status.", ("status",)),
    MetricInfo(
        "sekali_refusals_total",
        "counter",
        "Requests refused for their sender: no key, no scope, too many.",
        ("status",),
    ),
    MetricInfo(
        "sekali_connections_ended_total",
        "counter",
        "Connections that the server ended before their time, by reason.",
        ("reason",),
    ),
    MetricInfo("sekali_commit_failures_total", "counter", "Commits that failed, and whose effect is unknown."),
    MetricInfo("sekali_commit_seconds", "histogram", "Time of a commit, its sync included."),
    MetricInfo("sekali_queue_events", "gauge", "Events accepted and not yet answered."),
    MetricInfo("sekali_queue_bytes", "gauge", "Bytes of request bodies held."),
    MetricInfo("sekali_connections", "gauge", "Connections that are open."),
    MetricInfo("sekali_followers", "gauge", "Streams of /subscribe that are open."),
    MetricInfo(
        "sekali_connection_bytes", "gauge", "Bytes that wait on connections: answers not taken, requests not begun."
    ),
    MetricInfo("sekali_oldest_waiting_seconds", "gauge", "Age of the oldest event accepted and not yet readable."),
    MetricInfo("sekali_healthy", "gauge", "1 while the server can commit, else 0."),
    MetricInfo("sekali_log_events", "gauge", "Events in the log."),
    MetricInfo("sekali_log_topics", "gauge", "Topics in the log."),
    MetricInfo(
        "sekali_store_wal_bytes", "gauge", "Size of the write-ahead log: it grows while a reader holds it back."
    ),
    MetricInfo("sekali_store_disk_free_bytes", "gauge", "Bytes left on the disk of the store."),
    MetricInfo("sekali_uptime_seconds", "gauge", "Time since the process started."),
    MetricInfo("sekali_subscriptions", "gauge", "Durable subscriptions."),
    *(
        MetricInfo(f"sekali_subscription_{name}", kind, text, ("subscription",))
        for name, kind, text in (
            ("lag_events", "gauge", "Events that are not settled; counted up to 100,000."),
            ("oldest_unacknowledged_seconds", "gauge", "Age of the oldest event that is not settled."),
            ("in_flight_events", "gauge", "Events that leases hold."),
            ("waiting_events", "gauge", "Events to be given again, as far as consumers came by lately."),
            ("dead_letters", "gauge", "Events given up."),
            ("paused", "gauge", "1 while nothing is delivered, by request or because its endpoint was down too long."),
            ("endpoint_down", "gauge", "1 while the endpoint of a push subscription counts as down."),
            ("endpoint_failures", "gauge", "Failed requests in a row to the endpoint of a push subscription."),
            ("delivered_events_total", "counter", "Events given to consumers."),
            ("redelivered_events_total", "counter", "Of these, after a failed attempt."),
            ("acknowledged_events_total", "counter", "Events acknowledged."),
            ("expired_events_total", "counter", "Events whose lease ran out."),
            ("dead_events_total", "counter", "Events that became dead letters."),
        )
    ),
)


class Ending(StrEnum):
    """Why the server ended a connection before its time."""

    REFUSED = "refused"  # too many
    GAVE_WAY = "gave-way"  # too many, and this one was idle
    HEADERS_LATE = "headers-late"
    BODY_LATE = "body-late"
    ANSWER_NOT_TAKEN = "answer-not-taken"
    WAITED_LONGEST = "waited-longest"  # too much waits on connections


_INFO = {metric.name: metric for metric in METRICS}


class Metrics:
    """The figures of one server since it started. ``clock_s`` is monotonic. All of it belongs to the event loop."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self.started_at_s = clock_s()
        self.outcomes: Counter[Outcome] = Counter()
        self.responses: Counter[int] = Counter()
        self.refusals: Counter[int] = Counter()
        self.connections_ended: Counter[Ending] = Counter()
        self.commit_failures = 0
        self.followers = 0
        self._latencies_s: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._per_second: deque[tuple[int, int]] = deque(maxlen=THROUGHPUT_WINDOW_S)
        self._registry = CollectorRegistry()
        self._commit_seconds = Histogram(
            "sekali_commit_seconds",
            _INFO["sekali_commit_seconds"].help,
            buckets=COMMIT_BUCKETS_S,
            registry=self._registry,
        )

    def committed(self, counts: Counter[Outcome], latencies_s: Iterable[float], duration_s: float) -> None:
        """Count a commit: its verdicts, for each request the time since it was read, and how long it took itself."""
        self.outcomes.update(counts)
        self._latencies_s.extend(latencies_s)
        self._commit_seconds.observe(duration_s)
        second = int(self._clock_s())
        if self._per_second and self._per_second[-1][0] == second:
            self._per_second[-1] = (second, self._per_second[-1][1] + counts.total())
        else:
            self._per_second.append((second, counts.total()))

    def commit_failed(self) -> None:
        """Count a commit that failed."""
        self.commit_failures += 1

    def count_invalid(self, count: int) -> None:
        """Count items that never reached the queue."""
        self.outcomes[Outcome.INVALID] += count

    def count_response(self, status: int) -> None:
        """Count an answer to a publisher."""
        self.responses[status] += 1

    def count_refusal(self, status: int) -> None:
        """Count a request that was refused at the door, with one of ``REFUSAL_STATUSES``."""
        self.refusals[status] += 1

    @property
    def uptime_s(self) -> float:
        """Seconds since the process started."""
        return self._clock_s() - self.started_at_s

    @property
    def throughput(self) -> float:
        """Events a second over the last minute, or since the start where that is shorter."""
        now_s = self._clock_s()
        total = sum(count for second, count in self._per_second if second > now_s - THROUGHPUT_WINDOW_S)
        return total / min(max(self.uptime_s, 1.0), THROUGHPUT_WINDOW_S)

    def latency_ms(self) -> dict[str, float | None]:
        """Percentiles of the time from a request read to its commit, over the newest requests."""
        latencies_s = sorted(self._latencies_s)
        if not latencies_s:
            return {"p50": None, "p95": None, "p99": None}
        return {
            f"p{percent}": round(latencies_s[min(len(latencies_s) * percent // 100, len(latencies_s) - 1)] * 1000, 3)
            for percent in (50, 95, 99)
        }

    def scrape(self, gauges: dict[str, float], of_subscriptions: Mapping[str, Mapping[str, float]]) -> bytes:
        """Write everything in the Prometheus text format.

        ``gauges`` are the values that live elsewhere, by name; ``of_subscriptions`` those of subscriptions, by theirs.
        """
        registry = CollectorRegistry()
        registry.register(_Snapshot(self, gauges, of_subscriptions))
        return generate_latest(registry) + generate_latest(self._registry)


class _Snapshot(Collector):
    def __init__(
        self, metrics: Metrics, gauges: dict[str, float], of_subscriptions: Mapping[str, Mapping[str, float]]
    ) -> None:
        self._metrics = metrics
        self._gauges = gauges
        self._of_subscriptions = of_subscriptions

    def collect(self) -> Iterable[Metric]:
        events = CounterMetricFamily("sekali_events", _INFO["sekali_events_total"].help, labels=["outcome"])
        for outcome in Outcome:
            events.add_metric([outcome.value], self._metrics.outcomes[outcome])
        yield events
        responses = CounterMetricFamily("sekali_responses", _INFO["sekali_responses_total"].help, labels=["status"])
        for status, count in sorted(self._metrics.responses.items()):
            responses.add_metric([str(status)], count)
        yield responses
        refusals = CounterMetricFamily("sekali_refusals", _INFO["sekali_refusals_total"].help, labels=["status"])
        for status in REFUSAL_STATUSES:
            refusals.add_metric([str(status)], self._metrics.refusals[status])
        yield refusals
        ended = CounterMetricFamily(
            "sekali_connections_ended", _INFO["sekali_connections_ended_total"].help, labels=["reason"]
        )
        for reason in Ending:
            ended.add_metric([reason.value], self._metrics.connections_ended[reason])
        yield ended
        failures = CounterMetricFamily("sekali_commit_failures", _INFO["sekali_commit_failures_total"].help)
        failures.add_metric([], self._metrics.commit_failures)
        yield failures
        for metric in METRICS:
            if metric.name in self._gauges:
                yield GaugeMetricFamily(metric.name, metric.help, self._gauges[metric.name])
            if metric.labels == ("subscription",) and self._of_subscriptions:
                family = GaugeMetricFamily if metric.kind == "gauge" else CounterMetricFamily
                labelled = family(metric.name, metric.help, labels=metric.labels)
                for subscription, values in self._of_subscriptions.items():
                    if metric.name in values:
                        labelled.add_metric([subscription], values[metric.name])
                yield labelled
