"""Subscriptions in the SQLite file: changes of a commit, and what is read to go on from them."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import apsw

from sekali.delivery import (
    Alter,
    Change,
    Create,
    DeadLetter,
    Delete,
    Figures,
    Forget,
    LaneState,
    PendingLane,
    Progress,
    Seek,
    Subscription,
)
from sekali.stores.sqlite_conditions import topics_like
from sekali.stores.sqlite_subscription_rows import checksum, dead_letter_of, lane_of, subscription_of, text

_ID = "(SELECT subscription_id FROM subscriptions WHERE name = ?)"
# Texts as blobs: what is damaged need not be UTF-8.
_ROW = (
    "subscription_id, CAST(name AS BLOB), CAST(definition AS BLOB), position, created_at_ns, CAST(pause AS BLOB), "
    "checksum"
)
_NEXT_SEQ = "SELECT min(seq) FROM events INDEXED BY events_by_topic WHERE topic_id = ? AND seq > ?"
_COUNT = "SELECT count(*) FROM (SELECT 1 FROM events INDEXED BY events_by_topic WHERE topic_id = ? AND seq > ? LIMIT ?)"


def apply(connection: apsw.Connection, changes: Sequence[Change]) -> None:
    """Make changes in order, inside a transaction."""
    for change in changes:
        match change:
            case Progress():
                _progress(connection, change)
            case Create(new):
                connection.execute(
                    "INSERT INTO subscriptions (name, definition, position, created_at_ns, pause, checksum) "
                    "VALUES (?, ?, ?, ?, ?, 0)",
                    (new.name, text(new.definition), new.position, new.created_at_ns, text(new.pause)),
                )
                _seal(connection, new.name)
            case Alter(name, definition, pause):
                connection.execute(
                    "UPDATE subscriptions SET definition = ?, pause = ? WHERE name = ?",
                    (text(definition), text(pause), name),
                )
                _seal(connection, name)
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
                _seal(connection, name)
            case Forget(name, None):
                connection.execute(f"DELETE FROM dead_letters WHERE subscription_id = {_ID}", (name,))
            case Forget(name, seqs):
                chosen = "seq IN (SELECT value FROM json_each(?))"
                connection.execute(
                    f"DELETE FROM dead_letters WHERE subscription_id = {_ID} AND {chosen}", (name, text(seqs))
                )


def _seal(connection: apsw.Connection, name: str) -> None:
    """Give the row of a subscription, if there is one, the checksum of what is in it now."""
    rows: Any = connection.execute(
        "SELECT subscription_id, name, definition, position, created_at_ns, pause FROM subscriptions WHERE name = ?",
        (name,),
    )
    for row in rows.fetchall():
        connection.execute("UPDATE subscriptions SET checksum = ? WHERE name = ?", (checksum(*row), name))


def _progress(connection: apsw.Connection, change: Progress) -> None:
    # By way of the names: a subscription that was deleted meanwhile takes no rows.
    connection.executemany(
        "INSERT INTO subscription_lanes SELECT s.subscription_id, t.topic_id, ?, ?, ? FROM subscriptions s, topics t "
        "WHERE s.name = ? AND t.topic = ? ON CONFLICT (subscription_id, topic_id) "
        "DO UPDATE SET cursor = excluded.cursor, open = excluded.open, checksum = excluded.checksum",
        [_lane_row(change.name, lane) for lane in change.lanes],
    )
    connection.executemany(
        "INSERT OR REPLACE INTO dead_letters (subscription_id, seq, attempts, error, at_ns, checksum) "
        "SELECT subscription_id, ?, ?, ?, ?, ? FROM subscriptions WHERE name = ?",
        [
            (*row, checksum(change.name, *row), change.name)
            for row in ((dead.seq, dead.attempts, dead.error, dead.at_ns) for dead in change.dead)
        ],
    )


def _lane_row(name: str, lane: LaneState) -> tuple[int, str, int, str, str]:
    opened = text(lane.open)
    return lane.cursor, opened, checksum(name, lane.topic, lane.cursor, opened), name, lane.topic


def subscriptions(connection: apsw.Connection) -> list[Subscription]:
    """See ``SubscriptionStore.subscriptions``."""
    return [subscription for _, subscription in with_ids(connection)]


def with_ids(connection: apsw.Connection) -> list[tuple[int, Subscription]]:
    """Return all subscriptions by name, each with its number in the file."""
    rows: Any = connection.execute(f"SELECT {_ROW} FROM subscriptions ORDER BY name")
    return [(row[0], subscription_of(*row)) for row in rows]


def pull_back(connection: apsw.Connection, head: int) -> list[str]:
    """Let no subscription be ahead of the log, and return the names of those that were; what is damaged stays so.

    The log may have lost its end, or be an older one: seqs above its head will be those of other events.
    """
    ahead: set[str] = set()
    for one in subscriptions(connection):
        if one.position > head:
            connection.execute("UPDATE subscriptions SET position = ? WHERE name = ?", (head, one.name))
            _seal(connection, one.name)
            ahead.add(one.name)
    lanes: list[tuple[Any, ...]] = connection.execute(
        "SELECT CAST(s.name AS BLOB), CAST(t.topic AS BLOB), l.cursor, CAST(l.open AS BLOB), l.checksum "
        "FROM subscription_lanes l JOIN subscriptions s ON s.subscription_id = l.subscription_id "
        "JOIN topics t ON t.topic_id = l.topic_id WHERE l.cursor > ?",
        (head,),
    ).fetchall()
    for name, topic, cursor, opened, kept in lanes:
        with suppress(ValueError):
            lane = lane_of(name.decode(), topic.decode(), cursor, opened, kept)
            left = LaneState(lane.topic, head, tuple(event for event in lane.open if event.seq <= head))
            _progress(connection, Progress(name.decode(), [left]))
            ahead.add(name.decode())
    names: list[tuple[Any, ...]] = connection.execute(
        "DELETE FROM dead_letters WHERE seq > ? RETURNING "
        "(SELECT name FROM subscriptions s WHERE s.subscription_id = dead_letters.subscription_id)",
        (head,),
    ).fetchall()
    ahead.update(str(name) for (name,) in names)
    return sorted(ahead)


def pending(connection: apsw.Connection, name: str) -> tuple[int, list[PendingLane]]:
    """See ``SubscriptionStore.pending``."""
    head = connection.execute("SELECT coalesce(max(seq), 0) FROM events").get
    return head, [PendingLane(lane, last_seq) for lane, _, last_seq in _pending(connection, name)]


def _pending(connection: apsw.Connection, name: str) -> list[tuple[LaneState, int, int]]:
    """Return each lane in which something is not settled, with the id of its topic and the newest seq of that.

    Raises:
        ValueError: the subscription or one of its lanes is damaged.

    """
    row: Any = connection.execute(
        f"SELECT {_ROW} FROM subscriptions WHERE name = ?",
        (name,),
    ).fetchone()
    if row is None:
        return []
    subscription = subscription_of(*row)
    if subscription.fault is not None:
        raise ValueError(subscription.fault)
    topic_ids = [topic_id for topic_id, _ in topics_like(connection, subscription.definition.topic)]
    found = []
    lanes: Any = connection.execute(
        "SELECT t.topic_id, t.topic, t.last_seq, l.cursor, CAST(l.open AS BLOB), l.checksum "
        "FROM json_each(?) c CROSS JOIN topics t ON t.topic_id = c.value "
        "LEFT JOIN subscription_lanes l ON l.subscription_id = ? AND l.topic_id = t.topic_id ORDER BY t.topic",
        (text(topic_ids), row[0]),
    )
    for topic_id, topic, last_seq, cursor, opened, kept in lanes:
        kept_lane = None if cursor is None else lane_of(name, topic, cursor, opened, kept)
        lane = kept_lane or LaneState(topic, subscription.position)
        if last_seq > lane.cursor or lane.open:
            found.append((lane, topic_id, last_seq))
    return found


def figures(connection: apsw.Connection, name: str, lag_max: int) -> Figures:
    """See ``SubscriptionStore.figures``."""
    lag, oldest_seq = 0, None
    for lane, topic_id, _ in _pending(connection, name):
        first = lane.open[0].seq if lane.open else connection.execute(_NEXT_SEQ, (topic_id, lane.cursor)).get
        if first is not None and (oldest_seq is None or first < oldest_seq):
            oldest_seq = first
        if lag <= lag_max:
            lag += len(lane.open) + connection.execute(_COUNT, (topic_id, lane.cursor, lag_max - lag + 1)).get
    dead_letters = connection.execute(f"SELECT count(*) FROM dead_letters WHERE subscription_id = {_ID}", (name,)).get
    oldest_at_ns = connection.execute("SELECT processed_at_ns FROM events WHERE seq = ?", (oldest_seq,)).get
    return Figures(min(lag, lag_max), lag <= lag_max, oldest_at_ns, dead_letters)


def dead_letters(
    connection: apsw.Connection, name: str, after: int, limit: int, seqs: Sequence[int] | None
) -> list[DeadLetter]:
    """See ``SubscriptionStore.dead_letters``."""
    chosen = "" if seqs is None else "AND d.seq IN (SELECT value FROM json_each(?4))"
    rows: Any = connection.execute(
        "SELECT d.seq, t.topic, d.attempts, CAST(d.error AS BLOB), d.at_ns, d.number, d.checksum "
        "FROM dead_letters d CROSS JOIN events e ON e.seq = d.seq CROSS JOIN topics t ON t.topic_id = e.topic_id "
        "WHERE d.subscription_id = (SELECT subscription_id FROM subscriptions WHERE name = ?1) "
        f"AND d.number > ?2 {chosen} ORDER BY d.number LIMIT ?3",
        (name, after, limit) if seqs is None else (name, after, limit, text(seqs)),
    )
    return [dead_letter_of(name, *row) for row in rows]


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
