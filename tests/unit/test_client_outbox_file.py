"""A publisher with an outbox of its own: on disk before publish returns, sent by whoever comes next."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fake_server import FakeServer, fake_server, problem
from sekali.client import (
    BufferFull,
    Event,
    Limits,
    OutboxFailed,
    OutboxFile,
    Publisher,
    PublisherClosed,
    Verdict,
    new_event,
)

DEADLINE_S = 30.0
BUSY = problem(503, "The server has no room", "the queue is full")
Make = Callable[..., Publisher]


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


@pytest.fixture
def file(tmp_path: Path) -> OutboxFile:
    return OutboxFile(tmp_path / "outbox.db")


@pytest.fixture
def make(fake: FakeServer, file: OutboxFile) -> Iterator[Make]:
    """Make publishers with one outbox; they are closed."""
    made: list[Publisher] = []

    def publisher(**options: Any) -> Publisher:
        fixed: dict[str, Any] = {"outbox": file, "random_share": lambda: 0.0}
        made.append(Publisher(options.pop("url", fake.url), **(fixed | options)))
        return made[-1]

    yield publisher
    fake.gate.set()
    for one in made:
        one.close(0)


def _pending(file: OutboxFile) -> int:
    with closing(file.open()) as connection:
        return file.outbox.pending(connection)


def _until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline_s
        pause.wait(0.002)


def _payloads(fake: FakeServer) -> list[Any]:
    return [event["payload"] for event in fake.events.values()]


def test_the_event_is_on_disk_when_publish_returns(fake: FakeServer, file: OutboxFile, make: Make) -> None:
    fake.gate.clear()
    publisher = make()
    delivery = publisher.publish("t", 1)
    assert _pending(file) == 1 and not delivery.done()
    fake.gate.set()
    assert delivery.result(DEADLINE_S) == Verdict("stored", 1)
    assert publisher.flush(DEADLINE_S) and _pending(file) == 0
    assert publisher.counts().stored == publisher.counts().published == 1


def test_verdicts_are_told_as_without_an_outbox(fake: FakeServer, file: OutboxFile, make: Make) -> None:
    told: list[tuple[str, str]] = []
    publisher = make(on_verdict=lambda event, verdict: told.append((event.event_id, verdict.outcome)))
    deliveries = [publisher.publish("t", payload, event_id="a") for payload in (1, 1, 2)]
    outcomes = [delivery.result(DEADLINE_S).outcome for delivery in deliveries]
    assert outcomes == ["stored", "duplicate", "conflict"]
    assert publisher.flush(DEADLINE_S) and [outcome for _, outcome in told] == outcomes
    with closing(file.open()) as connection:
        assert [one.event.event_id for one in file.outbox.failed(connection)] == ["a"]


def test_what_is_left_is_sent_by_the_next_publisher(fake: FakeServer, file: OutboxFile, make: Make) -> None:
    fake.script.append(problem(503, "t", "d", Retry_After="3600"))
    first = make()
    delivery = first.publish("t", 1)
    fake.wait_for_requests(1)
    first.publish("t", 2)
    assert first.close(0) is False and not delivery.done() and _pending(file) == 2
    with pytest.raises(PublisherClosed):
        first.publish("t", 3)
    told: list[Event] = []
    second = make(on_verdict=lambda event, verdict: told.append(event))
    assert second.flush(DEADLINE_S) and _payloads(fake) == [1, 2]
    assert [event.event_id for event in told] == [event_id for _, event_id in fake.events]
    assert second.counts().stored == 2 and second.counts().published == 0


def test_close_sends_what_can_be_sent(fake: FakeServer, file: OutboxFile, make: Make) -> None:
    with make() as publisher:
        deliveries = [publisher.publish("t", number) for number in range(5)]
    assert all(delivery.result(0).ok for delivery in deliveries) and _pending(file) == 0
    assert publisher.close() is True
    assert not file.path.with_name("outbox.db-wal").exists(), "the last connection is still open"


def test_publishers_that_come_together_share_a_commit(fake: FakeServer, file: OutboxFile, make: Make) -> None:
    publisher = make(limits=Limits(linger_s=1_000))
    publisher.publish("t", 0)
    sizes: list[int] = []
    desk = publisher._desk
    assert desk is not None
    original, go_on = desk.send, threading.Semaphore(0)

    def send(batch: Any) -> Any:
        sizes.append(len(batch))
        assert go_on.acquire(timeout=DEADLINE_S)
        return original(batch)

    desk.send = send  # type: ignore[method-assign]
    threads = [threading.Thread(target=publisher.publish, args=("t", number)) for number in range(1, 9)]
    threads[0].start()
    _until(lambda: sizes == [1])
    for thread in threads[1:]:
        thread.start()
    _until(lambda: publisher.counts().held_events == 8)
    go_on.release(2)
    for thread in threads:
        thread.join(DEADLINE_S)
    assert sizes == [1, 7]


def test_two_publishers_share_an_outbox(fake: FakeServer, file: OutboxFile, make: Make) -> None:
    one, other = make(), make()
    assert one.publish("t", 0).result(DEADLINE_S).ok
    fake.events["t", "taken"] = {"payload": "other", "source": "", "seq": 17}
    deliveries = [publisher.publish("t", number) for number in range(1, 20) for publisher in (one, other)]
    conflicts = [publisher.publish("t", 0, event_id="taken") for publisher in (one, other)]
    outcomes = {delivery.result(DEADLINE_S).outcome for delivery in deliveries}
    assert outcomes == {"stored", "delivered"}, "each is told what its own relay knows"
    assert {conflict.result(DEADLINE_S).outcome for conflict in conflicts} == {"conflict"}
    assert sum(len(request.lines) for request in fake.requests) == 41, "something was sent twice"
    assert one.flush(DEADLINE_S) and other.flush(DEADLINE_S)


def test_a_delivery_that_nobody_holds_is_not_kept(fake: FakeServer, file: OutboxFile, make: Make) -> None:
    fake.gate.clear()
    publisher = make()
    kept = publisher.publish("t", 0)
    for number in range(10):
        publisher.publish("t", number)
    assert publisher._desk is not None
    _until(lambda: publisher.counts().held_events == 0)
    assert len(publisher._desk._deliveries) <= 2  # the one that is kept, and what the thread has in its hands
    fake.gate.set()
    assert kept.result(DEADLINE_S).ok


def _small(file: OutboxFile) -> OutboxFile:
    return OutboxFile(file.path, bytes_max=64 * 1024)


def test_a_full_file_raises_if_asked_to(fake: FakeServer, file: OutboxFile, make: Make) -> None:
    fake.gate.clear()
    publisher = make(outbox=_small(file), when_full="raise")
    with pytest.raises(BufferFull, match="is full"):
        for _ in range(1_000):
            publisher.publish("t", "x" * 1_000)
    assert 10 < _pending(file) < 64
    assert publisher.counts().dropped == 1 and publisher.counts().published == _pending(file) + 1
    fake.gate.set()
    assert publisher.flush(DEADLINE_S)
    assert publisher.publish("t", 1).result(DEADLINE_S).ok, "there is room again"


def test_a_full_file_is_waited_for_otherwise(fake: FakeServer, file: OutboxFile, make: Make) -> None:
    fake.gate.clear()
    publisher = make(outbox=_small(file))
    done: list[int] = []

    def publish() -> None:
        for number in range(200):
            publisher.publish("t", [number, "x" * 1_000])
            done.append(number)

    thread = threading.Thread(target=publish)
    thread.start()
    _until(lambda: publisher.counts().held_events == 1 and 0 < len(done) == _pending(file))
    assert len(done) < 64
    fake.gate.set()
    thread.join(DEADLINE_S)
    assert publisher.flush(DEADLINE_S) and [number for number, _ in _payloads(fake)] == list(range(200))


def test_what_fails_is_marked_although_the_file_is_full(fake: FakeServer, file: OutboxFile, make: Make) -> None:
    fake.gate.clear()
    publisher = make(outbox=_small(file), when_full="raise")
    fake.events["t", "taken"] = {"payload": "other", "source": "", "seq": 17}
    with pytest.raises(BufferFull):
        for _ in range(1_000):
            publisher.publish("t", "x" * 500, event_id="taken")
    fake.gate.set()
    assert publisher.flush(DEADLINE_S)
    with closing(file.open()) as connection:
        assert len(file.outbox.failed(connection, limit=1_000)) > 20


def test_a_disk_that_fails_is_told_to_the_publisher(fake: FakeServer, file: OutboxFile, make: Make) -> None:
    publisher = make()
    publisher.publish("t", 1).result(DEADLINE_S)
    with closing(file.open()) as connection:
        connection.execute("ALTER TABLE sekali_outbox RENAME TO elsewhere")
    event = new_event("t", 2)
    with pytest.raises(OutboxFailed, match="no such table"):
        publisher.publish_event(event)
    assert publisher.counts().dropped == 1
    with closing(file.open()) as connection:
        connection.execute("ALTER TABLE elsewhere RENAME TO sekali_outbox")
    assert publisher.publish_event(event).result(DEADLINE_S).ok, "the next try, with the same event"


def test_a_place_where_no_file_can_be_is_told_at_once(fake: FakeServer, make: Make, tmp_path: Path) -> None:
    with pytest.raises(OutboxFailed, match="No such file"):
        make(outbox=tmp_path / "missing" / "outbox.db")
    (tmp_path / "text").write_text("this is no database, and long enough to see it")
    with pytest.raises(OutboxFailed, match="not a database"):
        make(outbox=str(tmp_path / "text"))


def test_a_file_that_cannot_have_a_write_ahead_log_is_refused(file: OutboxFile) -> None:
    file.path = Path(":memory:")
    with pytest.raises(OutboxFailed, match="durable"):
        file.open()


def test_commits_are_durable_and_checkpoints_are_ours(file: OutboxFile) -> None:
    file.prepare()
    file.prepare()
    with closing(file.open()) as connection:
        for pragma, expected in (("journal_mode", "wal"), ("synchronous", 2), ("wal_autocheckpoint", 0)):
            assert connection.execute(f"PRAGMA {pragma}").fetchone()[0] == expected


def test_the_log_is_shortened(fake: FakeServer, file: OutboxFile, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekali.client.outbox_file.WAL_BYTES_MAX", 100_000)
    wal = file.path.with_name("outbox.db-wal")
    fake.gate.clear()
    publisher = make()
    sizes: list[int] = []
    for _ in range(30):
        publisher.publish("t", "x" * 20_000)
        sizes.append(wal.stat().st_size)
    assert max(sizes) < 250_000 and min(sizes[10:]) < 100_000
    fake.gate.set()
    assert publisher.flush(DEADLINE_S) and wal.stat().st_size < 250_000


def test_many_processes_may_make_the_same_file(file: OutboxFile) -> None:
    code = "import sys; from sekali.client import OutboxFile; sys.stdin.read(); OutboxFile(sys.argv[1]).prepare()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(file.path)], env=environment, stdin=subprocess.PIPE)
        for _ in range(6)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(DEADLINE_S) for process in processes] == [0] * 6
    assert _pending(file) == 0


FORKING = """
import os, signal, sys, threading
from sekali.client import Publisher
publisher = Publisher(sys.argv[1])
stop = threading.Event()
def work(name):
    number = 0
    while not stop.is_set():
        publisher.publish("parent", [name, number])
        number += 1
threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
for thread in threads: thread.start()
for number in range(15):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # rather than stay for ever
        empty = publisher.counts().published == 0 == publisher.counts().held_events
        ok = publisher.publish("child", number).result(30).ok and publisher.close(30)
        os._exit(0 if ok and empty else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for thread in threads: thread.join()
assert publisher.close(30)
assert publisher.counts().dropped == 0
print(publisher.counts().published)
"""


def _run(code: str, *arguments: object, timeout_s: float = 2 * DEADLINE_S) -> str:
    """Run a program in a process of its own, which must end well and in silence, and return what it prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_forks_at_any_moment(fake: FakeServer) -> None:
    published = int(_run(FORKING, fake.url))
    topics = [topic for topic, _ in fake.events]
    assert topics.count("child") == 15 and topics.count("parent") == published > 15
    assert sum(len(request.lines) for request in fake.requests) == len(topics), "something was sent by both"


FORKING_WITH_OUTBOX = """
import os, signal, sqlite3, sys, threading
from sekali.client import OutboxFailed, OutboxFile, Publisher, PublisherClosed
url, path = sys.argv[1:]
publisher = Publisher(url, outbox=path)
stop = threading.Event()
def work():
    number = 0
    while not stop.is_set():
        publisher.publish("t", number)
        number += 1
thread = threading.Thread(target=work)
thread.start()
def child_is_refused():
    try:
        publisher.publish("t", "child")
    except PublisherClosed as error:
        assert "fork" in str(error)
    else:
        return False
    try:
        Publisher(url, outbox=path)
    except OutboxFailed as error:
        assert "forked" in str(error)
    else:
        return False
    Publisher(url, outbox=path + ".child").publish("t", "child").result(30)
    return publisher.close() is True
for number in range(8):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        if not child_is_refused(): os._exit(1)
        if number % 2: os._exit(0)
        sys.exit(0)  # with all that the end of an interpreter closes
    assert os.waitpid(child, 0)[1] == 0
stop.set()
thread.join()
assert publisher.close(30) and publisher.counts().dropped == 0
child = os.fork()
if child == 0:  # nothing is open any more
    assert Publisher(url, outbox=path).publish("t", "late child").result(30).ok
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
connection = sqlite3.connect(path)
assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
print(publisher.counts().published)
"""


def test_a_child_is_kept_away_from_an_outbox_that_was_open(fake: FakeServer, file: OutboxFile) -> None:
    """SQLite keeps a file's locks in the memory of the process, which the child inherits, and the locks it does not."""
    published = int(_run(FORKING_WITH_OUTBOX, fake.url, file.path))
    payloads = _payloads(fake)
    assert payloads.count("child") == 8 and payloads.count("late child") == 1
    assert len(payloads) == published + 9 and _pending(file) == 0


EXITING = """
import sys
from sekali.client import Publisher, Limits
publisher = Publisher(sys.argv[1], limits=Limits(linger_s=1000))
for number in range(10):
    publisher.publish("t", number)
"""


def test_the_end_of_the_process_sends_what_waits(fake: FakeServer) -> None:
    _run(EXITING, fake.url)
    assert _payloads(fake) == list(range(10))


def test_the_end_of_the_process_does_not_wait_for_ever_and_says_what_is_lost(fake: FakeServer) -> None:
    fake.script.append(problem(503, "t", "d", Retry_After="3600"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    code = f"import sekali.client.background as b; b.EXIT_S = 0.1\n{EXITING}"
    command = [sys.executable, "-c", code, fake.url]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert result.returncode == 0 and "10 were in the buffer" in result.stderr
