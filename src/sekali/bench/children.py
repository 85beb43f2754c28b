"""The processes that a benchmark starts: the load generator, the server that does nothing, the server under test."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from sekali.bench.job import DRAIN_S, Job, LoadResult, Sample
from sekali.bench.pauses import WATCH
from sekali.errors import SekaliError
from sekali.settings import ServerSettings, environment_names

START_S = 600.0  # a store of many events may have an index to rebuild
STOP_S = 120.0
GRACE_S = 120.0


class BenchFailed(SekaliError):
    """A figure could not be measured, or what was measured is not right; the message says why."""


def run_load(job: Job, on_sample: Callable[[Sample], None] = lambda _: None, *, may_fail: bool = False) -> LoadResult:
    """Run a load in a process of its own. With ``may_fail`` a result may tell of its failure.

    Raises:
        BenchFailed: it could not be run to its end.

    """
    process = subprocess.Popen(
        [sys.executable, "-m", "sekali.bench.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    limit_s = job.warmup_s + job.seconds + DRAIN_S + GRACE_S
    watchdog = threading.Timer(limit_s, process.kill)
    with process, watchdog_running(watchdog):
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(msgspec.json.encode(job))
        process.stdin.close()
        line = b""
        try:
            for line in process.stdout:
                if line.startswith(b'{"at_s"'):
                    on_sample(msgspec.json.decode(line, type=Sample))
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise BenchFailed(f"the load generator ended with {process.returncode}; its limit is {limit_s:g} s")
    result = msgspec.json.decode(line, type=LoadResult)
    if result.failure is not None and not may_fail:
        raise BenchFailed(f"load: {result.failure}")
    return result


@contextlib.contextmanager
def watchdog_running(watchdog: threading.Timer) -> Iterator[None]:
    """Run a timer while the body runs."""
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


@contextlib.contextmanager
def canned_server(batch: int) -> Iterator[int]:
    """Run a server that does nothing, and give its port."""
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-m", "sekali.bench.canned", str(batch)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


class Server:
    """``sekali serve`` on a store in ``folder``, with default settings except those given, on a free port."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.db_path = folder / "store.db"
        self._settings = dict(settings)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.ready_s = 0.0  # from the start of the process to the first answer that it is healthy

    def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            BenchFailed: it ended, or took too long.

        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        ours = {name for field in ServerSettings.model_fields for name in environment_names(ServerSettings, field)}
        environment = {name: value for name, value in os.environ.items() if name not in ours} | {
            "SEKALI_DB_PATH": str(self.db_path),
            "SEKALI_PORT": str(self.port),
            "SEKALI_LOG_LEVEL": "warning",
            **{f"SEKALI_{name}": value for name, value in self._settings.items()},
        }
        begun_s = time.perf_counter()
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen([sys.executable, "-m", "sekali", "serve"], env=environment, stderr=log)
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get("/healthz")[0] == 200:
                    break
            if self._process.poll() is not None or time.perf_counter() > begun_s + START_S:
                self.kill()
                raise BenchFailed(f"the server did not start: {self.log_tail()}")
            time.sleep(0.005)
        self.ready_s = WATCH.since_s(begun_s)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def _log_path(self) -> Path:
        # Beside the folder, so that it does not count as disk used.
        return self.folder.with_name(self.folder.name + ".log")

    def log_tail(self) -> str:
        """Return the end of what it wrote."""
        return self._log_path.read_text(errors="replace")[-2000:]

    def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body of a GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()

    def get_json(self, path: str) -> Any:
        """Return the document behind a path."""
        status, body = self.get(path)
        if status != 200:
            raise BenchFailed(f"GET {path} is {status}: {body[:500].decode(errors='replace')}")
        return json.loads(body)

    def metrics(self) -> dict[str, float]:
        """Return the samples of /metrics by name with labels."""
        lines = [line for line in self.get("/metrics")[1].decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def stop(self) -> None:
        """Stop it in order.

        Raises:
            BenchFailed: it took too long or ended badly.

        """
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise BenchFailed(f"the server did not stop within {STOP_S:g} s") from None
        self._process = None
        if code != 0:
            raise BenchFailed(f"the server ended with {code}: {self.log_tail()}")

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
