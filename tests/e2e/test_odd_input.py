"""Odd input: each line of docs/reference/input.md, sent in every form, and everything stored read back strictly."""

import gzip
import json
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from e2e.odd_input import BODIES, ITEMS
from e2e.raw import metric, one_event
from e2e.server import NDJSON, Client, Response, ServerProcess, event

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "input.md").read_text()
_numbers = count(1)


def _rows(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading of the page."""
    _, _, rest = PAGE.partition(f"\n## {heading}\n")
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


class Expected(NamedTuple):
    """A line of the table of items."""

    name: str
    alone: str
    in_array: str
    in_lines: str
    read_back: str


EXPECTED = [Expected(*row) for row in _rows("One item")]


@pytest.fixture(scope="module", autouse=True)
def everything_is_strict_json(server: ServerProcess) -> Iterator[None]:
    """Read all that these tests stored with parsers that let nothing pass, as pages and as a stream."""
    yield
    pages = [one for page in server.http.pages("/events", limit=1000) for one in page]
    lines = server.http.export().split(b"\n")
    assert lines.pop() == b""
    strict = [json.loads(line, parse_constant=_refuse, object_pairs_hook=_no_key_twice) for line in lines]
    assert [msgspec.json.decode(line) for line in lines] == strict == pages
    assert len(strict) == metric(server.http, "sekali_log_events") > 100
    for path in ("/topics", "/sources", "/conflicts"):
        data = server.http.get(path, limit=10_000).data
        json.loads(data, parse_constant=_refuse, object_pairs_hook=_no_key_twice)
        msgspec.json.decode(data)


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "a key is there twice: parsers read that differently"
    return dict(pairs)


def test_every_line_of_the_page_is_tested() -> None:
    assert [expected.name for expected in EXPECTED] == list(ITEMS)
    assert [row[0] for row in _rows("One body")] == list(BODIES)


def send(http: Client, body: bytes, *, lines: bool = False, compressed: bool = False) -> Response:
    headers = {"Content-Type": NDJSON if lines else "application/json"}
    if compressed:
        body, headers = gzip.compress(body, 1), headers | {"Content-Encoding": "gzip"}
    return http.request("POST", "/publish", body=body, headers=headers)


class Sender:
    """Sends an item among good ones, and checks the verdict on it and on each of them, and what is stored."""

    def __init__(self, http: Client, name: str) -> None:
        self._http = http
        self.topic = f"odd/{next(_numbers):04}"
        self._item = ITEMS[name].make(self.topic, "odd")
        self._good = count(1)
        self._stored: set[str] = set()
        self._seq: int | None = None

    def _neighbour(self) -> tuple[str, bytes]:
        name = f"good-{next(self._good)}"
        return name, one_event(self.topic, name)

    def alone(self, expected: str, *, compressed: bool) -> None:
        answer = send(self._http, self._item, compressed=compressed)
        if expected == "stored":
            assert answer.status == 200, answer
            self._note(answer.json()["results"][0])
        elif expected == "400":
            assert answer.status == 400 and answer.json()["type"].endswith(":not-json")
        else:
            status, _, field = expected.partition(": ")
            assert f"{answer.status}" == status == "422", answer
            [result] = answer.json()["results"]
            self._assert_invalid(result, field)
            [place] = answer.json()["errors"]
            assert place["pointer"].startswith("#" if field == "event" else f"#/{field}")
        self.assert_stored()

    def among(self, expected: str, place: int, *, lines: bool, compressed: bool) -> None:
        """Send it at a place among two good ones."""
        names, texts = zip(*[self._neighbour(), self._neighbour()], strict=True)
        items = [*texts[:place], self._item, *texts[place:]]
        body = b"\n".join(items) if lines else b"[" + b",".join(items) + b"]"
        answer = send(self._http, body, lines=lines, compressed=compressed)
        if expected == "400":
            assert answer.status == 400 and answer.json()["type"].endswith(":not-json"), answer
        else:
            assert answer.status == 200, answer
            results = answer.json()["results"]
            if expected != "not counted":
                result = results.pop(place)
                if expected == "stored":
                    self._note(result)
                else:
                    self._assert_invalid(result, expected.removeprefix("invalid: "))
            assert [result["outcome"] for result in results] == ["stored", "stored"]
            self._stored |= set(names)
        self.assert_stored()

    def _note(self, result: dict[str, Any]) -> None:
        assert result["outcome"] == ("stored" if self._seq is None else "duplicate"), result
        assert self._seq in {None, result["seq"]}
        self._seq = result["seq"]

    @staticmethod
    def _assert_invalid(result: dict[str, Any], field: str) -> None:
        assert result["outcome"] == "invalid" and result["error"].startswith(field), result
        assert len(result["error"]) < 1_000

    def assert_stored(self) -> None:
        found = {one["seq"]: one["event_id"] for one in self._http.events(topic=self.topic)}
        odd = {found.pop(self._seq)} if self._seq is not None else set()
        assert set(found.values()) == self._stored and len(odd) <= 1

    def read_back(self, how: str, payload: bytes | None) -> None:
        if self._seq is None:
            assert how == ""
            return
        page = self._http.get("/events", topic=self.topic, after=self._seq - 1, limit=1)
        [read] = page.json()
        sent = json.loads(self._item)
        expected = {name: sent.get(name) for name in ("topic", "event_id", "payload")} | {
            "source": sent["source"] or ""
        }
        assert {name: read[name] for name in expected} == expected
        assert (how == "the last one") == (payload is not None or self._item.count(b'"payload"') > 1)
        if how == "as sent":
            [text] = re.findall(rb'"payload": (.*?)(?:, "(?:source_seq|seq)": .*)?\}\Z', self._item, re.DOTALL)
            payload = text
        if payload is not None:
            assert b'"payload":%b,"processed_at"' % payload in page.data


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda expected: expected.name)
def test_odd_item(http: Client, expected: Expected) -> None:
    sender = Sender(http, expected.name)
    for compressed in (False, True):
        sender.alone(expected.alone, compressed=compressed)
        for place in (0, 1, 2):
            sender.among(expected.in_array, place, lines=False, compressed=compressed)
            sender.among(expected.in_lines, place, lines=True, compressed=compressed)
    sender.read_back(expected.read_back, ITEMS[expected.name].payload)
    assert http.publish(event("odd/after", expected.name.replace("\u0301", ""))).outcomes == ["stored"]


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(("name", "as_json", "as_lines"), _rows("One body"), ids=lambda cell: cell[:40])
def test_odd_body(http: Client, name: str, as_json: str, as_lines: str, compressed: bool) -> None:
    for lines, expected in ((False, as_json), (True, as_lines)):
        answer = send(http, BODIES[name], lines=lines, compressed=compressed)
        status, _, items = expected.partition(", ")
        assert f"{answer.status}" == status, answer
        if items:
            answered = len(answer.json()["results"])
            assert answered == (0 if items == "no items" else int(items.split()[0]))
            assert answered == answer.json()["received"] + answer.json()["invalid"]
    assert {one["event_id"] for one in http.events(topic="odd/body")} <= {"1", "2"}
    assert http.get("/healthz").status == 200
