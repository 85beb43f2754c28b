"""The image and the compose file, built and run on a real Docker engine.

The engine is the one that ``DOCKER_HOST`` names, or the default socket. In the environment:

- ``SEKALI_TEST_DOCKER=required``: where there is no engine, fail instead of skipping.
- ``SEKALI_DOCKER_BUILD_ARGS``: further arguments of ``compose build``, for an engine that reaches the package index in
  another way, such as ``--build-arg PIP_INDEX_URL=...`` or ``--build-arg https_proxy=...``.
"""

import http.client
import json
import os
import shlex
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BUILD_TIMEOUT_S = 900.0
COMMAND_TIMEOUT_S = 120.0
READY_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.1

EVENTS, STORED, DUPLICATES = 6000, 4800, 1200
KEYS = {"SEKALI_BOOTSTRAP_KEY": "boot." + "b" * 43, "SEKALI_API_KEY": "boot." + "b" * 43}


def run(command: list[str], env: dict[str, str] | None = None, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """Run a command in the root of the repository, and return what it printed."""
    done = subprocess.run(command, cwd=ROOT, env=env, timeout=timeout_s, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"{shlex.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def compose_command() -> list[str]:
    """Return how compose is called here: the plugin of docker, or the older program.

    Where that or the engine is missing, the test is skipped, or fails if the environment says that it is required.
    """
    missing = ""
    for compose in (["docker", "compose"], ["docker-compose"]):
        try:
            run(["docker", "info"])
            run([*compose, "version"])
        except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
            missing = " ".join(str(error).split())
        else:
            return compose
    reason = f"NO DOCKER ENGINE: Dockerfile and docker-compose.yml were NOT built or run: {missing}"
    if os.environ.get("SEKALI_TEST_DOCKER") == "required":
        pytest.fail(reason)
    pytest.skip(f"{reason} (SEKALI_TEST_DOCKER=required makes this a failure)")


class Stack:
    """The services of the compose file, as a project of its own on a free port."""

    def __init__(self, compose: list[str]) -> None:
        self._compose = [*compose, "-p", f"sekali-test-{uuid.uuid4().hex[:12]}"]
        self.env = {**os.environ, **KEYS, "SEKALI_PORT": "0", "SEKALI_PUBLISH_SEED": "7"}

    def compose(self, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a compose command on the project."""
        return run([*self._compose, *arguments], self.env, timeout_s)

    def container(self, service: str) -> str:
        """Return the id of a service's container, also of one that has ended."""
        (container,) = self.compose("ps", "--all", "--quiet", service).split()
        return container

    def state(self, service: str) -> Any:
        """Return what the engine knows of a service's container."""
        return json.loads(run(["docker", "inspect", "--format", "{{json .State}}", self.container(service)]))

    def get(self, path: str) -> bytes:
        """Return the body of an answer of the aggregator, asked through the published port."""
        headers = {"Accept": "application/x-ndjson", "Authorization": f"Bearer {KEYS['SEKALI_API_KEY']}"}
        request = urllib.request.Request(f"http://{self.address()}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            body: bytes = answer.read()
        return body

    def address(self) -> str:
        """Return where the aggregator is published on this machine."""
        return self.compose("port", "aggregator", "8080")

    def stats(self) -> Any:
        """Return the figures of the aggregator, once it answers."""
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                return json.loads(self.get("/stats"))
            except (OSError, http.client.HTTPException):  # the port is open before the server behind it is
                if time.monotonic() > deadline_s:
                    pytest.fail(f"no answer in {READY_TIMEOUT_S:.0f} s\n{self.compose('logs', 'aggregator')}")
                time.sleep(POLL_INTERVAL_S)

    def rows(self) -> int:
        """Return how many events can be read."""
        return len(self.get("/events").splitlines())


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack(compose_command())
    try:
        stack.compose("build", *shlex.split(os.environ.get("SEKALI_DOCKER_BUILD_ARGS", "")), timeout_s=BUILD_TIMEOUT_S)
        yield stack
    finally:
        stack.compose("down", "--volumes", "--rmi", "local", "--remove-orphans")


@pytest.mark.parametrize("name", KEYS)
def test_compose_does_not_start_without_keys(name: str) -> None:
    stack = Stack(compose_command())
    for value in ({}, {name: ""}):
        stack.env = {key: value for key, value in stack.env.items() if key != name} | value
        with pytest.raises(AssertionError, match=name):
            stack.compose("up", "--detach")


def test_compose_publishes_once_and_keeps_it(stack: Stack) -> None:
    stack.compose("up", "--detach")
    code = run(["docker", "wait", stack.container("publisher")])
    assert code == "0", stack.compose("logs")
    assert stack.state("aggregator")["Health"]["Status"] == "healthy"

    stats = stack.stats()
    assert (stats["received"], stats["unique_processed"], stats["duplicate_dropped"]) == (EVENTS, STORED, DUPLICATES)
    assert (stats["db_path"], stats["workers"]) == ("/data/store.db", 2)
    assert stack.rows() == STORED

    user = stack.compose("exec", "-T", "aggregator", "id", "-u")
    assert user != "0"
    owners = stack.compose("exec", "-T", "aggregator", "stat", "-c", "%u", "/data", "/data/store.db")
    assert owners.split() == [user, user]

    assert stack.address().startswith("127.0.0.1:")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://{stack.address()}/events", timeout=10)
    made = stack.compose("exec", "-T", "aggregator", "sekali", "keys", "create", "--name", "ops", "--scope", "read:**")
    assert made.splitlines()[0] not in stack.compose("logs", "aggregator")
    owner = stack.compose("exec", "-T", "aggregator", "stat", "-c", "%u %a", "/data/store.db.keys")
    assert owner == f"{user} 600"

    stack.compose("restart", "aggregator")
    stats = stack.stats()
    assert (stats["received"], stats["unique_processed"], stats["lifetime"]["received"]) == (0, STORED, EVENTS)
    assert stack.rows() == STORED

    stack.compose("run", "--rm", "-T", "publisher")
    stats = stack.stats()
    assert (stats["received"], stats["unique_processed"], stats["duplicate_dropped"]) == (EVENTS, STORED, EVENTS)
    assert stats["conflicts"] == 0
    assert stack.rows() == STORED

    stack.compose("stop", "aggregator")
    assert stack.state("aggregator")["ExitCode"] == 0

    # A new container has nothing of the old one but the volume.
    stack.compose("rm", "--force", "aggregator")
    stack.compose("up", "--detach", "--no-deps", "aggregator")
    stats = stack.stats()
    assert (stats["unique_processed"], stats["lifetime"]["received"]) == (STORED, 2 * EVENTS)
    assert stack.rows() == STORED
