"""An event as it goes over the wire: one JSON object in UTF-8 on one line."""

import json
from datetime import UTC, datetime
from typing import Any

_NS_PER_SECOND = 1_000_000_000
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def encode_event(topic: str, event_id: str, timestamp: str, payload: Any, source: str = "") -> bytes:
    """Return an event as JSON without line feeds.

    Args:
        topic: a path such as ``app/prod/api``.
        event_id: 1 to 512 bytes; the same event always has the same.
        timestamp: RFC 3339.
        payload: any value that JSON can hold.
        source: who sends it.

    Raises:
        TypeError, ValueError: the payload is not a JSON value.

    """
    event = {"topic": topic, "event_id": event_id, "timestamp": timestamp, "source": source, "payload": payload}
    return _encode(event).encode()


def format_time(ns: int) -> str:
    """Write nanoseconds since 1970 as RFC 3339 in UTC, to the microsecond."""
    seconds, fraction_ns = divmod(ns, _NS_PER_SECOND)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment.isoformat()[:19]}.{fraction_ns // 1000:06d}Z"
