"""``sekali tail`` as a process of its own: through restarts, and how it ends."""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from e2e.conftest import Launch
from e2e.server import SEKALI, Client, ServerProcess, clean_environment, event, lasting_port, verify
from sekali.keyfile import KeyFile

BOOTSTRAP = "boot." + "b" * 43


def publish(http: Client, topic: str, *ids: object) -> list[int]:
    """Publish events in one request and return their seqs."""
    answer = http.publish([event(topic, str(one)) for one in ids])
    assert answer.outcomes == ["stored"] * len(ids), answer
    return [int(seq) for seq in answer.seqs]


@contextmanager
def tail(server: ServerProcess, *options: str, **settings: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [SEKALI, "tail", "--url", f"http://127.0.0.1:{server.port}", "--json", *options],
        env=clean_environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_tail_goes_on_through_restarts_without_a_gap_or_a_repeat(launch: Launch, end: str) -> None:
    server = launch(PORT=lasting_port())
    seqs = publish(server.http, "t/0", *range(100))
    with tail(server, "--after", "earliest", "--topic", "t/*") as process:
        assert process.stdout is not None and process.stderr is not None
        shown: list[int] = []
        for number in range(3):
            while len(shown) < len(seqs):
                shown.append(json.loads(process.stdout.readline())["seq"])
            if end == "kill":
                server.kill()
            else:
                assert server.terminate() == 0
            server.start()
            publish(server.http, "elsewhere", number)
            seqs += publish(server.http, "t/1", *range(100 * number, 100 * number + 100))
        while len(shown) < len(seqs):
            shown.append(json.loads(process.stdout.readline())["seq"])
        assert shown == seqs
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stdout.read() == ""
        assert "waiting for the server" in process.stderr.read()
    assert server.terminate() == 0
    verify(server.db_path)


def test_tail_ends_where_the_log_is_another_one(launch: Launch) -> None:
    server = launch(PORT=lasting_port())
    publish(server.http, "t", 1)
    with tail(server, "--after", "earliest") as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["seq"] == 1
        assert server.terminate() == 0
        assert "waiting for the server" in process.stderr.readline()
        for path in server.db_path.parent.glob(server.db_path.name + "*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        server.start()
        publish(server.http, "other", 1)
        assert process.wait(30) == 1
        assert process.stdout.read() == "", "of another log nothing is shown"
        assert "start again" in (told := process.stderr.read()) and "--after earliest" in told


def test_tail_ends_when_its_key_does(launch: Launch) -> None:
    server = launch(start=False, BOOTSTRAP_KEY=BOOTSTRAP)
    server.db_path.parent.mkdir(exist_ok=True)
    _, key = KeyFile(server.db_path).create("reader", ["read:t"], datetime.now(UTC))
    server.start()
    publish(Client(server.url, key=BOOTSTRAP), "t", 1)
    with tail(server, "--after", "earliest", API_KEY=key) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["seq"] == 1
        KeyFile(server.db_path).revoke(key.partition(".")[0])
        assert process.wait(30) == 1
        assert "SEKALI_API_KEY" in process.stderr.read()


def test_tail_ends_when_nobody_reads_it(launch: Launch) -> None:
    server = launch()
    publish(server.http, "t", 1)
    with tail(server, "--after", "earliest") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        publish(server.http, "t", 2)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
