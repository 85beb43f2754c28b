"""Memory, descriptors or the log run out: an answer of 503, or none, and nothing acknowledged is lost."""

import json
import os
import resource
import subprocess
import threading
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import urllib3

from batches import DUPLICATE, STORED, commit, publish
from e2e.conftest import Launch
from e2e.server import (
    SEKALI,
    Client,
    RawConnection,
    ServerProcess,
    clean_environment,
    event,
    in_parallel,
    lasting_port,
    verify,
    wait_until,
)
from sekali.errors import StartupError, StoreBroken
from sekali.service import EXIT_GAVE_UP
from sekali.stores.sqlite import SqliteStore
from sekali.stores.sqlite_audit import audit
from sekali.testing import FakeClock

MIB = 1024 * 1024
HEADROOM_BYTES = 40 * MIB  # enough for small requests, and too little for eight large ones


def healthy(http: Client) -> bool:
    try:
        return http.get("/healthz").status == 200
    except urllib3.exceptions.HTTPError:  # it still closes connections
        return False


def acknowledged_is_stored(http: Client, acknowledged: dict[str, int]) -> bool:
    events = [json.loads(line) for line in http.export().splitlines()]
    stored = {one["event_id"]: one["seq"] for one in events}
    return len(stored) == len(events) and acknowledged.items() <= stored.items()


@pytest.mark.parametrize("step", ["decode", "read"])
def test_a_request_without_memory_is_not_its_senders_fault(launch: Launch, step: str) -> None:
    """503, which is to be sent again; and its bytes go back to the budget, however often it happens."""
    server = launch(faults="no-memory", QUEUE_BYTES_MAX=100_000, BODY_BYTES_MAX=100_000, EVENT_BYTES_MAX=100_000)
    batch = [event("memory", "1", payload="x" * 60_000)]
    server.fault_file.write_text(step)
    for _ in range(3):
        answer = server.http.publish(batch)
        assert answer.status == 503 and 1 <= int(answer.headers["Retry-After"]) <= 5
        assert answer.json()["type"] == "urn:sekali:problem:unavailable"
    server.fault_file.unlink()
    assert server.http.publish(batch).outcomes == ["stored"]
    wait_until(lambda: b"sekali_queue_bytes 0.0" in server.http.get("/metrics").data, "all bytes are given back")
    assert any("memory" in str(line).lower() for line in server.log), "the operator is not told"


def test_a_server_without_memory_for_itself_ends_at_once(launch: Launch) -> None:
    """It would not be sure to come to its end in order, nor to accept connections again."""
    server = launch(faults="no-memory")
    assert server.http.publish(event("memory", "before")).outcomes == ["stored"]
    server.fault_file.write_text("go on")
    batch = [event("memory", "1")]
    with suppress(urllib3.exceptions.HTTPError):
        server.http.publish(batch)
    assert server.wait() == EXIT_GAVE_UP
    assert any("no memory left" in line["event"] for line in server.log), server.log
    server.fault_file.unlink()
    server.start()
    assert server.http.publish(batch).json()["received"] == 1
    assert [one["event_id"] for one in server.http.events()] == ["before", "1"]
    assert server.terminate() == 0
    verify(server.db_path)


