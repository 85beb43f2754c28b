import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fake_server import HANG_UP, FakeServer, Reply, fake_server, json_reply, problem
from sekali.cli import app, read
from sekali.client.follow import follow

ESCAPE = "\x1b]0;owned\x07\x9b31m\u202e"
ESCAPED = "\\u001b]0;owned\\u0007\\u009b31m\\u202e"
EVENT = {
    "seq": 7,
    "topic": "app/prod/api",
    "event_id": "id-7",
    "timestamp": "2026-11-23T10:00:00Z",
    "source": "api",
    "payload": {"level": "INFO"},
}
STATS = json_reply(
    {
        "received": 1200345,
        "duplicate_rate": 0.25,
        "topics": [f"t{number}" for number in range(12)],
        "latency_ms": {"p50": 1.5, "p99": None},
        "log_id": "log-1",
    }
)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


def _run(fake: FakeServer, *arguments: str) -> Result:
    command, *options = arguments
    return CliRunner().invoke(app, [command, "--url", fake.url, *options], terminal_width=200)


def _event(seq: int, **fields: Any) -> dict[str, Any]:
    return {**EVENT, "seq": seq, "event_id": f"id-{seq}", **fields}


def _page(*events: dict[str, Any], more: bool = False) -> Reply:
    link: dict[str, Any] = {"Link": '</events?cursor=c>; rel="next"'} if more else {}
    return json_reply(list(events), **link)


def test_events_follows_pages_up_to_the_limit(fake: FakeServer) -> None:
    fake.script.extend([_page(_event(1), _event(2), more=True), _page(more=True), _page(_event(3), _event(4))])
    filters = ("--topic", "app/**", "--source", "s", "--since", "2026-01-01T00:00:00Z", "--after", "0")
    result = _run(fake, "events", *filters, "--order", "-seq", "--limit", "3", "--json")
    assert [json.loads(line)["seq"] for line in result.stdout.splitlines()] == [1, 2, 3]
    assert fake.requests[0].params == {
        "topic": "app/**",
        "source": "s",
        "since": "2026-01-01T00:00:00Z",
        "after": "0",
        "order": "-seq",
        "limit": "3",
    }
    assert [request.params for request in fake.requests[1:]] == [{"cursor": "c"}] * 2


def test_events_stops_reading_pages_at_the_limit(fake: FakeServer) -> None:
    fake.script.append(_page(_event(1), _event(2), more=True))
    assert _run(fake, "events", "--limit", "2", "--json").exit_code == 0
    assert len(fake.requests) == 1


def test_events_as_a_table(fake: FakeServer) -> None:
    fake.script.append(
        _page(
            _event(1, duplicates=3), _event(2, payload={"line": "[bold]GET /[/bold]"}), {"seq": 3, "error": "damaged"}
        )
    )
    heading, first, second, third = _run(fake, "events").stdout.splitlines()
    names = ["seq", "timestamp", "topic", "event_id", "source", "again", "payload"]
    assert heading.split() == names
    assert first.split() == ["1", "2026-11-23T10:00:00Z", "app/prod/api", "id-1", "api", "3", '{"level":', '"INFO"}']
    assert second.rstrip().endswith("  [bold]GET /[/bold]")
    assert "cannot be read back: damaged" in third


@pytest.mark.parametrize("options", [(), ("--json",), ("--all",)])
def test_what_others_published_cannot_drive_the_terminal(fake: FakeServer, options: tuple[str, ...]) -> None:
    raw = json.dumps([_event(1, payload=ESCAPE)], ensure_ascii=False).encode()
    fake.script.append(Reply(200, raw[1:-1] if "--all" in options else raw))
    result = _run(fake, "events", *options)
    assert result.exit_code == 0
    assert ESCAPED in result.stdout
    assert not set(ESCAPE[0] + "\x07\x9b\u202e") & set(result.stdout)
    if options:
        assert json.loads(result.stdout)["payload"] == ESCAPE


def test_an_error_of_the_server_cannot_drive_the_terminal(fake: FakeServer) -> None:
    fake.script.append(problem(422, "Not valid", ESCAPE + "[red]"))
    result = _run(fake, "events")
    assert result.exit_code == 2
    assert ESCAPED + "[red]" in result.stderr.replace("\n", "")


def test_events_all_streams(fake: FakeServer) -> None:
    fake.script.append(Reply(200, b'{"seq":1,"payload":1.0}\n{"seq":2,"payload":1e0}\n'))
    result = _run(fake, "events", "--all")
    assert result.stdout == '{"seq":1,"payload":1.0}\n{"seq":2,"payload":1e0}\n'
    assert fake.requests[0].headers["Accept"] == "application/x-ndjson"
    assert "limit" not in fake.requests[0].params


def test_a_stream_that_is_cut_says_where_to_go_on(fake: FakeServer) -> None:
    fake.script.append(Reply(200, b'{"seq":1}\n{"seq":5}\n{"se', cut=True))
    result = _run(fake, "events", "--all")
    assert result.exit_code == 3
    assert "--after 5" in result.stderr


