"""Subscriptions in the SQLite file: changes of a commit, and what is read to go on from them."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import apsw
import msgspec

from sekali.delivery import (
    Alter,
    Change,
    Create,
    DeadLetter,
    Definition,
    Delete,
    Figures,
    Forget,
    LaneState,
    Open,
    Pause,
    PendingLane,
    Progress,
    Seek,
    Subscription,
)
from sekali.stores.sqlite_conditions import topics_like

_definitions = msgspec.json.Decoder(Definition)
_pauses = msgspec.json.Decoder(Pause)
_opens = msgspec.json.Decoder(tuple[Open, ...])
_encode = msgspec.json.Encoder().encode

_Value = TypeVar("_Value")

_ID = "(SELECT subscription_id FROM subscriptions WHERE name = ?)"
_NEXT_SEQ = (
    "(SELECT min(e.seq) FROM events e INDEXED BY events_by_topic WHERE e.topic_id = t.topic_id AND e.seq > {cursor})"
)
_COUNT = "SELECT count(*) FROM (SELECT 1 FROM events INDEXED BY events_by_topic WHERE topic_id = ? AND seq > ? LIMIT ?)"
_CURSOR = "coalesce(l.cursor, s.position)"


def apply(connection: apsw.Connection, changes: Sequence[Change]) -> None:
    """Make changes in order, inside a transaction."""
    for change in changes:
        match change:
            case Progress():
                _progress(connection, change)
            case Create(subscription):
                connection.execute(
                    "INSERT INTO subscriptions (name, definition, position, created_at_ns) VALUES (?, ?, ?, ?)",
                    (
                        subscription.name,
                        _text(subscription.definition),
                        subscription.position,
                        subscription.created_at_ns,
                    ),
                )
            case Alter(name, definition, pause):
                connection.execute(
                    "UPDATE subscriptions SET definition = ?, pause = ? WHERE name = ?",
                    (_text(definition), None if pause is None else _text(pause), name),
                )
            case Delete(name):
                connection.execute(f"DELETE FROM subscription_lanes WHERE subscription_id = {_ID}", (name,))
                connection.execute(f"DELETE FROM dead_letters WHERE subscription_id = {_ID}", (name,))
                connection.execute("DELETE FROM subscriptions WHERE name = ?", (name,))
            case Seek(name, position):
                connection.execute(f"DELETE FROM subscription_lanes WHERE subscription_id = {_ID}", (name,))
                connection.execute(
                    f"DELETE FROM dead_letters WHERE subscription_id = {_ID} AND seq > ?", (name, position)
                )
                connection.execute("UPDATE subscriptions SET position = ? WHERE name = ?", (position, name))
            case Forget(name, None):
                connection.execute(f"DELETE FROM dead_letters WHERE subscription_id = {_ID}", (name,))
            case Forget(name, seqs):
                chosen = "seq IN (SELECT value FROM json_each(?))"
                connection.execute(
                    f"DELETE FROM dead_letters WHERE subscription_id = {_ID} AND {chosen}", (name, _text(seqs))
                )


def _progress(connection: apsw.Connection, change: Progress) -> None:
    # By way of the names: a subscription that was deleted meanwhile takes no rows.
    connection.executemany(
        "INSERT INTO subscription_lanes SELECT s.subscription_id, t.topic_id, ?, ? FROM subscriptions s, topics t "
        "WHERE s.name = ? AND t.topic = ? "
        "ON CONFLICT (subscription_id, topic_id) DO UPDATE SET cursor = excluded.cursor, open = excluded.open",
        [(lane.cursor, _text(lane.open), change.name, lane.topic) for lane in change.lanes],
    )
    connection.executemany(
        "INSERT OR REPLACE INTO dead_letters (subscription_id, seq, attempts, error, at_ns) "
        "SELECT subscription_id, ?, ?, ?, ? FROM subscriptions WHERE name = ?",
        [(dead.seq, dead.attempts, dead.error, dead.at_ns, change.name) for dead in change.dead],
    )


def decode(decoder: msgspec.json.Decoder[_Value], text: str) -> _Value:
    """Read what was stored as JSON.

    Raises:
        ValueError: it is damaged.

    """
    try:
        return decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise ValueError(f"what is kept of a subscription is damaged: {error}") from error


def _text(value: Any) -> str:
    return _encode(value).decode()


def subscriptions(connection: apsw.Connection) -> list[Subscription]:
    """See ``SubscriptionStore.subscriptions``."""
    return [
        Subscription(
            name,
            decode(_definitions, definition),
            position,
            created_at_ns,
            None if pause is None else decode(_pauses, pause),
        )
        for name, definition, position, created_at_ns, pause in connection.execute(
            "SELECT name, definition, position, created_at_ns, pause FROM subscriptions ORDER BY name"
        )
    ]


def pending(connection: apsw.Connection, name: str) -> tuple[int, list[PendingLane]]:
    """See ``SubscriptionStore.pending``."""
    head = connection.execute("SELECT coalesce(max(seq), 0) FROM events").get
    lanes = [
        PendingLane(LaneState(topic, cursor, decode(_opens, opened)), last_seq)
        for topic, cursor, opened, last_seq in _pending(
            connection, name, f"t.topic, {_CURSOR}, coalesce(l.open, '[]'), t.last_seq"
        )
    ]
    return head, lanes


def _pending(connection: apsw.Connection, name: str, columns: str) -> Iterator[tuple[Any, ...]]:
    """Give columns of each topic in which something is not settled: of t, the topic, l, its lane if any, and s."""
    definition = connection.execute("SELECT definition FROM subscriptions WHERE name = ?", (name,)).get
    if definition is None:
        return
    topic_ids = [topic_id for topic_id, _ in topics_like(connection, decode(_definitions, definition).topic)]
    yield from connection.execute(
        f"SELECT {columns} FROM subscriptions s CROSS JOIN json_each(?) c CROSS JOIN topics t ON t.topic_id = c.value "
        "LEFT JOIN subscription_lanes l ON l.subscription_id = s.subscription_id AND l.topic_id = t.topic_id "
        f"WHERE s.name = ? AND (t.last_seq > {_CURSOR} OR l.open <> '[]') ORDER BY t.topic",
        (_text(topic_ids), name),
    )


def figures(connection: apsw.Connection, name: str, lag_max: int) -> Figures:
    """See ``SubscriptionStore.figures``."""
    lag, oldest_seq = 0, None
    columns = f"t.topic_id, {_CURSOR}, l.open, {_NEXT_SEQ.format(cursor=_CURSOR)}"
    for topic_id, cursor, opened, next_seq in _pending(connection, name, columns):
        seqs = [event.seq for event in decode(_opens, opened or "[]")]
        first = min(seqs[:1] + ([] if next_seq is None else [next_seq]), default=None)
        if first is not None and (oldest_seq is None or first < oldest_seq):
            oldest_seq = first
        if lag <= lag_max:
            lag += len(seqs) + connection.execute(_COUNT, (topic_id, cursor, lag_max - lag + 1)).get
    dead_letters = connection.execute(f"SELECT count(*) FROM dead_letters WHERE subscription_id = {_ID}", (name,)).get
    oldest_at_ns = connection.execute("SELECT processed_at_ns FROM events WHERE seq = ?", (oldest_seq,)).get
    return Figures(min(lag, lag_max), lag <= lag_max, oldest_at_ns, dead_letters)


def dead_letters(
    connection: apsw.Connection, name: str, after: int, limit: int, seqs: Sequence[int] | None
) -> list[DeadLetter]:
    """See ``SubscriptionStore.dead_letters``."""
    chosen = "" if seqs is None else "AND d.seq IN (SELECT value FROM json_each(?4))"
    return [
        DeadLetter(seq, topic, attempts, error, at_ns, number)
        for seq, topic, attempts, error, at_ns, number in connection.execute(
            "SELECT d.seq, t.topic, d.attempts, d.error, d.at_ns, d.number FROM dead_letters d "
            "CROSS JOIN events e ON e.seq = d.seq CROSS JOIN topics t ON t.topic_id = e.topic_id "
            "WHERE d.subscription_id = (SELECT subscription_id FROM subscriptions WHERE name = ?1) "
            f"AND d.number > ?2 {chosen} ORDER BY d.number LIMIT ?3",
            (name, after, limit) if seqs is None else (name, after, limit, _text(seqs)),
        )
    ]


def first_seq_at(connection: apsw.Connection, processed_at_ns: int) -> int:
    """See ``SubscriptionStore.first_seq_at``. ``processed_at`` never falls, so it is searched by halves."""
    low, high = 1, connection.execute("SELECT coalesce(max(seq), 0) + 1 FROM events").get
    while low < high:
        middle = (low + high) // 2
        at_ns = connection.execute(
            "SELECT processed_at_ns FROM events WHERE seq >= ? ORDER BY seq LIMIT 1", (middle,)
        ).get
        if at_ns < processed_at_ns:
            low = middle + 1
        else:
            high = middle
    return int(low)
