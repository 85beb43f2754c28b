"""The commands and programs of docs/subscriptions.md are run in turn, and must print what the page prints."""

import re
import subprocess
import sys
from pathlib import Path

from e2e.conftest import Launch
from e2e.server import SEKALI, clean_environment

PAGE = (Path(__file__).parents[2] / "docs" / "subscriptions.md").read_text()
BLOCK = re.compile(r"^```console\n(.*?)^```|^```python\n(.*?)^```\n\n```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


def test_the_page_prints_what_the_server_answers(launch: Launch) -> None:
    server = launch()
    steps: list[tuple[list[str], str]] = []
    for console, program, printed in BLOCK.findall(PAGE):
        if program:
            steps.append(([sys.executable, "-c", program], printed))
        steps += [(["bash", "-c", command], output) for command, output in COMMAND.findall(console)]
    assert len(steps) == 9 and PAGE.count("```python") == 1 and PAGE.count("```") == 2 * 7
    environment = clean_environment(AGGREGATOR_URL=server.url)
    for command, expected in steps:
        text = command[-1].replace("http://127.0.0.1:8080", server.url)
        text = text.replace("curl ", "curl --silent --show-error ")
        text = re.sub("^sekali ", f"{SEKALI} ", text)
        result = subprocess.run(
            [*command[:-1], text], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert result.stdout.strip() == expected.strip(), f"{text}\n{result.stdout}{result.stderr}"
