"""Outbox and inbox in the transactions of a real PostgreSQL, with a real server at the other end of the wire."""

import asyncio
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from e2e.server import DEADLINE_S, ServerProcess, in_parallel, wait_until
from fake_server import FakeServer, fake_server
from sekali.client import Event, Inbox, NoTransaction, Outbox, Positions, Relay, new_event

Connect = Callable[..., psycopg.Connection[Any]]
MakeRelay = Callable[..., Relay]
_numbers = itertools.count()


@pytest.fixture
def connect(postgres: str) -> Iterator[Connect]:
    """Open connections to a database of the test's own, with outbox and inbox."""
    name = f"shop_{next(_numbers)}"
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    made: list[psycopg.Connection[Any]] = []

    def connect(**options: Any) -> psycopg.Connection[Any]:
        made.append(psycopg.connect(postgres.replace("dbname=postgres", f"dbname={name}"), **options))
        return made[-1]

    with connect() as connection:
        Outbox().create_table(connection)
        Inbox().create_table(connection)
        connection.execute("CREATE TABLE orders (number integer)")
    yield connect
    for connection in made:
        connection.close()


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


@pytest.fixture
def relay(connect: Connect) -> Iterator[MakeRelay]:
    """Make relays; they are closed."""
    made: list[Relay] = []

    def relay(url: str, **options: Any) -> Relay:
        fixed: dict[str, Any] = {"connect": connect, "poll_s": 0.005, "random_share": lambda: 0.0}
        made.append(Relay(url, options.pop("outbox", Outbox()), **(fixed | options)))
        return made[-1]

    yield relay
    for one in made:
        assert one.close(DEADLINE_S)


def _topic() -> str:
    return f"postgres/{next(_numbers)}"


def _stored(server: ServerProcess, topic: str) -> list[Any]:
    return [event["payload"] for event in server.http.events(topic=topic, limit=10_000)]


def test_order_and_event_exist_together_or_not_at_all(
    server: ServerProcess, connect: Connect, relay: MakeRelay
) -> None:
    topic, connection = _topic(), connect()
    for number, commit in enumerate([True, False, True]):
        connection.execute("INSERT INTO orders VALUES (%s)", (number,))
        Outbox().add(connection, new_event(topic, {"order": number, "text": "é\u0000\U0001f600"}))
        if commit:
            connection.commit()
        else:
            connection.rollback()
    with relay(server.url) as running:
        assert running.flush(DEADLINE_S)
    assert [payload["order"] for payload in _stored(server, topic)] == [0, 2]
    assert _stored(server, topic)[0]["text"] == "é\u0000\U0001f600"
    assert Outbox().pending(connection) == 0 and Outbox().failed(connection) == []


def test_what_commits_late_with_a_lower_number_is_not_passed_by(
    server: ServerProcess, connect: Connect, relay: MakeRelay
) -> None:
    topic, early, late = _topic(), connect(), connect()
    first = Outbox().add(late, new_event(topic, "begun first"))
    second = Outbox().add(early, new_event(topic, "begun second"))
    assert first < second
    early.commit()
    with relay(server.url) as running:
        assert running.flush(DEADLINE_S)
        assert _stored(server, topic) == ["begun second"], "the fault did not happen"
        late.commit()
        assert running.flush(DEADLINE_S)
    assert _stored(server, topic) == ["begun second", "begun first"]
    assert Outbox().pending(early) == 0


