import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fake_server import USUAL, FakeServer, fake_server, problem
from sekali.cli import app, inputs
from sekali.cli.publishing import Stop, publish_all
from sekali.client.http import Server
from sekali.client.lines import Item


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


def _publish(*arguments: str | Path, url: str) -> Result:
    return CliRunner().invoke(app, ["publish", "--url", url, *map(str, arguments)], terminal_width=200)


def _figures(result: Result, exit_code: int = 0) -> dict[str, Any]:
    assert result.exit_code == exit_code, result.output
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


def test_the_load_publisher_counts_and_with_a_seed_repeats(fake: FakeServer) -> None:
    load = ("--count", "300", "--dup-ratio", "0.2", "--batch-size", "50", "--seed", "1", "--json")
    first, second = (_figures(_publish(*load, url=fake.url)) for _ in "12")
    counts = {"sent": 300, "stored": 240, "duplicate": 60, "conflict": 0, "invalid": 0, "retries": 0}
    assert {name: first[name] for name in counts} == counts
    assert (second["stored"], second["duplicate"]) == (0, 300)
    assert first["latency_ms"]["p50"] <= first["latency_ms"]["p99"]
    assert len(fake.requests) == 12


def test_the_environment_configures_it_and_flags_win(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBLISH_COUNT", "7")
    monkeypatch.setenv("DUP_RATIO", "0")
    monkeypatch.setenv("AGGREGATOR_URL", fake.url)
    monkeypatch.setenv("SEKALI_TOPICS", "a/b")
    result = CliRunner().invoke(app, ["publish", "--count", "5", "--json"])
    assert _figures(result)["stored"] == 5
    assert {topic for topic, _ in fake.events} == {"a/b"}


def test_the_report_for_people(fake: FakeServer) -> None:
    result = _publish("--count", "1500", "--connections", "4", url=fake.url)
    assert result.exit_code == 0
    cells = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if line.strip())
    assert cells["sent"].strip() == "1,500"
    assert cells["stored"].strip() == "1,200"
    assert "events/s" in cells["rate"]


