"""The processes of other systems: found, started, waited for, ended."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from sekali.bench.children import BenchFailed

READY_S = 30.0
END_S = 30.0


class Missing(BenchFailed):
    """A system is not installed; the message says how to install it."""


def require_modules(*names: str) -> None:
    """Make sure that Python modules of the extra are there.

    Raises:
        Missing: one is not.

    """
    for name in names:
        if find_spec(name) is None:
            raise Missing(f"{name} is missing: pip install 'sekali[bench]'")


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(
    command: Sequence[str], log_path: Path, ready: Callable[[], bool], *, environment: dict[str, str] | None = None
) -> Iterator[None]:
    """Run a server while the body runs, from when it is ``ready``.

    Raises:
        BenchFailed: it ended, or never was ready.

    """
    with log_path.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - programs that this package names
            command, stdout=log, stderr=log, env=dict(os.environ) | (environment or {})
        )
    try:
        end_s = time.perf_counter() + READY_S
        while not ready():
            if process.poll() is not None or time.perf_counter() > end_s:
                tail = log_path.read_text(errors="replace")[-1000:]
                raise BenchFailed(f"{command[0]} did not start: {tail}")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def listens(port: int) -> bool:
    """Return whether somebody listens on a port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
