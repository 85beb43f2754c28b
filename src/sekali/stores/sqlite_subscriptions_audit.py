"""What has to hold of the subscriptions in a file, for ``sekali verify``."""

from collections.abc import Iterator
from typing import Any

import apsw

from sekali.delivery import definition_fault, name_fault
from sekali.stores.sqlite_subscription_rows import dead_letter_of, lane_of, text
from sekali.stores.sqlite_subscriptions import with_ids
from sekali.topics import matches

_COUNT = "SELECT count(*) FROM events WHERE topic_id = ? AND seq IN (SELECT value FROM json_each(?))"


def subscription_faults(connection: apsw.Connection) -> Iterator[str]:
    """Name every place where something kept of a subscription does not fit the log, or is damaged."""
    head = connection.execute("SELECT coalesce(max(seq), 0) FROM events").get
    patterns: dict[int, tuple[str, str]] = {}
    for subscription_id, one in with_ids(connection):
        if one.fault is not None:
            yield one.fault
            continue
        patterns[subscription_id] = one.name, one.definition.topic
        if name_fault(one.name) is not None or definition_fault(one.definition) is not None:
            yield f"{one.name}: the name or the definition is none"
        if not 0 <= one.position <= head:
            yield f"{one.name}: its position is {one.position}, and the head of the log {head}"
        if one.pause is not None and not one.definition.paused:
            yield f"{one.name}: there is a reason for a pause, and none"
    yield from _lane_faults(connection, patterns, head)
    yield from _dead_letter_faults(connection, patterns)


def _lane_faults(connection: apsw.Connection, patterns: dict[int, tuple[str, str]], head: int) -> Iterator[str]:
    rows: Any = connection.execute(
        "SELECT l.subscription_id, l.topic_id, CAST(t.topic AS BLOB), l.cursor, CAST(l.open AS BLOB), l.checksum "
        "FROM subscription_lanes l LEFT JOIN topics t ON t.topic_id = l.topic_id"
    )
    for subscription_id, topic_id, raw_topic, cursor, opened, kept in rows:
        name, pattern = patterns.get(subscription_id, ("", ""))
        topic = (raw_topic or b"").decode(errors="backslashreplace")
        place = f"{name or f'subscription {subscription_id}'}, topic {topic or topic_id}"
        if not name:
            yield f"{place}: there is no such subscription, or it is damaged"
            continue
        try:
            lane = lane_of(name, topic, cursor, opened, kept)
        except ValueError as error:
            yield str(error)
            continue
        seqs = [event.seq for event in lane.open]
        if not matches(pattern, topic):
            yield f"{place}: the topic is none of the subscription's"
        elif not 0 <= cursor <= head:
            yield f"{place}: the cursor is {cursor}, and the head of the log {head}"
        elif seqs != sorted(set(seqs)) or seqs[-1:] > [cursor] or any(event.attempts < 0 for event in lane.open):
            yield f"{place}: what is open makes no sense"
        elif (count := connection.execute(_COUNT, (topic_id, text(seqs))).get) != len(seqs):
            yield f"{place}: {len(seqs)} events are open, and {count} of them are in the log"


def _dead_letter_faults(connection: apsw.Connection, patterns: dict[int, tuple[str, str]]) -> Iterator[str]:
    rows: Any = connection.execute(
        "SELECT d.subscription_id, d.seq, CAST(t.topic AS BLOB), coalesce(l.cursor, s.position), "
        "CAST(coalesce(l.open, '[]') AS BLOB), d.attempts, CAST(d.error AS BLOB), d.at_ns, d.number, d.checksum "
        "FROM dead_letters d "
        "LEFT JOIN subscriptions s ON s.subscription_id = d.subscription_id LEFT JOIN events e ON e.seq = d.seq "
        "LEFT JOIN topics t ON t.topic_id = e.topic_id "
        "LEFT JOIN subscription_lanes l ON l.subscription_id = d.subscription_id AND l.topic_id = e.topic_id"
    )
    for subscription_id, seq, raw_topic, settled_to, opened, *rest in rows:
        name, pattern = patterns.get(subscription_id, ("", ""))
        topic = (raw_topic or b"").decode(errors="backslashreplace")
        place = f"{name or f'subscription {subscription_id}'}, dead letter {seq}"
        if not name:
            yield f"{place}: there is no such subscription, or it is damaged"
            continue
        try:
            dead_letter_of(name, seq, topic, *rest)
        except ValueError as error:
            yield str(error)
            continue
        if not matches(pattern, topic):
            yield f"{place}: the event is not in the log, or none of the subscription's"
        elif seq > settled_to or b"[%d," % seq in opened:
            yield f"{place}: the event is not settled"
