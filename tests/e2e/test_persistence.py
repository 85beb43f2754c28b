"""What was acknowledged survives: restart, kill -9, SIGTERM during load, backup and restore."""

import json
import signal
import threading
from pathlib import Path
from typing import Any

import apsw
import pytest
import urllib3

from e2e.conftest import Launch
from e2e.server import Client, RawConnection, ServerProcess, event, in_parallel, run_sekali, verify, wait_until
from sekali.cli.server import EXIT_CANNOT_START

BATCH = [event("kept/a", "1"), event("kept/a", "2"), event("kept/b", "1"), event("kept/a", "1")]
CONFLICT = [event("kept/a", "1", payload="other")]


def _everything(http: Client) -> tuple[Any, ...]:
    return (
        http.export(),
        http.export(order="-timestamp"),
        http.get_json("/topics"),
        http.get_json("/conflicts"),
        http.stats()["log_id"],
    )


@pytest.mark.parametrize("end", ["restart", "kill -9"])
def test_dedup_and_counters_survive(launch: Launch, end: str) -> None:
    server = launch()
    assert server.http.publish(BATCH).outcomes == ["stored", "stored", "stored", "duplicate"]
    assert server.http.publish([*CONFLICT, {}]).outcomes == ["conflict", "invalid"]
    before, events = server.http.stats(), _everything(server.http)
    assert (before["received"], before["duplicate_dropped"], before["unique_processed"]) == (5, 2, 3)
    assert (before["conflicts"], before["invalid"]) == (1, 1)
    assert before["lifetime"] == {"received": 5, "stored": 3, "duplicate": 1, "conflict": 1}

    if end == "restart":
        server.restart()
    else:
        server.kill()
        assert server.exit_code == -signal.SIGKILL
        server.start()

    after = server.http.stats()
    starts_again = ("received", "duplicate_dropped", "conflicts", "invalid", "duplicate_rate", "throughput")
    assert {name: after[name] for name in starts_again} == dict.fromkeys(starts_again, 0)
    assert after["latency_ms"] == {"p50": None, "p95": None, "p99": None}
    for name in ("unique_processed", "topics", "topics_count", "lifetime", "log_id", "db_path"):
        assert after[name] == before[name], name
    assert after["uptime_seconds"] < before["uptime_seconds"] + 1000
    assert _everything(server.http) == events

    assert server.http.publish(BATCH).outcomes == ["duplicate"] * 4
    assert server.http.publish(CONFLICT).outcomes == ["conflict"]
    assert server.http.publish([event("kept/a", "3")]).seqs == [4], "seq goes on where it was"
    after = server.http.stats()
    assert (after["received"], after["duplicate_dropped"], after["unique_processed"]) == (6, 5, 4)
    assert after["lifetime"] == {"received": 11, "stored": 4, "duplicate": 5, "conflict": 2}
    assert server.terminate() == 0
    assert verify(server.db_path)["events"] == 4


def test_cursor_survives_a_restart(launch: Launch) -> None:
    server = launch()
    server.http.publish([event("pages", f"{number}") for number in range(10)])
    link = server.http.get("/events", limit=4).next
    assert link is not None
    server.restart()
    server.http.publish([event("pages", "new")])
    assert [one["event_id"] for one in server.http.get(link).json()] == ["4", "5", "6", "7"]


def test_killed_between_commit_and_answer_the_retry_is_a_duplicate(launch: Launch) -> None:
    server = launch(faults="points")
    assert server.http.publish(BATCH[:1]).outcomes == ["stored"]
    server.arm("between commit and answer")
    batch = [event("killed", f"{number}") for number in range(100)]
    with pytest.raises(urllib3.exceptions.ProtocolError):
        server.http.publish(batch)
    server.wait_for_hit("between commit and answer")
    server.start()
    answer = server.http.publish(batch)
    assert answer.outcomes == ["duplicate"] * 100 and answer.seqs == list(range(2, 102))
    assert server.http.stats()["lifetime"] == {"received": 201, "stored": 101, "duplicate": 100, "conflict": 0}
    assert server.terminate() == 0
    verify(server.db_path)


