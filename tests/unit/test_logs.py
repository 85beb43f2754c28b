"""Whatever strangers put into an entry of the log, it stays one line, and drives no terminal."""

import json
import sys
from typing import Any

import pytest
import structlog

from sekali.logs import configure_logging, renderers

HOSTILE = [
    'o-1\n{"event": "stored", "level": "info"}',
    "o-1\r\n2026-11-23T10:00:00Z [info     ] forged",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m\x85\x7f",
    "\u202egnp.exe\u2066\u2028next\u2029",
    "\x00\ud800",
]


def rendered(entry: dict[str, Any], *, for_people: bool) -> str:
    result: Any = entry
    for processor in renderers(for_people=for_people):
        result = processor(None, "info", result)
    assert isinstance(result, str)
    return result


def without_colours(text: str) -> str:
    """Take out what the renderer itself puts in to colour a line."""
    for colour in (
        structlog.dev.RESET_ALL,
        structlog.dev.BRIGHT,
        structlog.dev.DIM,
        *vars(structlog.dev._ColorfulStyles).values(),
    ):
        if isinstance(colour, str) and colour:
            text = text.replace(colour, "")
    return text


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("for_people", [True, False])
def test_a_hostile_value_is_one_harmless_line(text: str, for_people: bool) -> None:
    for entry in (
        {"event": "x", "reason": text},
        {"event": text},
        {"event": "x", "value": [text]},
        {"event": "x", "e": ValueError(text)},
    ):
        line = without_colours(rendered({"level": "info", "timestamp": "t"} | entry, for_people=for_people))
        assert line.isprintable(), (line, entry)
        if not for_people:
            assert json.loads(line)["level"] == "info"


@pytest.mark.parametrize("text", HOSTILE[:2])
def test_a_traceback_cannot_look_like_another_entry(text: str) -> None:
    shown = without_colours(
        rendered({"event": "x", "level": "error", "exception": f"ValueError: {text}"}, for_people=True)
    )
    first, *others = shown.split("\n")
    assert "x" in first and others and all(line.startswith("    ") for line in others)
    assert all(line.isprintable() for line in others)


def test_values_that_are_no_texts_stay_what_they_are() -> None:
    entry = {"event": "commit", "requests": 3, "ms": 1.5, "ok": True, "name": None}
    assert json.loads(rendered(dict(entry), for_people=False)) == entry
    assert "requests=3" in without_colours(rendered(dict(entry), for_people=True))


def test_the_log_of_the_process_is_rendered_so(capsys: pytest.CaptureFixture[str]) -> None:
    before = structlog.get_config()
    try:
        configure_logging("debug")
        structlog.get_logger("sekali.test").debug("[DUP] drop %s/%s", "orders", HOSTILE[0])
        assert not sys.stderr.isatty()
    finally:
        structlog.configure(**before)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == f"[DUP] drop orders/{HOSTILE[0]}"
