"""Servers for tests: one for each module, and as many of its own as a test wants. All of them are ended."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from e2e.server import Client, ServerProcess
from sekali.bench.peers import postgres as postgres_peer

Launch = Callable[..., ServerProcess]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for a module's tests. Each uses topics of its own."""
    with ServerProcess(tmp_path_factory.mktemp("store") / "store.db") as process:
        yield process
        assert process.running, f"the server ended during the tests: {process.log[-20:]}"


@pytest.fixture
def http(server: ServerProcess) -> Client:
    return server.http


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL server, for whoever makes a database of his own there."""
    # Not in a folder of pytest's, which its user may not enter.
    with tempfile.TemporaryDirectory() as folder, postgres_peer.server(Path(folder), "fsync=off") as address:
        yield address


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start servers for one test: ``launch(db_path=..., faults=..., QUEUE_EVENTS_MAX=...)``."""
    with ExitStack() as stack:

        def start(db_path: Path | None = None, **options: Any) -> ServerProcess:
            process = ServerProcess(db_path or tmp_path / "store.db", **options)
            stack.callback(process.close)
            return process

        yield start
