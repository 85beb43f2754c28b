"""The dedup index of a real server: deleted, damaged under its hands, and made again while reading goes on."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import Launch
from e2e.server import Client, ServerProcess, event, verify, wait_until
from indexes import run_ranges

EVENTS = [event("rebuilt", f"id-{number}", payload={"n": number}) for number in range(1000)]
SEQS = list(range(1, len(EVENTS) + 1))


def folder(server: ServerProcess) -> Path:
    return server.db_path.with_name(server.db_path.name + ".index")


@pytest.fixture
def rebuilding(launch: Launch) -> ServerProcess:
    """A server whose index was deleted, and is held while it makes it anew."""
    server = launch(faults="held-rebuild")
    for start in range(0, len(EVENTS), 100):
        assert set(server.http.publish(EVENTS[start : start + 100]).outcomes) == {"stored"}
    assert server.terminate() == 0
    assert run_ranges(path.name for path in folder(server).iterdir())
    shutil.rmtree(folder(server))
    server.fault_file.touch()
    server.launch()
    server.http = Client(server.wait_for_log("listening")["url"])
    wait_until(lambda: "being made" in _reason(server), "it makes the index")
    return server


def _reason(server: ServerProcess) -> str:
    response = server.http.get("/healthz")
    assert response.status == 503 and response.json()["ok"] is False
    return str(response.json()["detail"])


def test_while_the_index_is_made_publishing_is_refused_and_reading_goes_on(rebuilding: ServerProcess) -> None:
    server, http = rebuilding, rebuilding.http
    assert _reason(server) == "the dedup index is being made from the log: 16 of 1,000 events"
    for refused in (http.publish(EVENTS[:1]), http.publish(EVENTS[:1], prefer="respond-async"), _exists(http)):
        assert refused.status == 503 and 1 <= int(refused.headers["Retry-After"]) <= 5
        assert refused.json()["detail"]
    assert [one["seq"] for one in http.events(topic="rebuilt")] == SEQS
    for number in (0, 500, 999):
        found = http.events(topic="rebuilt", event_id=f"id-{number}")
        assert [(one["seq"], one["payload"]) for one in found] == [(number + 1, {"n": number})]
    assert http.events(topic="rebuilt", event_id="unknown") == []
    assert len(http.export().splitlines()) == len(EVENTS)
    assert http.stats()["lifetime"]["stored"] == http.topic("rebuilt")["stored"] == len(EVENTS)

    server.fault_file.unlink()
    server.wait_for_log("ready")
    progress = [(line["done"], line["total"]) for line in server.log if "making the dedup index" in line["event"]]
    assert progress == sorted(progress) and progress[0][0] < progress[-1][0] == progress[-1][1] == len(EVENTS)
    assert http.get("/healthz").status == 200
    answer = http.publish([*EVENTS, event("rebuilt", "new"), event("rebuilt", "id-7", payload="other")])
    assert answer.outcomes == [*["duplicate"] * len(EVENTS), "stored", "conflict"]
    assert answer.seqs == [*SEQS, len(EVENTS) + 1, 8]
    assert _exists(http).json() == {"missing": ["unknown"]}
    assert server.terminate() == 0
    assert verify(server.db_path)["events"] == len(EVENTS) + 1


def _exists(http: Client) -> Any:
    body = json.dumps({"topic": "rebuilt", "event_ids": ["id-7", "unknown"]}).encode()
    return http.request("POST", "/exists", body=body, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_ends_meanwhile_goes_on_where_it_was(rebuilding: ServerProcess, end: signal.Signals) -> None:
    server = rebuilding
    server.signal(end)
    assert server.wait() == (0 if end is signal.SIGTERM else -end)
    made = run_ranges(path.name for path in folder(server).iterdir())[-1][1]
    assert 0 < made < len(EVENTS) / 2
    server.fault_file.unlink()
    server.start()
    progress = [(line["done"], line["total"]) for line in server.log if "making the dedup index" in line["event"]]
    assert progress[-1] == (len(EVENTS) - made, len(EVENTS) - made)
    answer = server.http.publish(EVENTS)
    assert answer.outcomes == ["duplicate"] * len(EVENTS) and answer.seqs == SEQS


def test_runs_that_are_damaged_under_its_hands_are_made_again(launch: Launch) -> None:
    server = launch(faults="small-runs")
    for start in range(0, len(EVENTS), 10):  # enough commits to make runs, and merges of runs
        assert set(server.http.publish(EVENTS[start : start + 10]).outcomes) == {"stored"}
    damaged = 0
    for path in folder(server).glob("*.run"):
        with path.open("r+b") as file:
            first = file.read(1)
            file.seek(0)
            file.write(bytes([first[0] ^ 1]))
            damaged += 1
    assert damaged
    refused = 0

    def accepted() -> bool:
        nonlocal refused
        answer = server.http.publish(EVENTS)
        if answer.status == 200:
            assert answer.outcomes == ["duplicate"] * len(EVENTS) and answer.seqs == SEQS
        else:
            assert answer.status == 503
            refused += 1
            found = server.http.events(topic="rebuilt", event_id="id-7")
            assert [one["seq"] for one in found] == [8]
        return answer.status == 200

    wait_until(accepted, "it makes them again by itself")
    assert refused and any("is damaged" in str(line.get("reason")) for line in server.log), "nobody noticed"
    assert server.terminate() == 0
    verify(server.db_path)