def test_whatever_commits_in_whatever_order_arrives_once(
    server: ServerProcess, connect: Connect, relay: MakeRelay
) -> None:
    seed = random.randrange(2**32)
    topic = _topic()
    committed: list[list[int]] = [[] for _ in range(6)]
    passed: list[int] = []

    def work(number: int) -> None:
        chance = random.Random(seed + number)
        connection = connect()
        for turn in range(40):
            ids = [number * 1_000 + turn * 10 + one for one in range(chance.randrange(1, 4))]
            for one in ids:
                Outbox().add(connection, new_event(topic, one))
                if chance.random() < 0.3:
                    time.sleep(0)  # lets another one commit in between
            if chance.random() < 0.2:
                connection.rollback()
            else:
                connection.commit()
                committed[number] += ids

    with relay(server.url, batch_events_max=7) as one, relay(server.url, batch_events_max=7) as other:
        in_parallel(6, work)
        assert one.flush(DEADLINE_S) and other.flush(DEADLINE_S)
    found = _stored(server, topic)
    assert sorted(found) == sorted(itertools.chain(*committed)), f"seed {seed}"
    passed += [later for earlier, later in itertools.pairwise(found) if later // 1_000 != earlier // 1_000]
    assert len(passed) > 6, "nobody committed in between"
    assert server.http.topic(topic)["duplicates"] == 0, "two relays sent the same"


def test_one_relay_sends_at_a_time_and_the_next_takes_over(
    fake: FakeServer, connect: Connect, relay: MakeRelay
) -> None:
    connection = connect()

    def add(number: int) -> None:
        Outbox().add(connection, new_event("t", number))
        connection.commit()

    fake.gate.clear()
    standing_by = threading.Event()
    first, second = relay(fake.url), relay(fake.url, on_standby=lambda database: standing_by.set())
    first.start()
    add(1)
    fake.wait_for_requests(1)
    second.start()
    add(2)
    assert standing_by.wait(DEADLINE_S) and len(fake.requests) == 1
    with connection.cursor() as cursor:  # the holder dies without a word
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE state = 'idle in transaction' AND pid <> pg_backend_pid() AND query LIKE '%%sekali_outbox%%'"
        )
        assert len(cursor.fetchall()) == 1
    connection.commit()
    fake.wait_for_requests(2)  # the other one took the turn, and both rows
    fake.gate.set()
    assert first.flush(DEADLINE_S) and second.flush(DEADLINE_S)
    assert [event["payload"] for event in fake.events.values()] == [1, 2]
    assert Outbox().pending(connection) == 0


def test_a_relay_whose_session_ends_before_the_deletion_sends_again(
    server: ServerProcess, connect: Connect, relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, connection = _topic(), connect()
    Outbox().add(connection, new_event(topic, 1))
    connection.commit()
    original, kills = Outbox.settle, [1]

    def settle(self: Outbox, database: Any, settled: Any) -> None:
        if kills and kills.pop():
            database.rows("SELECT pg_terminate_backend(pg_backend_pid())")
        original(self, database, settled)

    monkeypatch.setattr(Outbox, "settle", settle)
    outcomes: list[str] = []
    with relay(server.url, on_verdict=lambda event, verdict: outcomes.append(verdict.outcome)) as running:
        assert running.flush(DEADLINE_S)
    assert not kills and outcomes == ["duplicate"] and _stored(server, topic) == [1]
    assert Outbox().pending(connect()) == 0


def test_a_row_that_somebody_else_has_locked_holds_nobody_up(
    server: ServerProcess, connect: Connect, relay: MakeRelay
) -> None:
    topic, connection, other = _topic(), connect(), connect()
    ids = [Outbox().add(connection, new_event(topic, number)) for number in range(3)]
    connection.commit()
    other.execute("SELECT 1 FROM sekali_outbox WHERE id = %s FOR UPDATE", (ids[0],))
    with relay(server.url) as running:
        wait_until(lambda: _stored(server, topic) == [1, 2], "the others are sent")
        other.rollback()
        assert running.flush(DEADLINE_S)
    assert _stored(server, topic) == [1, 2, 0]


def test_what_the_server_will_never_take_is_kept_with_its_error(
    server: ServerProcess, connect: Connect, relay: MakeRelay
) -> None:
    topic, connection = _topic(), connect(row_factory=dict_row)
    good, conflict = new_event(topic, 1), new_event(topic, 2)
    for event in (good, conflict._replace(event_id=good.event_id, json=conflict.json), new_event("a//b", 3)):
        fixed = event.json.replace(json.loads(event.json)["event_id"].encode(), event.event_id.encode())
        Outbox().add(connection, event._replace(json=fixed))
    connection.commit()
    with relay(server.url, connect=lambda: connect(row_factory=dict_row)) as running:
        assert running.flush(DEADLINE_S)
        failed = Outbox().failed(connection)
        assert [one.error.partition(":")[0] for one in failed] == ["conflict", "invalid"]
        assert Outbox().pending(connection) == 0
        Outbox().discard(connection, [failed[0].row_id])
        Outbox().retry(connection, [failed[1].row_id])
        assert Outbox().pending(connection) == 1 and Outbox().failed(connection) == []
        connection.commit()
        assert running.flush(DEADLINE_S)
    assert len(Outbox().failed(connection)) == 1


def test_a_name_may_have_a_schema(server: ServerProcess, connect: Connect, relay: MakeRelay) -> None:
    topic, outbox, connection = _topic(), Outbox("side.events_out"), connect()
    connection.execute("CREATE SCHEMA side")
    outbox.create_table(connection)
    outbox.create_table(connection)
    outbox.add(connection, new_event(topic, 1))
    connection.commit()
    with relay(server.url, outbox=outbox) as running:
        assert running.flush(DEADLINE_S)
    assert _stored(server, topic) == [1]
    found = connection.execute("SELECT schemaname FROM pg_indexes WHERE indexname = 'events_out_pending'")
    assert found.fetchall() == [("side",)]


def test_without_a_transaction_it_refuses(connect: Connect) -> None:
    with connect(autocommit=True) as connection:
        with pytest.raises(NoTransaction, match="autocommit"):
            Outbox().add(connection, new_event("t", 1))
        with pytest.raises(NoTransaction, match="autocommit"):
            Inbox().once(connection, EVENT)
        assert Outbox().pending(connection) == 0
        with connection.transaction():
            Outbox().add(connection, new_event("t", 1))
            assert Inbox().once(connection, EVENT)
        assert Outbox().pending(connection) == 1 and not _once(connection)


def test_a_position_is_as_old_as_its_transaction(connect: Connect) -> None:
    positions = Positions()
    with connect() as connection:
        positions.create_table(connection)
        positions.store(connection, "report", "log-1")
        positions.store(connection, "report", "log-2")
        connection.commit()
        positions.store(connection, "report", "log-3")
        connection.rollback()
        assert positions.load(connection, "report") == "log-2"
    with connect(autocommit=True) as connection, pytest.raises(NoTransaction, match="autocommit"):
        positions.store(connection, "report", "log-4")


def _once(connection: psycopg.Connection[Any]) -> bool:
    with connection.transaction():
        return Inbox().once(connection, EVENT)


def test_an_asynchronous_connection_is_refused(postgres: str) -> None:
    async def main() -> None:
        connection = await psycopg.AsyncConnection.connect(postgres)
        with pytest.raises(TypeError, match="not asynchronous"):
            Outbox().add(connection, new_event("t", 1))
        await connection.close()

    asyncio.run(main())


EVENT = Event("orders", "o-1", b"{}")


def _waits_for_a_lock(connect: Connect) -> bool:
    with connect() as connection:
        found = connection.execute(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%sekali_inbox%%' "
            "AND datname = current_database()"
        )
        return bool(found.fetchall())


@pytest.mark.parametrize("commits", [True, False])
def test_of_two_transactions_with_one_event_the_second_waits_for_the_first(connect: Connect, commits: bool) -> None:
    first, second = connect(), connect()
    assert Inbox().once(first, EVENT)
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(Inbox().once(second, EVENT)))
    thread.start()
    wait_until(lambda: _waits_for_a_lock(connect), "the second waits")
    assert found == []
    if commits:
        first.commit()
    else:
        first.rollback()
    thread.join(DEADLINE_S)
    assert found == [not commits]
    second.commit()
    assert not Inbox().once(first, EVENT)


