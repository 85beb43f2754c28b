"""What is known of a subscription in figures."""

from dataclasses import dataclass

from sekali.delivery import Figures
from sekali.subscriptions.lane import Counts


@dataclass(frozen=True, slots=True)
class Status:
    """The figures of a subscription: as stored, of its consumers now, and counted since the server started."""

    figures: Figures
    now_ns: int
    in_flight: int
    waiting: int
    counts: Counts

    @property
    def oldest_s(self) -> float | None:
        """Age of what has waited longest to be settled, None where everything is."""
        oldest_at_ns = self.figures.oldest_at_ns
        return None if oldest_at_ns is None else round(max(self.now_ns - oldest_at_ns, 0) / 1e9, 3)

    def samples(self) -> dict[str, float]:
        """Return them as metrics by name."""
        counts = self.counts
        samples = {
            "lag_events": self.figures.lag,
            "oldest_unacknowledged_seconds": self.oldest_s or 0.0,
            "in_flight_events": self.in_flight,
            "waiting_events": self.waiting,
            "dead_letters": self.figures.dead_letters,
            "delivered_events_total": counts.delivered,
            "redelivered_events_total": counts.redelivered,
            "acknowledged_events_total": counts.acknowledged,
            "expired_events_total": counts.expired,
            "dead_events_total": counts.dead,
        }
        return {f"sekali_subscription_{name}": value for name, value in samples.items()}
