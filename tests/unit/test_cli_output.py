import json
import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sekali.cli import app
from sekali.printable import escape_controls


@given(st.text())
def test_escaped_json_is_the_same_json(text: str) -> None:
    written = json.dumps(text, ensure_ascii=False)
    assert json.loads(escape_controls(written)) == text


@given(st.text())
def test_nothing_that_controls_is_left(text: str) -> None:
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in escape_controls(text))


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.stdout.startswith("sekali 0.")
    assert result.exit_code == 0


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    """As with ``| head``: no traceback, no error."""
    code = (
        "from sekali.cli import output\n"
        "import typer\n"
        "try:\n"
        "    with output.reported_errors():\n"
        "        while True: output.write_line('x')\n"
        "except typer.Exit as left:\n"
        "    raise SystemExit(left.exit_code)\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
