"""What the SQLite file keeps of subscriptions: damaged rows are errors that say how to go on; ``verify`` sees them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from batches import STORED, publish
from sekali.delivery import (
    Create,
    DeadLetter,
    Definition,
    Delete,
    Forget,
    LaneState,
    Open,
    Progress,
    Seek,
    Subscription,
)
from sekali.errors import StoreBroken
from sekali.ports import no_progress
from sekali.stores.sqlite import SqliteStore
from sekali.stores.sqlite_audit import audit
from sekali.stores.sqlite_subscription_rows import checksum
from sekali.testing import FakeClock

_SEALED = (  # table, what names a row of it, and what its checksum covers
    ("subscriptions", "subscription_id", "subscription_id, s.name, s.definition, s.position, s.created_at_ns, s.pause"),
    (
        "subscription_lanes",
        "subscription_id || ' ' || topic_id",
        "s.name, (SELECT topic FROM topics t WHERE t.topic_id = subscription_lanes.topic_id), cursor, open",
    ),
    ("dead_letters", "number", "s.name, seq, attempts, error, at_ns"),
)


def open_store(path: Path, *, accept_lost_tail: bool = False) -> SqliteStore:
    store = SqliteStore(path, FakeClock(), topics_max=100, accept_lost_tail=accept_lost_tail)
    store.recover()
    return store


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A file with events 1 to 4 of t/a and 5 of u, and two subscriptions."""
    path = tmp_path / "store.db"
    store = open_store(path)
    publish(store, *(("t/a", str(number)) for number in range(4)), ("u", "1"))
    store.commit(
        [
            store.prepare_changes(
                [
                    Create(Subscription("s", Definition("t/**", "earliest"), 0, 5)),
                    Create(Subscription("other", Definition("**", "earliest"), 1, 6)),
                    Progress("s", [LaneState("t/a", 3, (Open(1, 2, 7), Open(3)))], [DeadLetter(2, "t/a", 3, "no", 9)]),
                ]
            )
        ]
    )
    store.close()
    yield path


def write(path: Path, statement: str, *, sealed: bool = False) -> None:
    """Change rows behind the store's back; ``sealed``: with checksums that fit, as a defect of ours would."""
    connection = apsw.Connection(str(path))
    connection.execute(statement)
    for table, key, columns in _SEALED if sealed else ():
        rows: Any = connection.execute(
            f"SELECT {key}, {columns} FROM {table} JOIN subscriptions s USING (subscription_id)"
        ).fetchall()
        for number, *row in rows:
            connection.execute(f"UPDATE {table} SET checksum = ? WHERE {key} = ?", (checksum(*row), number))
    connection.close()


def faults(path: Path) -> list[str]:
    return [failure for check in audit(path, no_progress).checks for failure in check.failures]


