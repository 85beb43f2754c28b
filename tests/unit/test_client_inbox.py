"""The inbox on both SQLite libraries; PostgreSQL is in e2e/test_client_postgres.py."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekali.client import Event, Inbox, NoTransaction

EVENT = Event("orders", "o-1", b"{}")


def _sqlite3(path: Path) -> Any:
    return sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)


def _apsw(path: Path) -> Any:
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(30_000)
    return connection


@pytest.fixture(params=[_sqlite3, _apsw], ids=["sqlite3", "apsw"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Open connections to one file that holds an inbox and a table for the effect."""
    made: list[Any] = []

    def connect() -> Any:
        made.append(request.param(tmp_path / "consumer.db"))
        return made[-1]

    Inbox().create_table(connect())
    made[0].execute("CREATE TABLE effects (event_id text)")
    yield connect
    for connection in made:
        connection.close()


def _take(connection: Any, event: Any, *, commit: bool = True) -> bool:
    connection.execute("BEGIN IMMEDIATE")
    is_first = Inbox().once(connection, event)
    if is_first:
        connection.execute("INSERT INTO effects VALUES ('x')")
    connection.execute("COMMIT" if commit else "ROLLBACK")
    return is_first


def _effects(connection: Any) -> int:
    return int(next(iter(connection.execute("SELECT count(*) FROM effects")))[0])


def test_the_first_time_is_the_only_one(connect: Callable[[], Any]) -> None:
    connection = connect()
    assert [_take(connection, EVENT) for _ in range(3)] == [True, False, False]
    assert _take(connect(), EVENT) is False, "another connection"
    assert _effects(connection) == 1


def test_an_identity_is_topic_and_id_together(connect: Callable[[], Any]) -> None:
    connection = connect()
    assert _take(connection, EVENT)
    assert _take(connection, EVENT._replace(topic="refunds"))
    assert _take(connection, EVENT._replace(event_id="o-2"))


def test_an_event_may_be_what_the_server_sends(connect: Callable[[], Any]) -> None:
    connection = connect()
    assert _take(connection, {"topic": "orders", "event_id": "o-1", "seq": 5, "payload": {}})
    assert not _take(connection, EVENT)


def test_what_is_rolled_back_was_never_seen(connect: Callable[[], Any]) -> None:
    connection = connect()
    assert _take(connection, EVENT, commit=False)
    assert _take(connection, EVENT)
    assert _effects(connection) == 1


def test_creating_the_table_again_keeps_it(connect: Callable[[], Any]) -> None:
    connection = connect()
    _take(connection, EVENT)
    Inbox().create_table(connection)
    assert not _take(connection, EVENT)


def test_inboxes_of_different_tables_know_nothing_of_each_other(connect: Callable[[], Any]) -> None:
    connection, other = connect(), Inbox("billing_inbox")
    other.create_table(connection)
    _take(connection, EVENT)
    connection.execute("BEGIN")
    assert other.once(connection, EVENT)
    connection.execute("COMMIT")


def test_without_a_transaction_it_refuses(connect: Callable[[], Any]) -> None:
    connection = connect()
    with pytest.raises(NoTransaction):
        Inbox().once(connection, EVENT)
    assert _take(connection, EVENT), "it was recorded nevertheless"


def test_many_threads_and_one_effect(connect: Callable[[], Any]) -> None:
    barrier = threading.Barrier(8)
    firsts: list[bool] = []

    def consume() -> None:
        with closing(connect()) as connection:
            barrier.wait(30)
            firsts.extend(_take(connection, EVENT._replace(event_id=str(number))) for number in range(20))

    threads = [threading.Thread(target=consume) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(firsts) == 160 and sum(firsts) == 20 == _effects(connect())


def test_pruning_forgets_what_is_old_and_nothing_else(connect: Callable[[], Any]) -> None:
    connection, inbox = connect(), Inbox()
    _take(connection, EVENT)
    _take(connection, EVENT._replace(event_id="old"))
    connection.execute("UPDATE sekali_inbox SET seen_at = '2020-01-01T00:00:00.000Z' WHERE event_id = 'old'")
    inbox.prune(connection, older_than_s=3600)
    assert not _take(connection, EVENT)
    assert _take(connection, EVENT._replace(event_id="old")), "what was forgotten takes effect again"
    with pytest.raises(ValueError, match="-5"):
        inbox.prune(connection, older_than_s=-5)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=20))
@settings(max_examples=50, deadline=None)
def test_whatever_commits_and_rolls_back_the_effect_happens_once(deliveries: list[tuple[str, bool]]) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        Inbox().create_table(connection)
        connection.execute("CREATE TABLE effects (event_id text)")
        for event_id, commit in deliveries:
            _take(connection, Event("t", event_id, b""), commit=commit)
        assert _effects(connection) == len({event_id for event_id, commit in deliveries if commit})
