"""The tutorial and the README are run as they stand: each curl line must print what the page prints."""

import re
import subprocess
from pathlib import Path

import pytest

from e2e.conftest import Launch

ROOT = Path(__file__).parent.parent.parent
COMMAND = re.compile(r"^\$ (curl (?:.*\\\n)*.*)\n((?:(?!\$ |```).*\n)*)", re.MULTILINE)


@pytest.mark.parametrize(("page", "at_least"), [("docs/tutorial.md", 8), ("README.md", 1)])
def test_the_page_prints_what_the_server_answers(launch: Launch, page: str, at_least: int) -> None:
    server = launch()
    commands = COMMAND.findall((ROOT / page).read_text())
    assert len(commands) >= at_least
    for command, expected in commands:
        line = command.replace("http://127.0.0.1:8080", server.url).replace("curl ", "curl --silent --show-error ", 1)
        result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        assert result.stdout.strip() == expected.strip(), f"{command}\n{result.stderr}"
