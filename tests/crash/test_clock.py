"""The clock jumps, by 30 days in either direction: neither dedup nor order depends on it."""

import json
import shlex
import subprocess
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from batches import DUPLICATE, STORED, publish, read_all
from crash.tools import require
from e2e.conftest import Launch
from e2e.server import Client, event, verify
from sekali.ports import Query, StoredEvent
from sekali.stores.sqlite import SqliteStore
from sekali.stores.sqlite_audit import audit
from sekali.testing import FakeClock

DAY_S = 24 * 60 * 60
RUN_KEYS = 4  # so that the jumps lie between runs of the dedup index, which remember when they end, and in them


@pytest.mark.parametrize("restart", [False, True], ids=["while it runs", "between two runs"])
@pytest.mark.parametrize("jumps_days", [[30, -30, -30, 30], [-30, 30, 30, -30]], ids=["forward first", "back first"])
def test_a_store_whose_clock_jumps(tmp_path: Path, jumps_days: list[int], restart: bool) -> None:
    clock = FakeClock()
    path = tmp_path / "store.db"

    def open_store() -> SqliteStore:
        store = SqliteStore(path, clock, topics_max=10, run_keys=RUN_KEYS)
        store.recover()
        return store

    store = open_store()
    sent: list[tuple[str, str]] = []
    for jump_days in [0, *jumps_days]:
        clock.advance(jump_days * DAY_S)
        if restart:
            store.close()
            store = open_store()
        known = [(DUPLICATE, seq) for seq in range(1, len(sent) + 1)]
        new = [("jump", f"{len(sent) + number}") for number in range(RUN_KEYS + 1)]
        stored = [(STORED, len(sent) + number) for number in range(1, len(new) + 1)]
        assert publish(store, *sent, *new) == known + stored
        sent += new
        clock.advance(1)
        assert publish(store, *sent) == [(DUPLICATE, seq) for seq in range(1, len(sent) + 1)]
    events = [one for one in read_all(store, Query()) if isinstance(one, StoredEvent)]
    assert [(one.seq, one.topic, one.event_id) for one in events] == [(n, *one) for n, one in enumerate(sent, 1)]
    times_ns = [one.processed_at_ns for one in events]
    assert times_ns == sorted(times_ns) and times_ns[-1] - times_ns[0] >= 30 * DAY_S * 10**9
    store.close()
    assert audit(path, lambda done, total: None).ok


class _FalseClock:
    """The wall clock of a server, from libfaketime, and by how much it is wrong."""

    def __init__(self, file: Path) -> None:
        self._file = file
        program = shlex.quote(require("faketime", "faketime"))
        preload = subprocess.run(
            f"{program} -m -f +0 sh -c 'echo $LD_PRELOAD'", shell=True, check=True, capture_output=True, text=True
        )
        self.environment = {
            "LD_PRELOAD": preload.stdout.strip(),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.set(0)

    def set(self, days: int) -> None:
        self._file.write_text(f"{days:+d}d\n")


def _published_at(http: Client, event_id: str) -> datetime:
    """Publish a new event, and return when the server says that it was stored."""
    assert http.publish(event("now", event_id)).outcomes == ["stored"]
    [found] = http.events(topic="now", event_id=event_id)
    return datetime.fromisoformat(found["processed_at"])


@pytest.mark.parametrize("restart", [False, True], ids=["while it runs", "between two runs"])
def test_a_server_whose_clock_jumps(launch: Launch, tmp_path: Path, restart: bool) -> None:
    clock = _FalseClock(tmp_path / "clock")
    server = launch(environment=clock.environment)
    batch = [event("jump", f"{number}") for number in range(100)]
    assert set(server.http.publish(batch).outcomes) == {"stored"}
    start = _published_at(server.http, "start")
    for number, days in enumerate([30, -30, 0]):
        clock.set(days)
        if restart:
            server.restart()
        answer = server.http.publish(batch)
        assert answer.outcomes == ["duplicate"] * 100 and answer.seqs == list(range(1, 101))
        # Forward it follows the clock; backward it waits for it.
        ahead = _published_at(server.http, f"{number}") - start
        assert timedelta(days=30) <= ahead < timedelta(days=31), "the clock did not jump"
        assert server.http.get("/healthz").status == 200
    events: list[dict[str, Any]] = [json.loads(line) for line in server.http.export().splitlines()]
    assert [one["seq"] for one in events] == list(range(1, 105))
    times = [datetime.fromisoformat(one["processed_at"]) for one in events]
    assert all(earlier <= later for earlier, later in pairwise(times))
    assert server.http.stats()["uptime_seconds"] < DAY_S, "time spans come from the wall clock"
    assert server.terminate() == 0
    assert verify(server.db_path)["events"] == 104