def test_stats_as_a_table_and_as_json(fake: FakeServer) -> None:
    fake.script.extend([STATS, STATS])
    table = {line.strip() for line in _run(fake, "stats").stdout.splitlines()}
    words = {" ".join(line.split()) for line in table}
    assert {"received 1,200,345", "duplicate_rate 0.250", "latency_ms p50 1.500", "latency_ms p99 -"} <= words
    assert any(line.endswith("t9, and 2 more") for line in words)
    assert json.loads(_run(fake, "stats", "--json").stdout)["received"] == 1200345


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_stats_watches_until_ctrl_c(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    fake.script.extend([STATS, STATS])
    waits = iter([None])

    def sleep(seconds: float) -> None:
        try:
            next(waits)
        except StopIteration:
            raise KeyboardInterrupt from None

    # Not time.sleep itself, which threads of other tests may be in.
    monkeypatch.setattr(read, "time", SimpleNamespace(sleep=sleep))
    assert _run(fake, "stats", "--watch", *options).exit_code == 0
    assert len(fake.requests) == 2


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Three waits of the follower pass at once; the fourth is Ctrl-C."""
    made: list[float] = []

    def sleep(seconds: float) -> None:
        made.append(seconds)
        if len(made) > 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(read, "follow", lambda *arguments, **options: follow(*arguments, **options, sleep=sleep))
    return made


def _stream(told: int, *events: dict[str, Any]) -> Reply:
    """Answer with a stream that begins behind a seq and ends in order."""
    blocks = [f"id: log-{event['seq']}\ndata: {json.dumps(event)}\n\n" for event in events]
    body = f"retry: 2000\nid: log-{told}\n\n" + "".join(blocks)
    return Reply(200, body.encode(), {"Content-Type": "text/event-stream"})


@pytest.mark.usefixtures("waits")
def test_tail_begins_behind_the_newest_and_goes_on(fake: FakeServer) -> None:
    fake.script.extend([STATS, _stream(7, _event(8)), _stream(8), _stream(8, _event(9)), _stream(9)])
    result = _run(fake, "tail", "--json")
    assert result.exit_code == 0
    assert [json.loads(line)["seq"] for line in result.stdout.splitlines()] == [8, 9]
    asked = [(request.params["after"], request.headers.get("Last-Event-ID")) for request in fake.requests[1:]]
    assert asked == [("latest", None), ("latest", "log-8"), ("latest", "log-8"), ("latest", "log-9")]


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize(("after", "told"), [("earliest", 0), ("41", 41)])
def test_tail_begins_where_it_is_told(fake: FakeServer, after: str, told: int) -> None:
    event = _event(42, payload={"line": "GET / 200"}, source="")
    fake.script.extend([STATS, _stream(told, event), *[_stream(42)] * 3])
    result = _run(fake, "tail", "--after", after, "--topic", "app/*/api")
    assert result.stdout == "42 2026-11-23T10:00:00Z app/prod/api GET / 200\n"
    assert fake.requests[1].params == {"after": after, "topic": "app/*/api"}


@pytest.mark.usefixtures("waits")
def test_tail_goes_on_through_a_restart_and_says_that_it_waits(fake: FakeServer) -> None:
    busy = problem(503, "Not now", "starting", Retry_After="0")
    fake.script.extend([STATS, HANG_UP, busy, _stream(0, _event(1)), *[_stream(1)] * 3])
    result = _run(fake, "tail", "--after", "earliest")
    assert result.exit_code == 0
    assert result.stdout.startswith("1 ")
    assert result.stderr.count("waiting for the server") == 1


@pytest.mark.usefixtures("waits")
def test_tail_of_another_log_says_what_to_do(fake: FakeServer) -> None:
    fake.script.extend([STATS, problem(410, "Not of this log", "seq 9 is above the newest")])
    result = _run(fake, "tail", "--after", "9")
    assert result.exit_code == 1
    assert "seq 9 is above the newest" in result.stderr
    assert "--after earliest" in result.stderr


@pytest.mark.parametrize("after", ["newest", "-1", "1.5", "\u0663"])
def test_tail_from_no_position(fake: FakeServer, after: str) -> None:
    assert _run(fake, "tail", "--after", after).exit_code == 2
    assert fake.requests == []


@pytest.mark.parametrize("command", ["events", "tail", "stats"])
def test_no_server_is_exit_code_3_at_once(command: str) -> None:
    with fake_server() as gone:
        pass
    result = _run(gone, command)
    assert result.exit_code == 3
    assert "Connection refused" in result.stderr
    assert "Check that the server runs" in " ".join(result.stderr.split())


@pytest.mark.parametrize("command", ["events", "tail", "stats"])
def test_an_answer_that_is_not_sekalis(fake: FakeServer, command: str) -> None:
    fake.script.append(Reply(200, b"<h1>It works!</h1>"))
    assert _run(fake, command).exit_code == 3


@pytest.mark.parametrize("command", ["publish", "events", "tail", "stats"])
def test_every_command_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], terminal_width=200)
    assert result.exit_code == 0
    assert f"sekali {command} --" in result.stdout
    assert "Exit codes: 0" in result.stdout


def test_a_server_that_does_not_know_the_route_is_exit_code_1(fake: FakeServer) -> None:
    result = _run(fake, "stats")
    assert result.exit_code == 1
    assert "There is no such resource" in result.stderr
