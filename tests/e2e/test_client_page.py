"""Every program of docs/client.md is run as it stands and must print what the page prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg

from e2e.conftest import Launch
from e2e.server import DEADLINE_S, clean_environment

PAGE = Path(__file__).parent.parent.parent / "docs" / "client.md"
PROGRAM = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def test_the_programs_of_the_page_print_what_it_says(launch: Launch, postgres: str, tmp_path: Path) -> None:
    server = launch()
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute("CREATE DATABASE shop")
    address = postgres.replace("dbname=postgres", "dbname=shop")
    programs = PROGRAM.findall(PAGE.read_text())
    assert len(programs) >= 15 and PAGE.read_text().count("```python") == len(programs)
    for program, expected in programs:
        code = program.replace("http://127.0.0.1:8080", server.url).replace("postgresql://localhost/shop", address)
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=clean_environment() | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE_S,
            check=False,
        )
        assert (result.returncode, result.stdout) == (0, expected), f"{program}\n{result.stderr}"
    payloads = [event["payload"] for event in server.http.events(topic="**", limit=10_000)]
    assert {"order": 18} in payloads and {"order": 20} in payloads, "an outbox was not emptied"
    logged = [payload for payload in payloads if isinstance(payload, dict) and "logger" in payload]
    assert [payload["message"] for payload in logged] == ["order 21 failed", "paid"]
    assert logged[0]["exception"]["type"] == "ZeroDivisionError" and logged[0]["extra"] == {"order": 21}