def test_no_memory_left(launch: Launch) -> None:
    """The system gives the server no more memory, in the middle of a load of large requests and small ones."""
    server = launch(faults="small-runs")
    allowed = server.address_space_bytes + HEADROOM_BYTES
    resource.prlimit(server.pid, resource.RLIMIT_AS, (allowed, resource.RLIM_INFINITY))
    acknowledged: dict[str, int] = {}
    troubles: Counter[str] = Counter()
    adding = threading.Lock()

    def publish_both(sender: int) -> None:
        http = Client(server.url, connections=1)
        for request in range(12):
            large = request % 2 == 1
            ids = [f"{sender}-{request}-{item}" for item in range(10 if large else 100)]
            payload = "x" * (700_000 if large else 10)
            body = json.dumps([event("memory", event_id, payload=payload) for event_id in ids]).encode()
            try:
                answer = http.publish(body)
            except urllib3.exceptions.HTTPError as error:
                with adding:
                    troubles[type(error).__name__] += 1
                continue
            assert answer.status in {200, 503}, answer
            with adding:
                if answer.status == 200:
                    acknowledged.update(zip(ids, answer.seqs, strict=True))
                else:
                    troubles["503"] += 1

    in_parallel(8, publish_both)
    assert troubles, "there was memory enough"
    if server.running:  # it may also have died
        resource.prlimit(server.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        wait_until(lambda: healthy(server.http), "it recovers by itself")
        wait_until(lambda: b"sekali_queue_bytes 0.0" in server.http.get("/metrics").data, "all bytes are given back")
        assert server.http.publish(event("memory", "after")).outcomes == ["stored"]
        assert acknowledged_is_stored(server.http, acknowledged)
        server.kill()
    else:
        assert server.wait() != 0
    server.start()
    assert acknowledged_is_stored(server.http, acknowledged)
    assert server.terminate() == 0
    verify(server.db_path)


DESCRIPTORS_MAX = 64
CONNECTIONS = 100


def _descriptors_of_the_store(server: ServerProcess) -> int:
    """Count those of the SQLite file and what lies beside it, the dedup index excepted."""
    count = 0
    for path in Path(f"/proc/{server.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            target = str(path.readlink())
            count += target.startswith(str(server.db_path)) and ".index" not in target
    return count


def test_no_descriptors_left(launch: Launch) -> None:
    """All are taken while it runs: some connections are refused, the others read on, and all is well when they close.

    The limit is lowered behind the server's back, as where the whole system has none left.
    """
    server = launch(faults="small-runs")
    assert server.http.publish(event("files", "first")).outcomes == ["stored"]
    in_parallel(8, lambda _: server.http.get_json("/events") and None)  # so that every reader has its connection
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS_MAX, DESCRIPTORS_MAX))
    acknowledged: dict[str, int] = {}
    statuses: Counter[int] = Counter()
    open_after: list[int] = []
    for turn in range(3):
        with ExitStack() as stack:
            connections = [stack.enter_context(RawConnection(server.port)) for _ in range(CONNECTIONS)]
            served = [connection for connection in connections if _is_served(connection)]
            assert 10 < len(served) < CONNECTIONS, "nobody was refused"
            for number in range(30):
                name = f"{turn}-{number}"
                statuses[_publish(served[number % len(served)], name, acknowledged)] += 1
                assert b" 200 " in _ask(served[0], b"GET /events?limit=1"), "reads go on"
        wait_until(lambda: healthy(server.http), "it recovers by itself")
        assert server.http.publish(event("files", f"after {turn}")).outcomes == ["stored"]
        open_after.append(_descriptors_of_the_store(server))
    # The dedup index needs files of its own now and then; until it gets them, publishing is refused.
    assert statuses.keys() == {200, 503}, statuses
    assert open_after[-1] <= open_after[0] + 2, f"descriptors are lost: {open_after}"
    assert acknowledged_is_stored(server.http, acknowledged)
    assert server.terminate() == 0
    verify(server.db_path)


def _ask(connection: RawConnection, request: bytes, body: bytes = b"") -> bytes:
    connection.send(b"%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (request, len(body), body))
    return connection.receive_answer()


def _is_served(connection: RawConnection) -> bool:
    try:
        return b" 200 " in _ask(connection, b"GET /healthz")
    except (OSError, AssertionError):  # closed as soon as it was accepted
        return False


def _publish(connection: RawConnection, name: str, acknowledged: dict[str, int]) -> int:
    """Publish 20 events, note what is acknowledged, and return the status."""
    ids = [f"{name}-{item}" for item in range(20)]
    answer = _ask(connection, b"POST /publish", json.dumps([event("files", one) for one in ids]).encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    if status == 200:
        acknowledged.update(zip(ids, (result["seq"] for result in json.loads(body)["results"]), strict=True))
    return status


@pytest.mark.parametrize("log", ["a pipe that nobody reads", "a full disk"])
def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path, log: str) -> None:
    path, port = tmp_path / "store.db", lasting_port()
    reading, writing = os.pipe()
    os.close(reading)
    with Path("/dev/full").open("wb") as full, os.fdopen(writing, "wb") as pipe:
        stderr = pipe if log.startswith("a pipe") else full
        environment = clean_environment(DB_PATH=path, PORT=port, LOG_LEVEL="debug")
        process = subprocess.Popen([SEKALI, "serve"], env=environment, stderr=stderr)
    http = Client(f"http://127.0.0.1:{port}", timeout_s=10)
    try:
        wait_until(lambda: healthy(http), "it starts")
        for number in range(20):
            assert http.publish([event("log", "same"), event("log", f"{number}")]).status == 200
        assert http.get("/healthz").status == 200
        process.terminate()
        assert process.wait(30) == 0
    finally:
        http.close()
        process.kill()
        process.wait()
    assert verify(path)["events"] == 21


def test_a_store_is_not_carried_over_a_fork(tmp_path: Path) -> None:
    """The child can neither commit nor open the store, and its end harms nothing."""
    path = tmp_path / "store.db"

    def open_store() -> SqliteStore:
        store = SqliteStore(path, FakeClock(), topics_max=10, run_keys=4)
        store.recover()
        return store

    store = open_store()
    first = [("fork", f"{number}") for number in range(10)]
    assert publish(store, *first) == [(STORED, number) for number in range(1, 11)]
    pid = os.fork()
    if pid == 0:  # the child
        refusals = 0
        for attempt in (lambda: commit(store), store.recover, open_store):
            try:
                attempt()
            except (StoreBroken, StartupError):
                refusals += 1
        os._exit(refusals)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3, "the child was let in"
    with pytest.raises(StartupError, match="in use"):
        open_store()
    assert publish(store, *first, ("fork", "new")) == [*((DUPLICATE, n) for n in range(1, 11)), (STORED, 11)]
    store.close()
    assert audit(path, lambda done, total: None).ok