def test_above_read_committed_the_second_is_rolled_back(connect: Connect) -> None:
    first, second = connect(), connect()
    second.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    second.execute("SELECT count(*) FROM orders")  # takes its snapshot
    assert Inbox().once(first, EVENT)
    first.commit()
    with pytest.raises(psycopg.errors.SerializationFailure):
        Inbox().once(second, EVENT)
    second.rollback()
    assert not Inbox().once(second, EVENT), "when the event is taken again"


def test_many_consumers_and_one_effect_each(connect: Connect) -> None:
    seed = random.randrange(2**32)

    def consume(number: int) -> None:
        chance = random.Random(seed + number)
        connection = connect()
        for one in range(30):
            if Inbox().once(connection, EVENT._replace(event_id=str(one))):
                connection.execute("INSERT INTO orders VALUES (%s)", (one,))
            if chance.random() < 0.3:
                connection.rollback()  # and comes again, as what was not acknowledged does
                if Inbox().once(connection, EVENT._replace(event_id=str(one))):
                    connection.execute("INSERT INTO orders VALUES (%s)", (one,))
            connection.commit()

    in_parallel(6, consume)
    found = connect().execute("SELECT number FROM orders").fetchall()
    assert sorted(found) == [(number,) for number in range(30)], f"seed {seed}"


def test_pruning_forgets_what_is_old_and_nothing_else(connect: Connect) -> None:
    connection = connect()
    for event_id in ("new", "old"):
        assert Inbox().once(connection, EVENT._replace(event_id=event_id))
    connection.execute("UPDATE sekali_inbox SET seen_at = now() - interval '1 day' WHERE event_id = 'old'")
    Inbox().prune(connection, older_than_s=3600)
    connection.commit()
    assert not Inbox().once(connection, EVENT._replace(event_id="new"))
    assert Inbox().once(connection, EVENT._replace(event_id="old"))
