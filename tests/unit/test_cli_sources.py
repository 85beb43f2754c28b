import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fake_server import FakeServer, fake_server, json_reply, problem
from sekali.cli import app
from sekali.cli.output import EXIT_NO_SERVER, EXIT_NOT_ALL, EXIT_OK, EXIT_USAGE

COMPLETE = {
    "topic": "pumps/7",
    "source": "plc-1",
    "lowest": 1,
    "highest": 5000,
    "received": 5000,
    "missing": 0,
    "completeness": 1.0,
    "missing_ranges": [],
    "missing_ranges_count": 0,
    "repeated": 0,
    "unnumbered": 0,
}
GAPS = COMPLETE | {
    "source": "plc-\x1b[2J",
    "received": 4989,
    "missing": 11,
    "completeness": 0.9978,
    "missing_ranges": [[2, 2], [5, 6], [9, 9], [11, 11], [13, 13], [15, 19]],
    "missing_ranges_count": 6,
}


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


def run(fake: FakeServer, *options: str) -> Result:
    return CliRunner().invoke(app, ["sources", "--url", fake.url, *options], terminal_width=200)


def page(*found: Any, more: bool = False) -> Any:
    link: dict[str, Any] = {"Link": '</sources?cursor=c>; rel="next"'} if more else {}
    return json_reply(list(found), **link)


def test_a_table_of_all_pages(fake: FakeServer) -> None:
    fake.script.extend([page(COMPLETE, more=True), page(GAPS)])
    result = run(fake, "--topic", "pumps/*", "--from", "1", "--to", "5000")
    assert result.exit_code == EXIT_NOT_ALL, "something is missing"
    assert fake.requests[0].params == {"topic": "pumps/*", "from": "1", "to": "5000"}
    assert "2, 5-6, 9, 11, 13 and 1 more" in result.stdout and "99.7800%" in result.stdout
    assert "100.0000%" in result.stdout and "plc-\\u001b[2J" in result.stdout


def test_json_is_a_source_a_line(fake: FakeServer) -> None:
    fake.script.append(page(COMPLETE, COMPLETE))
    result = run(fake, "--json")
    assert result.exit_code == EXIT_OK
    assert [json.loads(line) for line in result.stdout.splitlines()] == [COMPLETE, COMPLETE]


@pytest.mark.parametrize("answer", [[{}], [1], 1, [GAPS | {"missing_ranges": 1}], [GAPS | {"received": "x"}]], ids=str)
def test_what_is_no_answer_of_a_server_is_a_sentence(fake: FakeServer, answer: Any) -> None:
    fake.script.append(json_reply(answer))
    result = run(fake)
    assert result.exit_code == EXIT_NO_SERVER and "/sources is not answered as a Sekali server does" in result.stderr


def test_a_refusal_says_why(fake: FakeServer) -> None:
    fake.script.append(problem(422, "A parameter is not valid", "to: below from; the first number comes first"))
    result = run(fake, "--from", "5", "--to", "4")
    assert result.exit_code == EXIT_USAGE and "below from" in result.stderr