@pytest.mark.parametrize("faults", ["failing", "failing-after-commit"])
def test_failed_commit_is_unknown_and_the_retry_settles_it(launch: Launch, faults: str) -> None:
    """503 for a commit that failed, before it reached the disk or after; nothing is rejected, nothing twice."""
    server = launch(faults=faults)
    server.fault_file.touch()
    batch = [event("unknown", f"{number}") for number in range(10)]
    refused = server.http.publish(batch)
    assert refused.status == 503 and 1 <= int(refused.headers["Retry-After"]) <= 5
    assert "results" not in refused.json()
    assert server.http.get("/events").status == 200, "reads go on"
    server.fault_file.unlink()
    wait_until(lambda: server.http.get("/healthz").status == 200, "healthy by itself")
    answer = server.http.publish(batch)
    assert answer.status == 200
    assert set(answer.outcomes) == {"stored" if faults == "failing" else "duplicate"}
    assert sorted(one["event_id"] for one in server.http.events()) == sorted(one["event_id"] for one in batch)
    assert server.terminate() == 0
    assert any(line["event"] == "commit failed" for line in server.log), "the fault did not happen"
    verify(server.db_path)


def test_accepted_with_202_is_retried_inside_until_it_commits(launch: Launch) -> None:
    server = launch(faults="failing")
    server.fault_file.touch()
    batch = [event("later", f"{number}") for number in range(10)]
    accepted = server.http.publish(batch, prefer="respond-async")
    assert accepted.status == 202
    wait_until(lambda: server.http.get("/healthz").status == 503, "the commit fails")
    assert server.http.events(topic="later") == []
    server.fault_file.unlink()
    wait_until(lambda: len(server.http.events(topic="later")) == 10, "the events are there by themselves")
    assert server.http.publish(batch).outcomes == ["duplicate"] * 10
    assert server.terminate() == 0
    verify(server.db_path)


class _Load:
    """Publishers that send until they are told or refused; what they were told is kept."""

    def __init__(self, http: Client, publishers: int = 8) -> None:
        self._http = http
        self._stop = threading.Event()
        self.acknowledged: dict[str, int] = {}
        self.unanswered: list[str] = []
        self.statuses: list[int] = []
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(publishers)]
        for thread in self._threads:
            thread.start()

    def _send(self, publisher: int) -> None:
        number = 0
        while not self._stop.is_set():
            ids = [f"{publisher}-{number}-{item}" for item in range(20)]
            number += 1
            try:
                answer = self._http.publish([event(f"load/{publisher}", event_id) for event_id in ids])
            except urllib3.exceptions.HTTPError:
                self.unanswered += ids
                return
            self.statuses.append(answer.status)
            if answer.status != 200:
                return
            self.acknowledged |= dict(zip(ids, answer.seqs, strict=True))

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def _stored_ids(http: Client) -> dict[str, int]:
    events = [json.loads(line) for line in http.export().splitlines()]
    ids = {one["event_id"]: one["seq"] for one in events}
    assert len(ids) == len(events)
    return ids


def test_sigterm_during_load_loses_nothing_acknowledged(launch: Launch) -> None:
    server = launch()
    load = _Load(server.http)
    wait_until(lambda: len(load.statuses) >= 50, "load")
    assert server.terminate() == 0, server.log[-20:]
    load.end()
    assert set(load.statuses) <= {200, 503} and len(load.acknowledged) >= 1000
    server.start()
    stored = _stored_ids(server.http)
    assert load.acknowledged.items() <= stored.items()
    assert stored.keys() <= load.acknowledged.keys() | set(load.unanswered)
    assert server.terminate() == 0
    verify(server.db_path)


def test_kill_during_load_loses_nothing_acknowledged(launch: Launch) -> None:
    server = launch()
    load = _Load(server.http)
    wait_until(lambda: len(load.statuses) >= 50, "load")
    server.kill()
    load.end()
    assert load.unanswered, "the kill came when nobody published"
    assert set(load.statuses) == {200} and len(load.acknowledged) >= 1000
    server.start()
    stored = _stored_ids(server.http)
    assert load.acknowledged.items() <= stored.items()
    assert stored.keys() <= load.acknowledged.keys() | set(load.unanswered)
    assert server.terminate() == 0
    verify(server.db_path)


