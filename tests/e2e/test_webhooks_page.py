"""The receiver of docs/webhooks.md runs as it stands, gets what a server pushes, and bills once what comes twice."""

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from e2e.conftest import Launch
from e2e.server import clean_environment, event, lasting_port, run_sekali, wait_until
from receiver import SECRET

PAGE = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()


@contextmanager
def running_receiver(port: int, folder: Path) -> Iterator[None]:
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert program.count("8090") == 1
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        [sys.executable, "-c", program.replace("8090", str(port))],
        cwd=folder,
        env=clean_environment() | {"PYTHONPATH": path, "HOOK_SECRET": SECRET},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def bills(folder: Path) -> list[int]:
    with closing(sqlite3.connect(folder / "billing.db")) as database:
        return [number for (number,) in database.execute("SELECT number FROM bills ORDER BY rowid")]


def test_the_receiver_of_the_page_does_once_what_is_pushed(launch: Launch, tmp_path: Path) -> None:
    server, port = launch(PUSH_ALLOWED_NETWORKS="127.0.0.1"), lasting_port()
    secret = tmp_path / "hook.secret"
    secret.write_text(SECRET + "\n")
    (command,) = re.findall(r"^sekali (subscriptions create .*)$", PAGE, re.MULTILINE)
    arguments = [part.strip("'") for part in command.split()]
    arguments[arguments.index("https://billing.example.com/hook")] = f"http://127.0.0.1:{port}/hook"
    arguments[arguments.index("hook.secret")] = str(secret)
    made = run_sekali(*arguments, AGGREGATOR_URL=server.url)
    assert made.returncode == 0, made.stderr
    orders = [event("orders/eu", f"o-{number}", payload={"order": number}) for number in range(5)]
    with running_receiver(port, tmp_path):
        assert server.http.publish(orders).status == 200
        wait_until(lambda: server.http.get_json("/subscriptions/billing")["lag"] == 0, "all is billed")
    assert bills(tmp_path) == [0, 1, 2, 3, 4]
    with running_receiver(port, tmp_path):
        # Whatever is delivered again finds its mark, also after the receiver was killed.
        assert server.http.request("POST", "/subscriptions/billing/seek", body=b'{"seq": 1}').status == 200
        assert server.http.publish([event("orders/eu", "o-5", payload={"order": 5})]).status == 200
        wait_until(lambda: server.http.get_json("/subscriptions/billing")["lag"] == 0, "all is billed")
    assert bills(tmp_path) == [0, 1, 2, 3, 4, 5]
    assert server.http.get_json("/subscriptions/billing")["since_start"]["delivered"] >= 11
