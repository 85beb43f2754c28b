"""Subscriptions as they are shown: what each is, its figures, and how its endpoint fares."""

from typing import Any

import msgspec

from sekali.delivery import Subscription
from sekali.push.health import Health
from sekali.subscriptions.status import Status
from sekali.timestamps import format_timestamp


def whole(subscription: Subscription, status: Status, health: Health | None) -> dict[str, Any]:
    """Return all that is shown of a subscription. Without ``health`` nothing is pushed."""
    return definition(subscription) | _figures(status) | _endpoint(health)


def definition(subscription: Subscription) -> dict[str, Any]:
    """Return what a subscription is."""
    created_at = format_timestamp(subscription.created_at_ns)
    pause = subscription.pause
    return {
        "name": subscription.name,
        **subscription.definition.public(),
        "paused_reason": None if pause is None else pause.reason,
        "paused_at": _time(None if pause is None else pause.at_ns),
        "created_at": created_at,
    }


def _endpoint(health: Health | None) -> dict[str, Any]:
    if health is None:
        return {}
    return {
        "endpoint": {
            "failures": health.failures,
            "down_since": _time(health.down_since_ns),
            "last_error": health.last_error,
            "last_error_at": _time(health.last_error_at_ns),
            "last_success_at": _time(health.last_success_at_ns),
        }
    }


def _time(at_ns: int | None) -> str | None:
    return None if at_ns is None else format_timestamp(at_ns)


def _figures(status: Status) -> dict[str, Any]:
    figures, counts = status.figures, status.counts
    return {
        "lag": figures.lag,
        "lag_is_exact": figures.lag_is_exact,
        "oldest_unacknowledged_seconds": status.oldest_s,
        "in_flight": status.in_flight,
        "waiting": status.waiting,
        "dead_letters": figures.dead_letters,
        "since_start": msgspec.to_builtins(counts),
    }
