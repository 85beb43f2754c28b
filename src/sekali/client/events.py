"""An event as it goes over the wire, one JSON object in UTF-8 on one line, and how it gets its identity."""

import json
import os
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Literal, NamedTuple, TypedDict

from sekali.client.uuid7 import Uuid7

Ids = Literal["uuid7", "uuid4", "content"]

_NS_PER_SECOND = 1_000_000_000
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_encode_sorted = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True).encode
_MAKERS: dict[str, Callable[[], str]] = {"uuid7": Uuid7(), "uuid4": lambda: str(uuid.uuid4())}
# A child must not go on with the counter of its parent.
os.register_at_fork(after_in_child=lambda: _MAKERS.update(uuid7=Uuid7()))


class Event(NamedTuple):
    """An event with its identity, ready to be sent as often as it takes. ``json`` is what goes over the wire."""

    topic: str
    event_id: str
    json: bytes


class EventFields(TypedDict, total=False):
    """What may be said of an event beside its topic and payload; see ``new_event``."""

    event_id: str | None
    timestamp: datetime | str | None
    source: str
    source_seq: int | None


def new_event(
    topic: str,
    payload: Any,
    *,
    event_id: str | None = None,
    timestamp: datetime | str | None = None,
    source: str = "",
    source_seq: int | None = None,
    ids: Ids = "uuid7",
) -> Event:
    """Make an event. Its identity is settled here, once: whoever sends it again sends the same.

    Args:
        topic: a path such as ``app/prod/api``.
        payload: any value that JSON can hold.
        event_id: 1 to 512 bytes; without it one is made.
        timestamp: when it happened, with a zone; text is RFC 3339. Without it, now.
        source: who sends it, at most 255 bytes.
        source_seq: the publisher's own counter.
        ids: how an id is made: ``uuid7``, ``uuid4``, or ``content``: the SHA-256 of source, timestamp and payload
            (keys sorted), so that the same thing said twice is one event. That needs the ``timestamp``.

    Raises:
        TypeError, ValueError: the payload is not a JSON value, the timestamp has no zone, or a ``content`` id has no
            timestamp to be made of.

    """
    if isinstance(timestamp, datetime):
        if timestamp.tzinfo is None:
            raise ValueError("the timestamp has no zone; datetime.now(UTC) has one")
        when = timestamp.astimezone(UTC).isoformat().replace("+00:00", "Z")
    else:
        when = timestamp if timestamp is not None else format_time(time.time_ns())
    try:
        if event_id is None:
            if ids in _MAKERS:
                event_id = _MAKERS[ids]()
            elif ids != "content":
                raise ValueError(f"ids are made as uuid7, uuid4 or content, not as {ids!r}")
            elif timestamp is None:
                raise ValueError("an id made of the content needs the event's own timestamp")
            else:
                event_id = sha256(_encode_sorted([source, when, payload]).encode()).hexdigest()
        return Event(topic, event_id, encode_event(topic, event_id, when, payload, source, source_seq))
    except RecursionError:
        raise ValueError("the payload is nested too deeply") from None


def encode_event(
    topic: str, event_id: str, timestamp: str, payload: Any, source: str = "", source_seq: int | None = None
) -> bytes:
    """Return an event as JSON without line feeds.

    Args:
        topic: a path such as ``app/prod/api``.
        event_id: 1 to 512 bytes; the same event always has the same.
        timestamp: RFC 3339.
        payload: any value that JSON can hold.
        source: who sends it.
        source_seq: the publisher's own counter; None is none.

    Raises:
        TypeError, ValueError: the payload is not a JSON value.

    """
    event: dict[str, Any] = {
        "topic": topic,
        "event_id": event_id,
        "timestamp": timestamp,
        "source": source,
        "payload": payload,
    }
    if source_seq is not None:
        event["source_seq"] = source_seq
    return _encode(event).encode()


def format_time(ns: int) -> str:
    """Write nanoseconds since 1970 as RFC 3339 in UTC, to the microsecond."""
    seconds, fraction_ns = divmod(ns, _NS_PER_SECOND)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment.isoformat()[:19]}.{fraction_ns // 1000:06d}Z"