def test_a_file_twice_and_grown_and_rotated(fake: FakeServer, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    publish = ("--lines", "--topic", "app/log", "--file", log, "--json", "--batch-size", "2")
    log.write_bytes(b"one\r\ntwo\r\n\r\nthree")
    assert _figures(_publish(*publish, url=fake.url))["stored"] == 3
    assert _figures(_publish(*publish, url=fake.url))["duplicate"] == 3
    log.write_bytes(b"one\r\ntwo\r\n\r\nthree\r\nfour\r\n")
    grown = _figures(_publish(*publish, url=fake.url))
    assert (grown["stored"], grown["duplicate"]) == (1, 3)
    log.write_bytes(b"another\r\ntwo\r\n")
    assert _figures(_publish(*publish, url=fake.url))["stored"] == 2
    assert [event["payload"]["line"] for event in fake.events.values()] == [
        "one",
        "two",
        "three",
        "four",
        "another",
        "two",
    ]
    assert {event["source"] for event in fake.events.values()} == {"app.log"}


def test_several_files_a_source_and_a_time_pattern(fake: FakeServer, tmp_path: Path) -> None:
    first, second = tmp_path / "a.log", tmp_path / "b.log"
    first.write_text("2026-01-02 03:04:05 one\n")
    second.write_text("2026-01-02 03:04:06 two\n")
    options = ("--source", "api", "--time-pattern", "%Y-%m-%d %H:%M:%S")
    result = _publish("--lines", "--topic", "t", "--file", first, "--file", second, *options, url=fake.url)
    assert result.exit_code == 0
    assert [(event["source"], event["timestamp"]) for event in fake.events.values()] == [
        ("api", "2026-01-02T03:04:05Z"),
        ("api", "2026-01-02T03:04:06Z"),
    ]


def test_a_file_name_that_is_not_utf_8(fake: FakeServer, tmp_path: Path) -> None:
    log = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.log"))
    log.write_text("one\n")
    assert _publish("--lines", "--topic", "t", "--file", log, url=fake.url).exit_code == 0
    assert [event["source"] for event in fake.events.values()] == ["\\xff.log"]


def test_standard_input_is_new_each_time(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ((), ("--file", "-")):
        reading, writing = os.pipe()
        monkeypatch.setattr(inputs, "STDIN_FD", reading)
        os.write(writing, b"one\none\n")
        os.close(writing)
        assert _figures(_publish("--lines", "--topic", "t", *file, "--json", url=fake.url))["stored"] == 2
        os.close(reading)
    assert len(fake.events) == 4
    assert {event["source"] for event in fake.events.values()} == {"stdin"}


def test_lines_of_a_slow_pipe_are_published_while_it_is_open(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "FLUSH_AFTER_S", 0.001)
    reading, writing = os.pipe()
    os.write(writing, b"one\n")
    try:
        items = inputs.input_items(
            [inputs.Input(Path(f"/dev/fd/{reading}"), False, "t", "s")],
            lambda place, fault: None,
            lambda amount: None,
            lambda: False,
        )
        first = next(items)
        assert first is not None
        assert next(items) is None  # nothing came for a while, and the pipe is still open
    finally:
        items.close()  # type: ignore[attr-defined]
        os.close(writing)
        os.close(reading)


def test_ndjson_reports_what_is_invalid_and_goes_on(fake: FakeServer, tmp_path: Path) -> None:
    export = tmp_path / "export.ndjson"
    event = {"topic": "t", "event_id": "1", "timestamp": "2026-01-01T00:00:00Z", "payload": 1}
    lines = [json.dumps(event), "not json", json.dumps(event | {"payload": 2}), json.dumps(event | {"event_id": "2"})]
    export.write_text("\n".join(lines))
    result = _publish("--ndjson", "--file", export, "--json", url=fake.url)
    figures = _figures(result, exit_code=1)
    assert [figures[name] for name in ("stored", "conflict", "invalid")] == [2, 1, 1]
    errors = " ".join(result.stderr.split())
    assert "export.ndjson:2: invalid: line: not JSON" in errors
    assert "export.ndjson:3: conflict: other content than seq 1" in errors


def test_faults_do_not_flood_the_terminal(fake: FakeServer, tmp_path: Path) -> None:
    bad = tmp_path / "bad.ndjson"
    bad.write_text("no\n" * 100)
    result = _publish("--ndjson", "--file", bad, "--json", url=fake.url)
    assert _figures(result, exit_code=1)["invalid"] == 100
    assert result.stderr.count("not JSON") == 20
    assert "only counted" in result.stderr


def test_a_rate_spreads_the_requests_at_most_a_second_of_lines_each(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits_s: list[float] = []
    monkeypatch.setattr(Stop, "sleep", lambda self, seconds: waits_s.append(seconds))
    log = tmp_path / "app.log"
    log.write_text("".join(f"{number}\n" for number in range(1500)))
    result = _publish("--lines", "--topic", "t", "--file", log, "--rate", "1000", "--batch-size", "5000", url=fake.url)
    assert result.exit_code == 0
    assert [len(request.lines) for request in fake.requests] == [1000, 500]
    assert waits_s == [pytest.approx(1, abs=0.9)]


def test_giving_up_reports_what_was_done(fake: FakeServer) -> None:
    fake.script.extend([USUAL, problem(503, "No room", "the queue is full", Retry_After="5")])
    result = _publish(
        "--count", "100", "--batch-size", "50", "--connections", "1", "--give-up-after", "1", "--json", url=fake.url
    )
    assert _figures(result, exit_code=3)["sent"] == 50
    assert "No room: the queue is full" in result.stderr
    assert "What was answered is stored" in " ".join(result.stderr.split())


def test_no_server_is_exit_code_3() -> None:
    with fake_server() as gone:
        pass
    result = _publish("--count", "1", "--give-up-after", "0", url=gone.url)
    assert result.exit_code == 3
    assert "Connection refused" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--lines"], "--topic"),
        (["--lines", "--topic", "a//b"], "not a topic"),
        (["--lines", "--ndjson"], "either"),
        (["--lines", "--topic", "t", "--count", "5"], "--count"),
        (["--ndjson", "--topic", "t"], "--topic"),
        (["--ndjson", "--connections", "2"], "--connections"),
        (["--file", __file__], "--lines or --ndjson"),
        (["--time-pattern", "%Y"], "--lines or --ndjson"),
        (["--lines", "--topic", "t", "--time-pattern", "%Q"], "%Q is not known"),
        (["--lines", "--topic", "t", "--file", "/nowhere"], "does not exist"),
        (["--topics", " , "], "--topics is empty"),
        (["--topics", "a,b c"], "not a topic"),
        (["--dup-ratio", "1"], "DUP_RATIO"),
        (["--rate", "0"], "--rate"),
        (["--url", "nowhere"], "not the URL of a server"),
    ],
)
def test_usage_errors_are_exit_code_2(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["publish", *arguments], terminal_width=300)
    assert result.exit_code == 2, result.output
    assert says in " ".join(result.stderr.replace("│", " ").split())


def test_an_interrupt_sends_what_was_read_and_reports(fake: FakeServer) -> None:
    stop = Stop()
    settled: list[str] = []
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    def batches() -> Iterator[list[Item]]:
        yield [Item("x:1", b'{"topic":"t","event_id":"1","payload":1}')]
        signal.pthread_kill(main_thread, signal.SIGINT)
        stop.sleep(30)  # as on a pipe through which nothing comes; the stop ends it
        yield [Item("x:2", b'{"topic":"t","event_id":"2","payload":1}')]
        pytest.fail("went on after the interrupt")

    with Server(fake.url) as server, pytest.raises(KeyboardInterrupt):
        publish_all(
            server,
            batches(),
            connections=1,
            stop=stop,
            settle=lambda batch, answer: settled.append(batch[0].place),
        )
    assert settled == ["x:1", "x:2"]


def test_ctrl_c_is_exit_code_130_with_the_report(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sekali.cli.publish.publish_all", interrupted)
    assert _figures(_publish("--json", url=fake.url), exit_code=130)["sent"] == 0


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "app.log"
    path.write_text("one\n")

    def fail(fd: int, count: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("sekali.client.lines.os.read", fail)
    result = _publish("--lines", "--topic", "a", "--file", path, url=fake.url)
    assert result.exit_code == 2
    message = result.stderr.replace("\n", "")
    assert str(path) in message and "Input/output error" in message
