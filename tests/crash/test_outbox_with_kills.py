"""Programs with an outbox are killed at random moments, two at a time on one file. What they had is stored once.

``SEKALI_TEST_OUTBOX_KILLS=500 pytest tests/crash/test_outbox_with_kills.py`` is the long form.
"""

import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from crash import outbox_programs
from crash.outbox_programs import TOPIC, open_shop
from e2e.conftest import Launch
from e2e.server import DEADLINE_S, ServerProcess, clean_environment, lasting_port, verify
from sekali.client import Outbox, OutboxFile, Publisher, Relay

KILLS = int(os.environ.get("SEKALI_TEST_OUTBOX_KILLS", "24"))
LINES_MAX = 20  # a program is killed somewhere in its first so many events


class Program:
    """One of ``outbox_programs``, as a process of its own. ``keys`` are the lines that it has written."""

    def __init__(self, what: str, url: str, path: Path, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, outbox_programs.__file__, what, url, str(path), name],
            env=clean_environment() | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
        )
        self._text = b""

    def read_until(self, lines: int) -> None:
        """Read until it has written so many lines."""
        assert self._process.stdout is not None
        while self._text.count(b"\n") < lines:
            assert select.select([self._process.stdout], [], [], DEADLINE_S)[0], "it is stuck"
            chunk = os.read(self._process.stdout.fileno(), 65536)
            assert chunk, f"it ended by itself with {self._process.wait()}"
            self._text += chunk

    def kill(self) -> None:
        """End it as a power cut would end a process, and read what it had written by then."""
        self._process.kill()
        assert self._process.stdout is not None
        self._text += self._process.stdout.read()
        self._process.stdout.close()
        assert self._process.wait(DEADLINE_S) == -signal.SIGKILL, "it ended by itself"

    @property
    def keys(self) -> list[str]:
        return self._text[: self._text.rfind(b"\n") + 1].decode().splitlines()


def _run_and_kill(
    what: str, kills: int, server: ServerProcess, path: Path, chance: random.Random
) -> tuple[list[str], list[int]]:
    """Keep two programs at work, kill one of them again and again, and the server now and then.

    Returns:
        The keys that they wrote, and how much waited in the outbox after each kill.

    """
    running = [Program(what, server.url, path, f"first-{number}") for number in range(2)]
    keys: list[str] = []
    waiting: list[int] = []
    server_kills = set(chance.sample(range(kills), max(2, kills // 10)))
    try:
        for number in range(kills):
            place = chance.randrange(2)
            running[place].read_until(chance.choice([0, 1, chance.randrange(LINES_MAX)]))
            if number in server_kills:
                server.kill()
            running[place].kill()
            keys += running[place].keys
            with closing(sqlite3.connect(path, timeout=DEADLINE_S)) as connection:
                waiting.append(Outbox().pending(connection))
            running[place] = Program(what, server.url, path, f"life-{number}")
            if number in server_kills:
                server.start()
    finally:
        for program in running:
            program.kill()
            keys += program.keys
    return keys, waiting


def _payloads(server: ServerProcess) -> list[str]:
    pages = server.http.pages("/events", topic=TOPIC, limit=10_000)
    return [event["payload"] for page in pages for event in page]


def _server(launch: Launch) -> ServerProcess:
    return launch(PORT=lasting_port())


def _assert_sound(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert Outbox().pending(connection) == 0 and Outbox().failed(connection) == []


def test_what_publish_returned_for_is_stored_once(launch: Launch, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    server, path = _server(launch), tmp_path / "outbox.db"
    OutboxFile(path).prepare()
    published, waiting = _run_and_kill("publish", KILLS, server, path, random.Random(seed))
    with Publisher(server.url, outbox=path) as publisher:
        assert publisher.flush(DEADLINE_S)
    stored = _payloads(server)
    assert len(set(published)) == len(published) > KILLS
    assert sorted(set(published) - set(stored)) == [], f"lost; seed {seed}"
    assert len(stored) == len(set(stored)), f"doubled; seed {seed}"
    assert len(set(stored) - set(published)) <= KILLS + 2, "more than what was under way at each kill"
    assert sum(map(bool, waiting)) >= KILLS // 4, f"the kills met an empty outbox: {waiting}"
    _assert_sound(path)
    assert server.terminate() == 0
    assert verify(server.db_path)["events"] == len(stored)


def test_order_and_event_exist_together_or_not_at_all(launch: Launch, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    server, path = _server(launch), tmp_path / "shop.db"
    with closing(open_shop(str(path))) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE orders (key text)")
        Outbox().create_table(connection)
    kills = KILLS // 2  # they take longer: four connections write to one file
    written, waiting = _run_and_kill("order", kills, server, path, random.Random(seed))
    with Relay(server.url, Outbox(), lambda: open_shop(str(path))) as relay:
        assert relay.flush(DEADLINE_S)
    with closing(open_shop(str(path))) as connection:
        orders: list[Any] = [key for (key,) in connection.execute("SELECT key FROM orders")]
    assert len(orders) > kills and not any(key.endswith("5") for key in orders)
    assert {key for key in written if not key.endswith("5")} <= set(orders)
    assert sorted(_payloads(server)) == sorted(orders), f"seed {seed}"
    assert sum(map(bool, waiting)) >= kills // 4, f"the kills met an empty outbox: {waiting}"
    _assert_sound(path)
