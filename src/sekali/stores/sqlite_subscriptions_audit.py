"""What has to hold of the subscriptions in a file, for ``sekali verify``."""

from collections.abc import Iterator
from typing import Any

import apsw
import msgspec

from sekali.delivery import Definition, Open, Pause, definition_fault, name_fault
from sekali.topics import matches

_decode_definition = msgspec.json.Decoder(Definition).decode
_decode_pause = msgspec.json.Decoder(Pause).decode
_decode_open = msgspec.json.Decoder(tuple[Open, ...]).decode


def subscription_faults(connection: apsw.Connection) -> Iterator[str]:
    """Name every place where something kept of a subscription does not fit the log, or is damaged."""
    head = connection.execute("SELECT coalesce(max(seq), 0) FROM events").get
    patterns: dict[int, tuple[str, str]] = {}
    # Texts as blobs: a damaged one must not end the walk.
    for subscription_id, raw_name, raw_definition, position, raw_pause in connection.execute(
        "SELECT subscription_id, CAST(name AS BLOB), CAST(definition AS BLOB), position, CAST(pause AS BLOB) "
        "FROM subscriptions"
    ):
        name = raw_name.decode(errors="backslashreplace")
        definition = _definition(raw_definition)
        if name_fault(name) is not None or definition is None or definition_fault(definition) is not None:
            yield f"{name}: the name or the definition is damaged"
            continue
        patterns[subscription_id] = name, definition.topic
        if not 0 <= position <= head:
            yield f"{name}: its position is {position}, and the head of the log {head}"
        if raw_pause is not None and not (_is_pause(raw_pause) and definition.paused):
            yield f"{name}: why it is paused is damaged"
    yield from _lane_faults(connection, patterns, head)
    yield from _dead_letter_faults(connection, patterns)


def _lane_faults(connection: apsw.Connection, patterns: dict[int, tuple[str, str]], head: int) -> Iterator[str]:
    for subscription_id, topic_id, topic, cursor, raw in connection.execute(
        "SELECT l.subscription_id, l.topic_id, CAST(t.topic AS BLOB), l.cursor, CAST(l.open AS BLOB) "
        "FROM subscription_lanes l LEFT JOIN topics t ON t.topic_id = l.topic_id"
    ):
        name, pattern = patterns.get(subscription_id, ("", ""))
        place = f"{name or f'subscription {subscription_id}'}, topic {topic_id}"
        if not name:
            yield f"{place}: there is no such subscription, or it is damaged"
        elif topic is None or not _fits(pattern, topic):
            yield f"{place}: the topic is none of the subscription's"
        elif not 0 <= cursor <= head:
            yield f"{place}: the cursor is {cursor}, and the head of the log {head}"
        elif (fault := _open_fault(connection, topic_id, cursor, raw)) is not None:
            yield f"{place}: {fault}"


def _open_fault(connection: apsw.Connection, topic_id: int, cursor: int, raw: bytes) -> str | None:
    try:
        found = _decode_open(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return "what is open is damaged"
    seqs = [event.seq for event in found]
    if seqs != sorted(set(seqs)) or seqs[-1:] > [cursor] or any(event.attempts < 0 for event in found):
        return "what is open is damaged"
    count = connection.execute(
        "SELECT count(*) FROM events WHERE topic_id = ? AND seq IN (SELECT value ->> 0 FROM json_each(?))",
        (topic_id, raw.decode()),
    ).get
    return None if count == len(seqs) else f"{len(seqs)} events are open, and {count} of them are in the log"


def _dead_letter_faults(connection: apsw.Connection, patterns: dict[int, tuple[str, str]]) -> Iterator[str]:
    for subscription_id, seq, topic, settled_to, raw in connection.execute(
        "SELECT d.subscription_id, d.seq, CAST(t.topic AS BLOB), coalesce(l.cursor, s.position), "
        "CAST(coalesce(l.open, '[]') AS BLOB) FROM dead_letters d "
        "LEFT JOIN subscriptions s ON s.subscription_id = d.subscription_id LEFT JOIN events e ON e.seq = d.seq "
        "LEFT JOIN topics t ON t.topic_id = e.topic_id "
        "LEFT JOIN subscription_lanes l ON l.subscription_id = d.subscription_id AND l.topic_id = e.topic_id"
    ):
        name, pattern = patterns.get(subscription_id, ("", ""))
        place = f"{name or f'subscription {subscription_id}'}, dead letter {seq}"
        if not name:
            yield f"{place}: there is no such subscription, or it is damaged"
        elif topic is None or not _fits(pattern, topic):
            yield f"{place}: the event is not in the log, or none of the subscription's"
        elif seq > settled_to or f"[{seq}," in raw.decode(errors="replace"):
            yield f"{place}: the event is not settled"


def _definition(raw: bytes) -> Definition | None:
    try:
        return _decode_definition(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _is_pause(raw: bytes) -> bool:
    try:
        _decode_pause(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True


def _fits(pattern: str, topic: Any) -> bool:
    return matches(pattern, topic.decode(errors="replace"))
