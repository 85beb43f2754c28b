"""Real logs: published twice, and published while the server is killed again and again. Each line is stored once."""

import json
import random
import signal
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import urllib3

from e2e.conftest import Launch
from e2e.server import (
    DEADLINE_S,
    SEKALI,
    Client,
    ServerProcess,
    clean_environment,
    in_parallel,
    lasting_port,
    verify,
    wait_until,
)
from indexes import run_ranges

LOGS = Path(__file__).parents[3] / "shared" / "data" / "logs"
NAMES = ["Apache.log", "HDFS.log", "OpenSSH.log", "Zookeeper.log"]
LINES = 2_000
KILLS = 10
BATCH_SIZE, RATE_PER_S = 5, 400
RUN_KEYS = 16  # as in e2e/faults.py

pytestmark = pytest.mark.skipif(
    not LOGS.is_dir(), reason=f"NO LOGS AT {LOGS}: publishing real logs, with and without crashes, was NOT TESTED"
)


class Publisher:
    """``sekali publish --lines`` of one file, as a process of its own."""

    def __init__(self, url: str, name: str, *options: object) -> None:
        command = [SEKALI, "publish", "--lines", "--file", LOGS / name, "--topic", _topic(name), "--url", url, "--json"]
        self._process = subprocess.Popen(
            [*map(str, command), *map(str, options)],
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def report(self) -> dict[str, Any]:
        """Wait for its end, which must be a good one, and return what it reports."""
        out, error = self._process.communicate(timeout=3 * DEADLINE_S)
        assert self._process.returncode == 0, out + error
        report: dict[str, Any] = json.loads(out)
        return report

    def close(self) -> None:
        if self.running:
            self._process.kill()
        self._process.communicate()


def _topic(name: str) -> str:
    return f"logs/{name.removesuffix('.log')}"


def _counts(report: dict[str, Any]) -> dict[str, int]:
    return {name: report[name] for name in ("sent", "stored", "duplicate", "conflict", "invalid")}


def _assert_stored_once_in_order(http: Client, name: str) -> None:
    events = [json.loads(line) for line in http.export(topic=_topic(name)).splitlines()]
    lines = (LOGS / name).read_bytes().split(b"\n")
    expected = [line.removesuffix(b"\r").decode(errors="backslashreplace") for line in lines if line.strip(b"\r")]
    assert len(expected) == LINES
    assert [one["payload"] for one in events] == [{"line": line} for line in expected]
    assert len({one["event_id"] for one in events}) == LINES
    assert {one["source"] for one in events} == {name}


def test_each_log_published_twice_is_stored_once(launch: Launch) -> None:
    server = launch()

    def publish_twice(number: int) -> None:
        for stored, duplicate in ((LINES, 0), (0, LINES)):
            publisher = Publisher(server.url, NAMES[number])
            try:
                expected = {"sent": LINES, "stored": stored, "duplicate": duplicate, "conflict": 0, "invalid": 0}
                assert _counts(publisher.report()) == expected, NAMES[number]
            finally:
                publisher.close()

    in_parallel(len(NAMES), publish_twice)
    for name in NAMES:
        _assert_stored_once_in_order(server.http, name)
    total = len(NAMES) * LINES
    assert server.http.stats()["lifetime"] == {
        "received": 2 * total,
        "stored": total,
        "duplicate": total,
        "conflict": 0,
    }
    assert server.terminate() == 0
    assert verify(server.db_path)["events"] == total


def test_each_log_is_stored_once_while_the_server_is_killed_ten_times(launch: Launch, tmp_path: Path) -> None:
    """Each file has a server of its own, killed ten times inside the run of its publisher.

    Its index makes runs of a few events, so that the kills meet tables being written and runs being merged.
    """
    seed = random.randrange(2**32)
    servers = [launch(tmp_path / f"{name}.db", faults="small-runs", PORT=lasting_port()) for name in NAMES]

    def publish_under_fire(number: int) -> None:
        try:
            _publish_under_fire(servers[number], NAMES[number], random.Random(seed + number))
        except BaseException as error:
            server = servers[number]
            error.add_note(f"{NAMES[number]}, seed {seed}, running: {server.running}, its log: {server.log[-5:]}")
            raise

    in_parallel(len(NAMES), publish_under_fire)


def _publish_under_fire(server: ServerProcess, name: str, chance: random.Random) -> None:
    publisher = Publisher(server.url, name, "--batch-size", BATCH_SIZE, "--rate", RATE_PER_S)
    try:
        stored_at_kills = [0]
        lengths_at_kills: list[list[int]] = []
        for _ in range(KILLS):
            goal = stored_at_kills[-1] + chance.randrange(1, 100)

            def reached(goal: int = goal) -> bool:
                assert publisher.running, f"{name} ended before it was killed {KILLS} times: {publisher.report()}"
                return _stored(server) >= goal

            wait_until(reached, f"{name} goes on")
            stored_at_kills.append(_stored(server))
            server.kill()
            assert server.exit_code == -signal.SIGKILL
            lengths_at_kills.append(_lengths_of_runs(server))
            assert publisher.running, "the kill came after the publisher's end"
            server.start()
        assert stored_at_kills[-1] < LINES and all(earlier < later for earlier, later in pairwise(stored_at_kills))
        assert sum(map(bool, lengths_at_kills)) > KILLS / 2, "no table was written between the kills"
        assert any(max(lengths, default=0) > 2 * RUN_KEYS for lengths in lengths_at_kills), "no runs were merged"
        report = publisher.report()
    finally:
        publisher.close()
    assert report["sent"] == LINES and report["conflict"] == report["invalid"] == 0
    assert report["stored"] + report["duplicate"] == LINES
    assert report["retries"] >= KILLS, "the publisher did not notice each kill"
    lifetime = server.http.stats()["lifetime"]
    assert lifetime["stored"] == LINES and lifetime["conflict"] == 0
    assert lifetime["received"] == lifetime["stored"] + lifetime["duplicate"]
    assert lifetime["duplicate"] >= report["duplicate"]
    _assert_stored_once_in_order(server.http, name)

    again = Publisher(server.url, name)
    try:
        assert _counts(again.report()) == {"sent": LINES, "stored": 0, "duplicate": LINES, "conflict": 0, "invalid": 0}
    finally:
        again.close()
    assert server.terminate() == 0
    assert verify(server.db_path)["events"] == LINES


def _stored(server: ServerProcess) -> int:
    try:
        stats = server.http.stats()
    except urllib3.exceptions.ProtocolError:
        # After a pause of the whole machine the server ends the idle connection as the request comes.
        assert server.running, f"it ended by itself: {server.log[-20:]}"
        stats = server.http.stats()
    return int(stats["lifetime"]["stored"])


def _lengths_of_runs(server: ServerProcess) -> list[int]:
    """Return how many keys each run of the dedup index has."""
    folder = server.db_path.with_name(server.db_path.name + ".index")
    return [last - first + 1 for first, last in run_ranges(path.name for path in folder.iterdir())]
