"""Whatever a server answers, and so whatever strangers published there, no command lets it drive the terminal."""

import io
import json
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from fake_server import FakeServer, Reply, fake_server, json_reply, problem
from sekali.cli import app
from sekali.cli.publishing import progress_screen
from sekali.client.follow import Row
from sekali.printable import escape_controls

# Every control character of C0 and C1, DEL, line and paragraph separators, and what turns the direction of writing.
CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]
BIDI = [chr(code) for code in (0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))]
HOSTILE = "a\x1b]0;owned\x07" + "".join([*CONTROLS, *BIDI]) + "\x1b[2J[red]z"
EVENT = dict.fromkeys(("topic", "event_id", "timestamp", "source"), HOSTILE) | {"seq": 1, "duplicates": 1}
STATS = {
    "topics": [HOSTILE],
    HOSTILE: HOSTILE,
    "log_id": HOSTILE,
    "lifetime": {HOSTILE: HOSTILE},
    "x": [{"y": HOSTILE}],
}
PROBLEM = problem(422, HOSTILE, HOSTILE)


def ndjson(event: dict[str, Any]) -> Reply:
    return Reply(200, json.dumps(event, ensure_ascii=False).encode() + b"\n", {"Content-Type": "application/x-ndjson"})


def verdicts(**result: Any) -> Reply:
    counts = dict.fromkeys(("received", "stored", "duplicate", "conflict", "invalid"), 0)
    return json_reply(counts | {"invalid": 1, "results": [result]})


LOAD = ["publish", "--count", "1", "--seed", "1", "--give-up-after", "0"]
CASES: dict[str, tuple[list[str], Reply]] = {
    "a table of events": (["events"], json_reply([EVENT | {"payload": {HOSTILE: [HOSTILE]}}])),
    "a line as payload": (["events"], json_reply([EVENT | {"payload": {"line": HOSTILE}}])),
    "seq is no number": (["events"], json_reply([EVENT | {"seq": HOSTILE, "payload": HOSTILE}])),
    "a damaged row": (["events"], json_reply([{"seq": 1, "error": HOSTILE}])),
    "events as JSON": (["events", "--json"], json_reply([EVENT | {"payload": HOSTILE}])),
    "a stream": (["events", "--all"], ndjson(EVENT | {"payload": HOSTILE})),
    "figures": (["stats"], json_reply(STATS)),
    "figures as JSON": (["stats", "--json"], json_reply(STATS)),
    "an error in events": (["events"], PROBLEM),
    "an error in a stream": (["events", "--all"], PROBLEM),
    "an error in tail": (["tail"], PROBLEM),
    "an error in stats": (["stats"], PROBLEM),
    "an error in publish": (LOAD, PROBLEM),
    "no key": (["stats"], problem(401, HOSTILE, HOSTILE)),
    "no scope": (["stats"], json_reply({"title": HOSTILE, "detail": HOSTILE, "missing_scopes": [HOSTILE]}, 403)),
    "nothing works": (["stats"], problem(503, HOSTILE, HOSTILE)),
    "an invalid event": (LOAD, verdicts(outcome="invalid", error=HOSTILE)),
    "a conflict": (LOAD, verdicts(outcome="conflict", seq=HOSTILE)),
    "no JSON at all": (["stats"], Reply(200, HOSTILE.encode())),
    "another program": (["events"], Reply(200, HOSTILE.encode())),
}


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


def run(fake: FakeServer, arguments: list[str]) -> Result:
    command, *options = arguments
    return CliRunner().invoke(app, [command, "--url", fake.url, *options], terminal_width=100_000)


def harmful(text: str) -> set[str]:
    """Return what in a text is more than text and line ends."""
    return {one for one in text if one in BIDI or (unicodedata.category(one) in {"Cc", "Cs"} and one != "\n")}


@pytest.mark.parametrize("case", CASES)
def test_no_answer_drives_the_terminal(fake: FakeServer, case: str) -> None:
    arguments, reply = CASES[case]
    fake.script.append(reply)
    result = run(fake, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert fake.requests and not harmful(result.output), result.output
    if reply.body and case not in {"no JSON at all", "another program"}:
        assert "\\u001b]0;owned" in result.output, "it was shown"
    if ("--json" in arguments or "--all" in arguments) and result.exit_code == 0:
        sent = json.loads(reply.body)
        assert json.loads(result.stdout) == (sent[0] if isinstance(sent, list) else sent), "JSON is the same JSON"


def test_each_control_character_is_escaped_and_nothing_else() -> None:
    for one in [*CONTROLS, *BIDI, "\ud800", "\udfff"]:
        assert escape_controls(f"a{one}b") == f"a\\u{ord(one):04x}b"
    fine = "päyload 日本語 🙂 \\u001b é\u0301 \u200b"
    assert escape_controls(fine) == fine


def test_why_a_publisher_waits_does_not_drive_the_terminal() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, color_system=None, width=100_000)
    with progress_screen(console, 10) as screen:
        screen.show_waiting(HOSTILE)
        console.print("shown")  # draws what the bar says now
    shown = written.getvalue()
    assert "\\u001b]0;owned" in shown and "\x1b]0;" not in shown and "\x1b[2J[red]" not in shown


def test_a_tail_shows_lines_that_drive_nothing(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Row(EVENT | {"payload": HOSTILE}, json.dumps(EVENT, ensure_ascii=False))]

    def follow(*_: object, **__: object) -> Iterator[list[Row]]:
        yield found
        raise KeyboardInterrupt

    monkeypatch.setattr("sekali.cli.read.follow", follow)
    for options in ([], ["--json"]):
        fake.script.append(json_reply(STATS))
        result = run(fake, ["tail", "--after", "0", *options])
        assert result.exit_code == 0 and not harmful(result.output) and "\\u001b]0;owned" in result.output
