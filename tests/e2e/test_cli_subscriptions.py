"""``sekali subscriptions`` as people and scripts use it: against a real server, every subcommand."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from e2e.conftest import Launch
from e2e.server import Client, ServerProcess, event, run_sekali
from sekali.cli import app

GONE = "http://127.0.0.1:9"  # the discard port: nobody listens there


def sekali(*arguments: object) -> Result:
    """Run a command in this process, which is quicker than one of its own."""
    return CliRunner().invoke(app, ["subscriptions", *map(str, arguments)], terminal_width=200)


def run(server: ServerProcess, *arguments: object) -> Result:
    return sekali(*arguments, "--url", server.url)


def good(server: ServerProcess, *arguments: object) -> str:
    result = run(server, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def post(http: Client, name: str, what: str, **document: Any) -> Any:
    answer = http.request("POST", f"/subscriptions/{name}/{what}", body=json.dumps(document).encode())
    assert answer.status == 200, answer
    return answer.json()


def test_from_making_to_deleting(launch: Launch) -> None:
    server = launch()
    process = run_sekali("subscriptions", "list", "--json", "--url", server.url)
    assert (process.returncode, process.stdout) == (0, "[]\n")
    assert server.http.publish([event("shop/a", str(number)) for number in range(3)]).status == 200
    made = json.loads(good(server, "create", "billing", "--topic", "shop/**", "--start", "earliest", "--json"))
    assert (made["name"], made["topic"], made["start"]) == ("billing", "shop/**", "earliest")
    line = good(server, "create", "billing", "--topic", "shop/**", "--start", "earliest", "--max-attempts", 2)
    assert line == "subscription billing to shop/**\n"
    assert "subscription at to shop/a" in good(server, "create", "at", "--topic", "shop/a", "--start", 3, "--paused")
    later = good(
        server, "create", "later", "--topic", "a", "--start", "2026-01-01T00:00:00Z", "--order", "none", "--json"
    )
    assert json.loads(later)["start"] == {"time": "2026-01-01T00:00:00Z"}

    listed = {one["name"]: one for one in json.loads(good(server, "list", "--json"))}
    assert [*listed] == ["at", "billing", "later"]
    assert (listed["billing"]["lag"], listed["at"]["lag"], listed["at"]["paused"]) == (3, 1, True)
    table = good(server, "list")
    assert "at (paused)" in table and "shop/**" in table and "oldest s" in table

    shown = json.loads(good(server, "show", "billing", "--json"))
    assert shown["max_attempts"] == 2 and shown["since_start"]["delivered"] == 0
    text = good(server, "show", "billing")
    assert "since_start delivered" in text and "max_attempts" in text

    taken = post(server.http, "billing", "pull", max=2)
    post(server.http, "billing", "ack", lease=taken["lease"], seqs=[1, 2])
    assert json.loads(good(server, "seek", "billing", "--seq", 2, "--json")) == {"next_seq": 2}
    assert good(server, "seek", "billing", "--time", "2026-01-01T00:00:00Z") == (
        "subscription billing goes on at seq 1\n"
    )
    assert json.loads(good(server, "show", "billing", "--json"))["lag"] == 3
    assert good(server, "delete", "billing") == "deleted subscription billing\n"
    missing = run(server, "show", "billing")
    assert missing.exit_code == 1 and "there is no subscription billing" in missing.stderr and not missing.stdout


def test_dead_letters(launch: Launch) -> None:
    server = launch()
    server.http.publish([event("a", str(number)) for number in range(4)])
    good(server, "create", "s", "--topic", "a", "--start", "earliest", "--max-attempts", 1)
    for seq in range(1, 5):
        taken = post(server.http, "s", "pull", max=1)
        post(server.http, "s", "nack", lease=taken["lease"], seqs=[seq], error=f"bad \x1b[31m{seq}")
    lines = [json.loads(line) for line in good(server, "dead-letters", "list", "s", "--json").splitlines()]
    assert [(one["seq"], one["topic"], one["attempts"]) for one in lines] == [(seq, "a", 1) for seq in range(1, 5)]
    assert len(good(server, "dead-letters", "list", "s", "--json", "--limit", 2).splitlines()) == 2
    table = good(server, "dead-letters", "list", "s")
    assert "bad \\u001b[31m1" in table and "\x1b[31m" not in table, "a terminal is told nothing by an error"
    assert good(server, "dead-letters", "replay", "s", "--seq", 2) == "1 dead letters of s are delivered again\n"
    assert good(server, "dead-letters", "drop", "s", "--seq", 1) == "dropped 1 dead letters of s\n"
    assert good(server, "dead-letters", "replay", "s", "--all") == "2 dead letters of s are delivered again\n"
    assert good(server, "dead-letters", "list", "s", "--json") == ""
    assert good(server, "dead-letters", "drop", "s", "--all") == "dropped all dead letters of s\n"
    assert [one["seq"] for one in post(server.http, "s", "pull")["events"]] == [2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "nobody"], 1, "there is no subscription nobody"),
        (["delete", "nobody"], 1, "there is no subscription nobody"),
        (["seek", "nobody", "--seq", 1], 1, "there is no subscription nobody"),
        (["dead-letters", "list", "nobody"], 1, "there is no subscription nobody"),
        (["dead-letters", "replay", "nobody", "--all"], 1, "there is no subscription nobody"),
        (["dead-letters", "drop", "nobody", "--all"], 1, "there is no subscription nobody"),
        (["create", "s", "--topic", "a//b"], 2, "topic: "),
        (["create", "s", "--topic", "a", "--start", "noon"], 2, "time: "),
        (["create", "s", "--topic", "a", "--start", 10**9], 1, "above the newest event"),
        (["create", "s", "--topic", "a", "--lease-seconds", 0], 2, "lease_seconds"),
        (["create", "s", "--topic", "a", "--max-attempts", 5000], 2, "max_attempts"),
        (["create", "s"], 2, "--topic"),
        (["create", "s", "--topic", "a", "--order", "any"], 2, "--order"),
        (["seek", "s"], 2, "give one of --seq and --time"),
        (["seek", "s", "--seq", 1, "--time", "2026-01-01T00:00:00Z"], 2, "give one of --seq and --time"),
        (["dead-letters", "replay", "s"], 2, "give --seq, once or more, or --all"),
        (["dead-letters", "drop", "s", "--all", "--seq", 1], 2, "give --seq, once or more, or --all"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_and_has_an_exit_code(
    server: ServerProcess, arguments: list[object], code: int, message: str
) -> None:
    result = run(server, *arguments)
    assert result.exit_code == code, result.output
    assert message in " ".join(result.stderr.replace("│", " ").split()) and not result.stdout


@pytest.mark.parametrize(
    "arguments", [["list"], ["show", "s"], ["create", "s", "--topic", "a"], ["delete", "s"], ["seek", "s", "--seq", 1]]
)
def test_without_a_server_the_exit_code_is_3(arguments: list[object]) -> None:
    result = sekali(*arguments, "--url", GONE)
    assert result.exit_code == 3 and "error:" in result.stderr


@pytest.mark.parametrize(
    "command",
    ["list", "show", "create", "delete", "seek", "dead-letters list", "dead-letters replay", "dead-letters drop"],
)
def test_every_command_has_help_with_an_example_and_its_exit_codes(command: str) -> None:
    result = sekali(*command.split(), "--help")
    assert result.exit_code == 0 and "Exit codes" in result.stdout
    _, _, example = " ".join(result.stdout.split()).partition("Example")
    assert f": sekali subscriptions {command}" in example
