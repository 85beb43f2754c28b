"""Servers that start in 40 ms: forked off a process that has imported everything and opened nothing.

What runs is ``faults.py`` as ever, in a process of its own with its own sockets and files; only the imports are saved.
"""

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import IO

from e2e.server import Process, ServerProcess

_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["pytest", "sekali.service", "sekali.testing"])


def _serve(faults_kind: str, environment: dict[str, str], stderr: Connection) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(stderr.fileno(), sys.stderr.fileno())
    stderr.close()
    sys.argv = ["faults", faults_kind]
    from e2e import faults  # noqa: PLC0415 - it reads the environment

    sys.exit(faults.main())


class _Forked:
    """A process of the fork server with the methods of ``subprocess.Popen``."""

    def __init__(self, process: multiprocessing.context.ForkServerProcess) -> None:
        self._process = process
        assert process.pid is not None
        self.pid = process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked server", timeout or 0)
        return self._process.exitcode

    def send_signal(self, sig: int) -> None:
        os.kill(self.pid, sig)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


class ForkedServer(ServerProcess):
    """A ``ServerProcess`` with one of the stores of ``faults.py`` that starts fast."""

    def _run(self, command: list[str], environment: dict[str, str]) -> tuple[Process, IO[bytes]]:
        ours, theirs = _FORKSERVER.Pipe(duplex=False)
        with ours, theirs:
            process = _FORKSERVER.Process(target=_serve, args=(command[-1], environment, theirs), daemon=True)
            process.start()
            return _Forked(process), os.fdopen(os.dup(ours.fileno()), "rb")
