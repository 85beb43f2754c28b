"""The outbox and its relay on both SQLite libraries; PostgreSQL is in e2e/test_client_postgres.py."""

import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_server import HANG_UP, FakeServer, Reply, fake_server, problem
from sekali.client import Event, NoTransaction, Outbox, Relay, Verdict, new_event
from sekali.client.outbox import Waiting
from sekali.client.sql import check_table, database_of

DEADLINE_S = 30.0
BUSY = problem(503, "The server has no room", "the queue is full")
Connect = Callable[[], Any]
MakeRelay = Callable[..., Relay]


def _sqlite3(path: Path) -> Any:
    return sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)


def _apsw(path: Path) -> Any:
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(30_000)
    return connection


@pytest.fixture(params=[_sqlite3, _apsw], ids=["sqlite3", "apsw"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connect]:
    """Open connections to one file of an application, with an outbox and a table of its business."""
    made: list[Any] = []

    def connect() -> Any:
        made.append(request.param(tmp_path / "shop.db"))
        return made[-1]

    Outbox().create_table(connect())
    made[0].execute("CREATE TABLE orders (number integer)")
    yield connect
    for connection in made:
        connection.close()


@pytest.fixture
def connection(connect: Connect) -> Any:
    return connect()


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


@pytest.fixture
def relay(fake: FakeServer, connect: Connect) -> Iterator[MakeRelay]:
    """Make relays; they are closed."""
    made: list[Relay] = []

    def relay(**options: Any) -> Relay:
        fixed: dict[str, Any] = {"outbox": Outbox(), "connect": connect, "poll_s": 0.005, "random_share": lambda: 0.0}
        made.append(Relay(options.pop("url", fake.url), **(fixed | options)))
        return made[-1]

    yield relay
    fake.gate.set()
    for one in made:
        assert one.close(DEADLINE_S)


def _order(connection: Any, number: int, *, commit: bool = True) -> Event:
    """Do business: a row and its event, in one transaction."""
    event = new_event("orders", number)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO orders VALUES (?)", (number,))
    Outbox().add(connection, event)
    connection.execute("COMMIT" if commit else "ROLLBACK")
    return event


def _payloads(fake: FakeServer) -> list[Any]:
    return [event["payload"] for event in fake.events.values()]


def test_what_commits_is_sent_and_its_row_is_gone(connection: Any, fake: FakeServer, relay: MakeRelay) -> None:
    events = [_order(connection, number) for number in range(3)]
    assert Outbox().pending(connection) == 3
    with relay() as running:
        assert running.flush(DEADLINE_S)
        events.append(_order(connection, 3))
        assert running.flush(DEADLINE_S), "what comes later"
    assert list(fake.events) == [(event.topic, event.event_id) for event in events]
    assert _payloads(fake) == [0, 1, 2, 3]
    assert Outbox().pending(connection) == 0 and Outbox().failed(connection) == []


def test_what_is_rolled_back_is_never_sent(connection: Any, fake: FakeServer, relay: MakeRelay) -> None:
    _order(connection, 1, commit=False)
    _order(connection, 2)
    with relay() as running:
        assert running.flush(DEADLINE_S)
    assert _payloads(fake) == [2]


def test_what_is_not_committed_yet_is_not_sent_yet(connection: Any, fake: FakeServer, relay: MakeRelay) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    Outbox().add(connection, new_event("orders", 1))
    with relay() as running:
        assert running.flush(DEADLINE_S) and fake.requests == []
        connection.execute("COMMIT")
        assert running.flush(DEADLINE_S)
    assert _payloads(fake) == [1]


def test_a_wake_up_is_quicker_than_the_poll(connection: Any, fake: FakeServer, relay: MakeRelay) -> None:
    with relay(poll_s=1_000.0) as running:
        assert running.flush(DEADLINE_S)
        _order(connection, 1)
        running.wake()
        fake.wait_for_requests(1)


def test_a_row_stays_until_the_server_has_said_what_became_of_it(
    connection: Any, fake: FakeServer, relay: MakeRelay
) -> None:
    troubles: list[Reply | str] = [
        BUSY,
        HANG_UP,
        problem(401, "No key", "…"),
        problem(500, "A defect", "…"),
        problem(404, "t", "d"),
    ]
    fake.script.extend(troubles)
    _order(connection, 1)
    with relay() as running:
        for count in range(1, len(troubles) + 1):
            fake.wait_for_requests(count + 1)  # the next one has come, so this one came to nothing
        assert running.flush(DEADLINE_S) and running.trouble is None
    assert _payloads(fake) == [1] and Outbox().pending(connection) == 0


def test_it_says_what_the_trouble_is(connection: Any, fake: FakeServer, relay: MakeRelay, caplog: Any) -> None:
    fake.script.append(problem(401, "No key", "give one", Retry_After="1000"))
    _order(connection, 1)
    running = relay(random_share=lambda: 0.999)
    running.start()
    _until(lambda: "No key: give one" in caplog.text)
    assert "No key: give one" in str(running.trouble)
    assert not running.flush(0)
    assert Outbox().pending(connection) == 1


def test_what_the_server_will_never_take_is_kept_with_its_error(
    connection: Any, fake: FakeServer, relay: MakeRelay
) -> None:
    fake.events["orders", "taken"] = {"payload": "other", "source": "", "seq": 17}
    taken, bad = new_event("orders", 1, event_id="taken"), Event("orders", "bad", b"{not json}")
    connection.execute("BEGIN")
    for event in (taken, bad, new_event("orders", 2)):
        Outbox().add(connection, event)
    connection.execute("COMMIT")
    told: list[tuple[str, Verdict]] = []
    with relay(on_verdict=lambda event, verdict: told.append((event.event_id, verdict))) as running:
        assert running.flush(DEADLINE_S)
    assert [name for name, _ in told][:2] == ["taken", "bad"]
    assert [verdict.outcome for _, verdict in told] == ["conflict", "invalid", "stored"]
    failed = Outbox().failed(connection)
    assert [(one.event, one.error) for one in failed] == [(taken, "conflict: seq 17"), (bad, "invalid: line: not JSON")]
    assert Outbox().pending(connection) == 0 and len(fake.requests) == 1


def test_failed_events_are_not_sent_again_until_asked_for(connection: Any, fake: FakeServer, relay: MakeRelay) -> None:
    fake.events["orders", "taken"] = {"payload": "other", "source": "", "seq": 17}
    for number in (1, 2):
        connection.execute("BEGIN")
        Outbox().add(connection, new_event("orders", number, event_id="taken"))
        connection.execute("COMMIT")
    with relay() as running:
        assert running.flush(DEADLINE_S)
        first, second = Outbox().failed(connection)
        assert Outbox().failed(connection, limit=1) == [first]
        Outbox().discard(connection, [second.row_id])
        del fake.events["orders", "taken"]
        Outbox().retry(connection, [first.row_id])
        assert running.flush(DEADLINE_S)
    assert _payloads(fake) == [1] and Outbox().failed(connection) == []


def test_retry_and_discard_touch_nothing_that_waits(connection: Any) -> None:
    _order(connection, 1)
    row_id = next(iter(connection.execute("SELECT id FROM sekali_outbox")))[0]
    Outbox().discard(connection, [row_id])
    Outbox().retry(connection, [row_id])
    assert Outbox().pending(connection) == 1


def test_a_batch_is_limited_in_events_and_in_bytes(connection: Any, fake: FakeServer, relay: MakeRelay) -> None:
    for number in range(5):
        _order(connection, number)
    with relay(batch_events_max=2) as running:
        assert running.flush(DEADLINE_S)
    assert [len(request.lines) for request in fake.requests] == [2, 2, 1]


@given(sizes=st.lists(st.integers(1, 40), max_size=12), events_max=st.integers(1, 5), bytes_max=st.integers(1, 100))
@settings(max_examples=60, deadline=None)
def test_claims_take_everything_in_order_and_keep_the_limits(sizes: list[int], events_max: int, bytes_max: int) -> None:
    outbox = Outbox()
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        outbox.create_table(connection)
        database = database_of(connection)
        texts = [("é" * size)[: max(1, size // 2)] for size in sizes]  # two bytes a character
        for number, text in enumerate(texts):
            outbox.insert(database, Event("t", str(number), text.encode()))
        claimed: list[Waiting] = []
        while rows := outbox.claim(database, events_max, bytes_max):
            assert len(rows) <= events_max
            assert len(rows) == 1 or sum(len(row.event) + 1 for row in rows) <= bytes_max
            claimed += rows
            outbox.settle(database, [(row, Verdict("stored")) for row in rows])
    assert [row.event.decode() for row in claimed] == texts


def test_of_a_batch_that_is_too_large_each_part_counts(connection: Any, fake: FakeServer, relay: MakeRelay) -> None:
    fake.batch_events_max = 2
    fake.script.extend(["usual", "usual", BUSY])
    for number in range(4):
        _order(connection, number)
    with relay() as running:
        assert running.flush(DEADLINE_S)
    assert [[line["payload"] for line in request.lines] for request in fake.requests] == [
        [0, 1, 2, 3],
        [0, 1],
        [2, 3],
        [2, 3],  # the first half is gone from the outbox
    ]


def test_a_relay_that_dies_before_the_deletion_sends_again_and_nothing_is_doubled(
    connection: Any, fake: FakeServer, relay: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    _order(connection, 1)
    failures = [2]
    original = Outbox.settle

    def settle(self: Outbox, *arguments: Any) -> None:
        if failures[0]:
            failures[0] -= 1
            raise sqlite3.OperationalError("disk I/O error")
        original(self, *arguments)

    monkeypatch.setattr(Outbox, "settle", settle)
    outcomes: list[str] = []
    with relay(on_verdict=lambda event, verdict: outcomes.append(verdict.outcome)) as running:
        assert running.flush(DEADLINE_S)
    assert len(fake.requests) == 3 and len(fake.events) == 1
    assert outcomes == ["duplicate"], "a verdict was told before its row was settled"


def test_it_comes_back_when_the_database_does(
    connection: Any, fake: FakeServer, relay: MakeRelay, connect: Any
) -> None:
    attempts: list[int] = []

    def moody() -> Any:
        attempts.append(1)
        if len(attempts) < 4:
            raise OSError("no database here")
        return connect()

    _order(connection, 1)
    with relay(connect=moody) as running:
        assert running.flush(DEADLINE_S)
    assert len(attempts) == 4 and _payloads(fake) == [1]


def test_a_missing_table_is_waited_for(connection: Any, fake: FakeServer, relay: MakeRelay) -> None:
    outbox = Outbox("later")
    running = relay(outbox=outbox)
    running.start()
    _until(lambda: "later" in str(running.trouble))
    outbox.create_table(connection)
    connection.execute("BEGIN")
    outbox.add(connection, new_event("t", 1))
    connection.execute("COMMIT")
    assert running.flush(DEADLINE_S) and _payloads(fake) == [1]


def _until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline_s
        pause.wait(0.002)


def test_one_relay_sends_at_a_time_and_the_next_takes_over(connection: Any, fake: FakeServer, relay: MakeRelay) -> None:
    fake.gate.clear()
    standing_by = threading.Event()
    first, second = relay(), relay(on_standby=lambda database: standing_by.set())
    first.start()
    _order(connection, 1)
    fake.wait_for_requests(1)
    second.start()
    _order(connection, 2)
    assert standing_by.wait(DEADLINE_S)
    assert len(fake.requests) == 1, "both send"
    fake.gate.set()
    assert first.flush(DEADLINE_S) and second.flush(DEADLINE_S)
    assert first.close(DEADLINE_S)
    standing_by.clear()
    _order(connection, 3)
    assert second.flush(DEADLINE_S) and not standing_by.is_set()
    assert _payloads(fake) == [1, 2, 3] and len(fake.requests) == 3


def test_outboxes_in_one_database_do_not_wait_for_each_other(
    connection: Any, fake: FakeServer, relay: MakeRelay
) -> None:
    other = Outbox("other_outbox")
    other.create_table(connection)
    fake.gate.clear()
    relay().start()
    _order(connection, 1)
    fake.wait_for_requests(1)
    relay(outbox=other).start()
    connection.execute("BEGIN")
    other.add(connection, new_event("t", 2))
    connection.execute("COMMIT")
    fake.wait_for_requests(2)


def test_a_callback_cannot_wait_for_its_own_thread(connection: Any, fake: FakeServer, relay: MakeRelay) -> None:
    errors: list[Exception] = []

    def on_verdict(event: Event, verdict: Verdict) -> None:
        try:
            running.flush(DEADLINE_S)
        except RuntimeError as error:
            errors.append(error)
        raise ValueError("a callback that fails")

    running = relay(on_verdict=on_verdict)
    _order(connection, 1)
    with running:
        assert running.flush(DEADLINE_S)
        _order(connection, 2)
        assert running.flush(DEADLINE_S)
    assert len(errors) == 2


def test_a_relay_that_does_not_run_flushes_nothing(connection: Any, fake: FakeServer, relay: MakeRelay) -> None:
    running = relay()
    assert not running.flush(DEADLINE_S)
    running.start()
    fake.gate.clear()
    _order(connection, 1)
    fake.wait_for_requests(1)
    results: list[bool] = []
    waiting = threading.Thread(target=lambda: results.append(running.flush(DEADLINE_S)))
    waiting.start()
    _until(lambda: bool(running._flushes))
    assert not running.close(0)
    fake.gate.set()
    waiting.join(DEADLINE_S)
    assert results in ([True], [False]) and not running.flush(DEADLINE_S)
    running.start()
    assert running.close(), "a closed relay starts again"


def test_adding_outside_of_a_transaction_is_refused(connection: Any) -> None:
    with pytest.raises(NoTransaction):
        Outbox().add(connection, new_event("t", 1))
    assert Outbox().pending(connection) == 0


def test_the_default_of_sqlite3_begins_a_transaction_by_itself(tmp_path: Path) -> None:
    outbox = Outbox()
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection, closing(_sqlite3(tmp_path / "shop.db")) as other:
        outbox.create_table(connection)
        assert outbox.add(connection, new_event("t", 1)) == 1
        assert connection.in_transaction and outbox.pending(other) == 0
        connection.rollback()
        with connection:
            outbox.add(connection, new_event("t", 2))
        assert outbox.pending(other) == 1


def test_a_number_is_never_given_twice(connection: Any) -> None:
    """Else a relay that comes too late could delete a row that it has not sent."""
    database = database_of(connection)
    first = Outbox().insert(database, new_event("t", 1))
    Outbox().settle(database, [(Waiting(first, "t", "1", b""), Verdict("stored"))])
    assert Outbox().insert(database, new_event("t", 2)) > first


def test_rows_of_an_application_may_come_in_any_form(connect: Connect, fake: FakeServer, relay: MakeRelay) -> None:
    connection = connect()

    def odd() -> Any:
        opened = connect()
        if isinstance(opened, sqlite3.Connection):
            opened.row_factory = sqlite3.Row
            opened.isolation_level = "DEFERRED"
        else:
            opened.row_trace = lambda cursor, row: {"row": row}
        return opened

    connection.execute("BEGIN")
    Outbox().add(connection, Event("orders", "bad", b"{not json}"))
    connection.execute("COMMIT")
    _order(connection, 2)
    with relay(connect=odd) as running:
        assert running.flush(DEADLINE_S)
    assert len(Outbox().failed(odd())) == 1 and _payloads(fake) == [2]


def test_a_schema_may_stand_before_the_name(
    connect: Connect, fake: FakeServer, tmp_path: Path, relay: MakeRelay
) -> None:
    outbox = Outbox("side.events_out")

    def attached() -> Any:
        connection = connect()
        connection.execute(f"ATTACH '{tmp_path / 'side.db'}' AS side")
        return connection

    connection = attached()
    outbox.create_table(connection)
    outbox.create_table(connection)
    connection.execute("BEGIN")
    outbox.add(connection, new_event("t", 1))
    connection.execute("COMMIT")
    with relay(outbox=outbox, connect=attached) as running:
        assert running.flush(DEADLINE_S)
    assert _payloads(fake) == [1] and (tmp_path / "side.db.events_out.lock").exists()
    assert next(iter(connection.execute("SELECT count(*) FROM side.sqlite_schema WHERE type = 'index'")))[0] == 1


def test_the_rows_that_wait_are_found_by_an_index(connection: Any) -> None:
    plan = list(
        connection.execute(
            "EXPLAIN QUERY PLAN SELECT id FROM sekali_outbox WHERE state = 'pending' ORDER BY id LIMIT 5"
        )
    )
    assert "sekali_outbox_pending" in str(plan)


@pytest.mark.parametrize("name", ["", "Outbox", "a b", "x;drop table y", 'a"b', "a.b.c", "1a", "ä", "a" * 49, "a\n"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        check_table(name)


def test_a_connection_of_something_else_is_refused() -> None:
    class Connection:
        pass

    with pytest.raises(TypeError, match="psycopg"):
        Outbox().create_table(Connection())


def test_a_subclass_of_a_connection_is_one(tmp_path: Path) -> None:
    class Mine(sqlite3.Connection):
        pass

    with closing(sqlite3.connect(tmp_path / "x.db", factory=Mine)) as connection:
        Outbox().create_table(connection)


def test_an_outbox_in_memory_has_no_lock_and_needs_none(fake: FakeServer, relay: MakeRelay) -> None:
    address = f"file:memory{random.getrandbits(64)}?mode=memory&cache=shared"

    def connect() -> Any:
        return sqlite3.connect(address, uri=True, isolation_level=None)

    with closing(connect()) as connection:
        Outbox().create_table(connection)
        connection.execute("BEGIN")
        Outbox().add(connection, new_event("t", 1))
        connection.execute("COMMIT")
        running = relay(connect=connect)
        running.start()
        fake.wait_for_requests(1)
        assert running.close(DEADLINE_S)


FORKING = """
import os, sqlite3, sys
from sekali.client import Outbox, Relay
path, url = sys.argv[1:]
relay = Relay(url, Outbox(), lambda: sqlite3.connect(path), poll_s=0.005)
relay.start()
assert relay.flush(30)
child = os.fork()
if child == 0:
    try:
        relay.start()
    except RuntimeError:
        print("child", not relay.flush(30), flush=True)
    sys.stdin.read()  # until the parent's parent has seen enough
    os._exit(0)
os.kill(os.getpid(), 9)
"""


def test_a_child_neither_relays_nor_keeps_the_turn_of_a_parent_that_died(
    connection: Any, fake: FakeServer, relay: MakeRelay, tmp_path: Path
) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FORKING, str(tmp_path / "shop.db"), fake.url]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "child True\n"
        assert process.wait(DEADLINE_S) == -9
        _order(connection, 1)
        with relay() as running:
            assert running.flush(DEADLINE_S), "the child, which lives, has the lock"
        process.stdin.close()
    assert _payloads(fake) == [1]


def test_nobody_forks_while_a_relay_is_inside_sqlite(tmp_path: Path) -> None:
    """SQLite has mutexes of its own, which a child would inherit as they are."""
    inside, go_on, forked = threading.Event(), threading.Event(), threading.Event()
    with closing(_sqlite3(tmp_path / "x.db")) as connection:

        def hold() -> bool:
            inside.set()
            return go_on.wait(DEADLINE_S)

        connection.create_function("hold", 0, hold)
        database = database_of(connection)
        database.take_over()
        query = threading.Thread(target=lambda: database.rows("SELECT hold()"))
        query.start()
        assert inside.wait(DEADLINE_S)

        def fork() -> None:
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
            forked.set()

        forking = threading.Thread(target=fork)
        forking.start()
        assert not forked.wait(0.1)
        go_on.set()
        assert forked.wait(DEADLINE_S)
        query.join(DEADLINE_S)
        forking.join(DEADLINE_S)


def test_a_relay_waits_for_other_writers_and_does_not_keep_forks_waiting(connect: Connect) -> None:
    database, writer = database_of(connect()), connect()
    database.take_over()
    writer.execute("BEGIN IMMEDIATE")
    begun = threading.Event()
    thread = threading.Thread(target=lambda: database.begin() or begun.set())  # type: ignore[func-returns-value]
    thread.start()
    assert not begun.wait(0.3), "two write at the same time"
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0 and not begun.is_set()
    writer.execute("COMMIT")
    assert begun.wait(DEADLINE_S)
    thread.join(DEADLINE_S)
    database.close()


def test_a_connection_that_failed_leaves_no_lock_behind(connect: Connect) -> None:
    """The traceback of the error holds on to the statement, and the statement to the transaction."""
    database = database_of(connect())
    database.take_over()
    database.begin()
    with pytest.raises(Exception, match="constraint") as info:
        database.rows(
            "INSERT INTO sekali_outbox (id, topic, event_id, event) VALUES (1, 't', 'a', ''), (1, 't', '', '')"
        )
    database.close()
    other = database_of(connect())
    other.rows("BEGIN IMMEDIATE")
    other.rows("ROLLBACK")
    assert info.traceback


def test_events_are_kept_as_they_were_made(connection: Any, fake: FakeServer, relay: MakeRelay) -> None:
    event = new_event("t", {"text": "é\u0000\n\U0001f600", "n": 1.50}, source="s", source_seq=3)
    connection.execute("BEGIN")
    Outbox().add(connection, event)
    connection.execute("COMMIT")
    with relay() as running:
        assert running.flush(DEADLINE_S)
    assert fake.requests[0].body == event.json and json.loads(event.json)["source_seq"] == 3