def test_a_good_file_has_no_faults_and_sealing_changes_nothing(path: Path) -> None:
    assert faults(path) == []
    before = path.read_bytes()
    write(path, "SELECT 1", sealed=True)
    assert faults(path) == []
    store = open_store(path)
    assert [one.fault for one in store.subscriptions()] == [None, None]
    store.close()
    assert len(before) == len(path.read_bytes())


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE subscriptions SET position = 6 WHERE name = 'other'", "its position is 6, and the head of the log 5"),
        ("UPDATE subscriptions SET name = 'a/b' WHERE name = 's'", "a/b: the name or the definition is none"),
        (
            """UPDATE subscriptions SET definition = '{"topic":"t//a"}' WHERE name = 's'""",
            "s: the name or the definition is none",
        ),
        (
            """UPDATE subscriptions SET pause = '["gone",7]' WHERE name = 's'""",
            "s: there is a reason for a pause, and none",
        ),
        (
            "UPDATE subscription_lanes SET subscription_id = 99",
            "subscription 99, topic t/a: there is no such subscription",
        ),
        (
            "UPDATE subscription_lanes SET topic_id = (SELECT topic_id FROM topics WHERE topic = 'u')",
            "s, topic u: the topic is none of the subscription's",
        ),
        ("UPDATE subscription_lanes SET cursor = 6", "s, topic t/a: the cursor is 6, and the head of the log 5"),
        ("UPDATE subscription_lanes SET open = '[[4,0,0]]'", "s, topic t/a: what is open makes no sense"),
        ("UPDATE subscription_lanes SET open = '[[1,0,0],[1,0,0]]'", "s, topic t/a: what is open makes no sense"),
        ("UPDATE subscription_lanes SET open = '[[1,-1,0]]'", "s, topic t/a: what is open makes no sense"),
        (
            "UPDATE subscription_lanes SET cursor = 5, open = '[[1,0,0],[5,0,0]]'",
            "s, topic t/a: 2 events are open, and 1 of them are in the log",
        ),
        (
            "UPDATE dead_letters SET subscription_id = 99",
            "subscription 99, dead letter 2: there is no such subscription",
        ),
        ("UPDATE dead_letters SET seq = 5", "s, dead letter 5: the event is not in the log, or none"),
        ("UPDATE dead_letters SET seq = 9", "s, dead letter 9: the event is not in the log, or none"),
        ("UPDATE dead_letters SET seq = 4", "s, dead letter 4: the event is not settled"),
        ("UPDATE dead_letters SET seq = 1", "s, dead letter 1: the event is not settled"),
    ],
)
def test_verify_sees_what_does_not_fit(path: Path, statement: str, fault: str) -> None:
    write(path, statement, sealed=True)
    found = faults(path)
    assert any(fault in one for one in found), found


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE subscriptions SET position = 3 WHERE name = 's'",
        """UPDATE subscriptions SET pause = '["gone",7]' WHERE name = 's'""",
        "UPDATE subscriptions SET pause = CAST(x'5bff5d' AS TEXT) WHERE name = 's'",
        "UPDATE subscriptions SET subscription_id = 7 WHERE name = 's'",
        "UPDATE subscriptions SET created_at_ns = 4 WHERE name = 's'",
        "UPDATE subscriptions SET definition = replace(definition, 't/**', 't/a') WHERE name = 's'",
        "UPDATE subscriptions SET definition = CAST(x'7bff7d' AS TEXT) WHERE name = 's'",
        "UPDATE subscriptions SET checksum = checksum + 1 WHERE name = 's'",
    ],
)
def test_a_damaged_subscription_says_so_leaves_the_others_alone_and_can_be_deleted(path: Path, statement: str) -> None:
    write(path, statement)
    assert any("what is kept of the subscription s is damaged" in one for one in faults(path))
    store = open_store(path)
    other, damaged = store.subscriptions()
    assert damaged.name == "s" and damaged.fault is not None and "delete it and make it anew" in damaged.fault
    for read in (lambda: store.pending("s"), lambda: store.figures("s", 9)):
        with pytest.raises(StoreBroken, match="what is kept of the subscription s is damaged"):
            read()
    assert other.fault is None and [lane.last_seq for lane in store.pending("other")[1]] == [4, 5]
    store.commit([store.prepare_changes([Delete("s"), Create(Subscription("s", Definition("u"), 0, 1))])])
    assert [lane.last_seq for lane in store.pending("s")[1]] == [5]
    store.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE subscription_lanes SET cursor = 4",
        "UPDATE subscription_lanes SET open = '[]'",
        "UPDATE subscription_lanes SET open = CAST(x'5bff5d' AS TEXT)",
        "UPDATE subscription_lanes SET checksum = checksum + 1",
        "UPDATE subscription_lanes SET subscription_id = (SELECT max(subscription_id) FROM subscriptions)",
    ],
)
def test_a_damaged_lane_is_no_position_and_seek_makes_it_anew(path: Path, statement: str) -> None:
    write(path, statement)
    (fault,) = [one for one in faults(path) if "keeps of the topic t/a is damaged" in one]
    name = fault.split()[3]
    store = open_store(path)
    for read in (lambda: store.pending(name), lambda: store.figures(name, 9)):
        with pytest.raises(StoreBroken, match="keeps of the topic t/a is damaged: seek to where it shall go on"):
            read()
    store.pending("other" if name == "s" else "s")
    store.commit([store.prepare_changes([Seek(name, 3)])])
    assert [lane.state.cursor for lane in store.pending(name)[1]][:1] == [3]
    store.close()


@pytest.mark.parametrize("change", ["seq = 3", "attempts = 2", "error = 'NO'", "at_ns = 8", "checksum = 0"])
def test_a_damaged_dead_letter_is_not_replayed_and_can_be_dropped(path: Path, change: str) -> None:
    write(path, f"UPDATE dead_letters SET {change}")
    assert any("is damaged: drop all of them" in one for one in faults(path))
    store = open_store(path)
    with pytest.raises(StoreBroken, match="drop all of them"):
        store.dead_letters("s", 0, 9)
    store.commit([store.prepare_changes([Forget("s")])])
    assert store.dead_letters("s", 0, 9) == []
    store.close()


def test_subscriptions_ahead_of_a_log_that_lost_its_end_go_on_from_there(path: Path) -> None:
    """What comes next has the seqs of what is lost: it is neither settled nor a dead letter."""
    connection = apsw.Connection(str(path))
    connection.execute("DELETE FROM events WHERE seq > 1; UPDATE topics SET last_seq = 1")
    connection.close()
    write(path, "UPDATE subscriptions SET position = 5 WHERE name = 'other'", sealed=True)
    store = open_store(path, accept_lost_tail=True)
    assert [(one.name, one.position) for one in store.subscriptions()] == [("other", 1), ("s", 0)]
    assert [lane.state for lane in store.pending("s")[1]] == [LaneState("t/a", 1, (Open(1, 2, 7),))]
    assert store.pending("other")[1] == []
    assert publish(store, ("t/a", "new")) == [(STORED, 2)]
    assert store.dead_letters("s", 0, 9) == []
    store.close()


def test_what_is_damaged_and_ahead_of_the_log_stays_damaged(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("DELETE FROM events WHERE seq > 1; UPDATE subscription_lanes SET cursor = 4")
    connection.close()
    store = open_store(path, accept_lost_tail=True)
    with pytest.raises(StoreBroken, match="keeps of the topic t/a is damaged"):
        store.pending("s")
    store.close()