def test_sigterm_answers_everything_that_was_accepted(launch: Launch) -> None:
    """Requests wait for a commit that is held back when the signal comes: each gets its 200, and then exit code 0."""
    server = launch(faults="held")
    server.fault_file.touch()
    publishers, batch = 8, 25
    answers: list[int] = []
    http = server.http

    def send(publisher: int) -> None:
        events = [event(f"held/{publisher}", f"{publisher}-{number}") for number in range(batch)]
        answers.append(http.publish(events).status)

    sending = threading.Thread(target=in_parallel, args=(publishers, send))
    sending.start()
    later = http.publish([event("held/later", "later")], prefer="respond-async")
    assert later.status == 202
    wait_until(lambda: int(http.stats()["queue_depth"]) == publishers * batch + 1, "everything is accepted")
    assert answers == []
    server.signal(signal.SIGTERM)
    server.wait_for_log("stopping")
    server.fault_file.unlink()
    assert server.wait() == 0
    sending.join()
    assert answers == [200] * publishers
    server.start()
    assert len(_stored_ids(server.http)) == publishers * batch + 1


def test_sigterm_commits_what_was_accepted_with_202(launch: Launch) -> None:
    """Nobody waits for an answer any more; what was accepted is committed before the exit all the same."""
    server = launch(faults="held")
    server.fault_file.touch()
    for request in range(20):
        answer = server.http.publish([event("later", f"{request}-{n}") for n in range(50)], prefer="respond-async")
        assert answer.status == 202
    server.signal(signal.SIGTERM)
    server.wait_for_log("stopping")
    assert not server.ends_within(1), "it did not wait for the commit"
    server.fault_file.unlink()
    assert server.wait() == 0
    server.start()
    assert len(_stored_ids(server.http)) == 1000


def test_sigterm_with_a_commit_that_never_ends_exits_within_the_deadline(launch: Launch) -> None:
    """The exit code then tells that something accepted was not committed."""
    server = launch(faults="held", STOP_TIMEOUT_S=1)
    server.fault_file.touch()
    with RawConnection(server.port) as connection:
        body = json.dumps(event("held", "1")).encode()
        connection.send(
            b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        wait_until(lambda: server.http.stats()["queue_depth"] == 1, "it is accepted")
        assert server.terminate() == 1
        assert b" 200 " not in connection.receive_all()


def test_idle_and_half_sent_requests_do_not_keep_the_server_from_stopping(launch: Launch) -> None:
    server = launch(STOP_TIMEOUT_S=1)
    with RawConnection(server.port), RawConnection(server.port) as halfway:
        halfway.send(b"POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n[")
        assert server.http.get("/healthz").status == 200
        assert server.terminate() == 0, server.log


@pytest.mark.parametrize("path", ["store.db", "same-folder/store.db", "link.db"])
def test_second_server_on_the_same_file_refuses(launch: Launch, tmp_path: Path, path: str) -> None:
    server = launch()
    (tmp_path / "same-folder").symlink_to(tmp_path)
    (tmp_path / "link.db").symlink_to(server.db_path)
    second = launch(tmp_path / path, start=False)
    second.launch()
    assert second.wait() == EXIT_CANNOT_START
    message = "".join(line["event"] for line in second.log)
    assert "store.db is in use by another sekali process" in message.replace("\n", ""), message
    assert "Traceback" not in message
    assert server.http.publish(event("alone", "1")).status == 200
    server.kill()
    second.start()
    assert second.http.publish(event("alone", "1")).outcomes == ["duplicate"], "a killed server leaves no lock"
    assert second.terminate() == 0
    assert verify(second.db_path)["events"] == 1


def test_sigterm_and_then_sigkill_loses_nothing_acknowledged(launch: Launch) -> None:
    """Whoever stops servers waits for a while and then kills: here while it still commits what it accepted."""
    server = launch(faults="held")
    load = _Load(server.http)
    wait_until(lambda: len(load.statuses) >= 50, "load")
    server.fault_file.touch()
    wait_until(lambda: server.http.stats()["queue_depth"] >= 20, "a commit is held back")
    server.signal(signal.SIGTERM)
    server.wait_for_log("stopping")
    assert not server.ends_within(0.2), "it did not wait for the commit"
    server.kill()
    assert server.exit_code == -signal.SIGKILL
    load.end()
    assert load.unanswered and len(load.acknowledged) >= 1000
    server.fault_file.unlink()
    server.start()
    stored = _stored_ids(server.http)
    assert load.acknowledged.items() <= stored.items()
    assert stored.keys() <= load.acknowledged.keys() | set(load.unanswered)
    assert server.terminate() == 0
    verify(server.db_path)


def test_taken_port_is_a_clear_message(launch: Launch, tmp_path: Path) -> None:
    server = launch()
    second = launch(tmp_path / "other.db", start=False, PORT=server.port)
    second.launch()
    assert second.wait() not in {0, None}
    message = "".join(line["event"] for line in second.log)
    assert f"port {server.port}" in message.replace("\n", "") and "Traceback" not in message, message


def test_file_of_another_program_is_refused_and_left_alone(launch: Launch, tmp_path: Path) -> None:
    path = tmp_path / "letter.db"
    path.write_bytes(b"Dear Sir or Madam, " * 1000)
    server = launch(path, start=False)
    server.launch()
    assert server.wait() not in {0, None}
    assert "Traceback" not in "".join(line["event"] for line in server.log)
    assert path.read_bytes() == b"Dear Sir or Madam, " * 1000


def _backup(server: ServerProcess, target: Path) -> None:
    result = run_sekali("backup", target, "--db-path", server.db_path, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["bytes"] == target.stat().st_size


def test_backup_while_the_server_writes_is_a_store_of_its_own(launch: Launch, tmp_path: Path) -> None:
    server = launch()
    first = [event("saved", f"{number}") for number in range(5000)]
    assert set(server.http.publish(first).outcomes) == {"stored"}
    old_page = server.http.get("/events", limit=10)
    old_log_id = server.http.stats()["log_id"]
    load = _Load(server.http, publishers=4)
    wait_until(lambda: len(load.statuses) >= 10, "load")
    answered_before = dict(load.acknowledged)
    target = tmp_path / "copy" / "backup.db"
    target.parent.mkdir()
    _backup(server, target)
    answers_then = len(load.statuses)
    wait_until(lambda: len(load.statuses) > answers_then, "the load goes on")
    load.end()
    assert set(load.statuses) == {200}
    assert list(target.parent.iterdir()) == [target], "one file, whole"

    copy = launch(target)
    stored = _stored_ids(copy.http)
    assert answered_before.items() <= stored.items(), "what was acknowledged before the backup is in it"
    assert stored.items() <= _stored_ids(server.http).items()
    assert sorted(stored.values()) == list(range(1, len(stored) + 1)), "the copy is what one moment held"
    new_log_id = copy.http.stats()["log_id"]
    assert new_log_id != old_log_id
    assert server.http.stats()["log_id"] == old_log_id
    assert old_page.next is not None
    gone = copy.http.get(old_page.next)
    assert gone.status == 410 and old_log_id in gone.json()["detail"]
    assert copy.http.get("/events", after=len(_stored_ids(server.http)) + 1).status == 410
    assert server.http.get(old_page.next).status == 200
    assert set(copy.http.publish(first).outcomes) == {"duplicate"}, "dedup goes on"
    assert copy.http.publish(event("saved", "new")).seqs == [len(stored) + 1]
    copy.restart()
    assert copy.http.stats()["log_id"] == new_log_id, "only the first start makes a new one"
    assert server.terminate() == 0 and copy.terminate() == 0
    verify(server.db_path)
    verify(target)


def test_verify_refuses_while_a_server_has_the_store(launch: Launch) -> None:
    server = launch()
    result = run_sekali("verify", "--db-path", server.db_path, "--json")
    assert result.returncode not in {0, 1} and "in use" in result.stderr


def test_verify_finds_a_row_that_was_lost(launch: Launch) -> None:
    """The audit that the other tests rest on can fail."""
    server = launch()
    server.http.publish(BATCH)
    assert server.terminate() == 0
    connection = apsw.Connection(str(server.db_path))
    connection.execute("DELETE FROM events WHERE seq = 2")
    connection.close()
    result = run_sekali("verify", "--db-path", server.db_path, "--json")
    assert result.returncode == 1 and json.loads(result.stdout)["ok"] is False
