"""A real server process on a real socket, and what tests need to talk to it."""

import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self
from urllib.parse import urlencode

import urllib3

DEADLINE_S = 30.0  # only ever reached by a test that fails
NDJSON = "application/x-ndjson"
SEKALI = Path(sys.executable).with_name("sekali")
TESTS = Path(__file__).parents[1]
_OLDER_NAMES = {
    "DB_PATH",
    "CONSUMER_WORKERS",
    "AGGREGATOR_URL",
    "PUBLISH_COUNT",
    "DUP_RATIO",
    "BATCH_SIZE",
    "TOPICS",
}


def clean_environment(**settings: object) -> dict[str, str]:
    """Return this process's environment without any setting of Sekali but those given."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("SEKALI_") and name not in _OLDER_NAMES
    }
    return kept | {f"SEKALI_{name}": str(value) for name, value in settings.items()}


def run_sekali(
    *arguments: object, timeout_s: float = 2 * DEADLINE_S, **settings: object
) -> subprocess.CompletedProcess[str]:
    """Run a command of the command line to its end, with settings by upper-case name."""
    return subprocess.run(
        [SEKALI, *map(str, arguments)],
        env=clean_environment(**settings),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def verify(db_path: Path) -> dict[str, Any]:
    """Audit a store with ``sekali verify`` and return its report, which must be clean."""
    result = run_sekali("verify", "--db-path", db_path, "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["ok"] is True and all(check["ok"] for check in report["checks"]), report
    return report


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = DEADLINE_S) -> None:
    """Look again and again until a condition holds.

    Raises:
        AssertionError: it did not in time.

    """
    deadline_s = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        pause.wait(0.005)


class Response:
    """A whole answer."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        if response.headers.get("Content-Type") == "text/event-stream":  # has no end: this is its beginning
            self.data = next(response.stream(65536))
            response.close()
        else:
            self.data = response.data

    def json(self) -> Any:
        return json.loads(self.data, parse_constant=_not_json)

    @property
    def outcomes(self) -> list[str]:
        """The verdicts of an answer to /publish."""
        return [result["outcome"] for result in self.json()["results"]]

    @property
    def seqs(self) -> list[Any]:
        return [result.get("seq") for result in self.json()["results"]]

    @property
    def next(self) -> str | None:
        """The address of the next page."""
        link = self.headers.get("Link")
        if link is None:
            return None
        address, _, parameter = link.partition(">")
        assert address.startswith("<") and parameter == '; rel="next"', link
        return address[1:]

    def __repr__(self) -> str:
        return f"<{self.status} {self.data[:2000]!r}>"


def _not_json(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


class Client:
    """HTTP without retries: what the server answers is what the test gets. Safe for many threads."""

    def __init__(
        self, url: str, connections: int = 40, timeout_s: float = DEADLINE_S, key: str | None = None, **options: Any
    ) -> None:
        self.url = url
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._pool = urllib3.connection_from_url(
            url, maxsize=connections, block=True, retries=False, timeout=timeout_s, **options
        )

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, object] | None = None,
    ) -> Response:
        fields = None if params is None else {name: str(value) for name, value in params.items()}
        target = path if fields is None else f"{path}?{urlencode(fields)}"
        sent = self._headers | dict(headers or {})
        whole = not path.startswith("/subscribe?") and path != "/subscribe"
        return Response(
            self._pool.urlopen(method, target, body=body, headers=sent, redirect=False, preload_content=whole)
        )

    def publish(self, document: Any, prefer: str | None = None) -> Response:
        """Publish a JSON document, or bytes as they are."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        headers = {"Content-Type": "application/json"}
        if prefer is not None:
            headers["Prefer"] = prefer
        return self.request("POST", "/publish", body=body, headers=headers)

    def publish_ndjson(self, body: bytes, prefer: str | None = None) -> Response:
        headers = {"Content-Type": NDJSON} | ({} if prefer is None else {"Prefer": prefer})
        return self.request("POST", "/publish", body=body, headers=headers)

    def get(self, path: str, **params: object) -> Response:
        return self.request("GET", path, params=params or None)

    def get_json(self, path: str, **params: object) -> Any:
        response = self.get(path, **params)
        assert response.status == 200, response
        return response.json()

    def events(self, **params: object) -> list[dict[str, Any]]:
        """Return one page of events."""
        events: list[dict[str, Any]] = self.get_json("/events", **params)
        return events

    def pages(self, path: str, **params: object) -> Iterator[list[dict[str, Any]]]:
        """Follow the Link header from page to page."""
        response = self.get(path, **params)
        while True:
            assert response.status == 200, response
            yield response.json()
            if response.next is None:
                return
            response = self.get(response.next)

    def export(self, **params: object) -> bytes:
        """Return a whole NDJSON stream."""
        response = self.request("GET", "/events", headers={"Accept": NDJSON}, params=params)
        assert response.status == 200, response
        assert response.headers["Content-Type"].startswith(NDJSON)
        return response.data

    @contextmanager
    def stream(self, **params: object) -> Iterator[urllib3.BaseHTTPResponse]:
        """Open an NDJSON stream and leave its body unread."""
        target = "/events?" + urlencode({name: str(value) for name, value in params.items()})
        sent = self._headers | {"Accept": NDJSON}
        response = self._pool.urlopen("GET", target, headers=sent, preload_content=False)
        try:
            assert response.status == 200
            yield response
        finally:
            response.close()

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self.get_json("/stats")
        return stats

    def metric(self, name: str) -> float:
        """Return the value of a metric without labels."""
        for line in self.get("/metrics").data.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        raise AssertionError(f"there is no metric {name}")

    def topic(self, name: str) -> dict[str, Any]:
        """Return a topic's line of /topics."""
        for page in self.pages("/topics"):
            for line in page:
                if line["topic"] == name:
                    return line
        raise AssertionError(f"there is no topic {name}")

    def close(self) -> None:
        self._pool.close()


class Process(Protocol):
    """A process, as ``subprocess.Popen`` has it. ``wait`` raises ``subprocess.TimeoutExpired``."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class ServerProcess:
    """A server as a process of its own, on a free port: another one each time it starts, unless ``PORT`` is given.

    ``settings`` are the server's, by upper-case name. ``faults`` names one of the stores in ``faults.py``, which does
    harm while ``fault_file`` exists, or at a point of ``points.py`` that is armed. ``wrapper`` is a command that runs
    the server's command, which is put behind it; ``environment`` is added to its own.
    """

    def __init__(
        self,
        db_path: Path,
        *,
        faults: str | None = None,
        start: bool = True,
        wrapper: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        **settings: object,
    ) -> None:
        self.db_path = db_path
        self.wrapper = wrapper
        self.environment = environment or {}
        self.fault_file = db_path.with_name(db_path.name + ".fault")
        self.hit_file = db_path.with_name(db_path.name + ".fault.hit")
        self.settings = {"HOST": "127.0.0.1", "PORT": 0} | settings
        self.faults = faults
        self.options: list[str] = []  # of the command line
        self.log: list[dict[str, Any]] = []
        self.exit_code: int | None = None
        self._process: Process | None = None
        if start:
            self.start()

    def start(self) -> None:
        """Start the process and wait until it says that it is ready.

        Raises:
            AssertionError: it ended instead; the message is what it wrote.

        """
        self.launch()
        try:
            ready = self.wait_for_log("ready")
        except BaseException:
            self.kill()
            raise
        self.url = str(ready["url"])
        self.port = int(self.url.rpartition(":")[2])
        self.http = Client(self.url)

    def launch(self) -> None:
        """Start the process and wait for nothing."""
        assert self._process is None, "it runs already"
        environment = clean_environment(DB_PATH=self.db_path, **self.settings) | self.environment
        if self.faults is None:
            command = [str(SEKALI), "serve", *self.options]
        else:
            command = [sys.executable, "-m", "e2e.faults", self.faults]
            environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
            environment["FAULT_FILE"] = str(self.fault_file)
        self.log.clear()
        self.exit_code = None
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._process, stderr = self._run([*self.wrapper, *command], environment)
        self._reader = threading.Thread(target=self._read_log, args=(stderr,), daemon=True)
        self._reader.start()

    def _run(self, command: list[str], environment: dict[str, str]) -> tuple[Process, IO[bytes]]:
        """Start the process; return it, and what it writes to standard error."""
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        assert process.stderr is not None
        return process, process.stderr

    def _read_log(self, stderr: IO[bytes]) -> None:
        with stderr:
            for line in stderr:
                try:
                    entry = json.loads(line)
                except ValueError:
                    entry = {"event": line.decode(errors="replace")}
                self.log.append(entry)
                self._lines.put(entry)
        self._lines.put(None)

    def wait_for_log(self, event: str) -> dict[str, Any]:
        """Wait for a line of the log, from where the last wait ended."""
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                line = self._lines.get(timeout=max(deadline_s - time.monotonic(), 0))
            except queue.Empty:
                raise AssertionError(f"no {event!r} in the log: {self.log}") from None
            assert line is not None, f"it ended without {event!r} in the log: {self.log}"
            if line["event"] == event:
                return line

    def arm(self, point: str) -> None:
        """Let the server die by SIGKILL when it next comes to a point of ``points.py``."""
        self.hit_file.unlink(missing_ok=True)
        self.fault_file.write_text(point)

    def wait_for_hit(self, point: str) -> None:
        """Wait until it has died at the point that was armed, and nowhere else."""
        assert self.wait() == -signal.SIGKILL, self.log[-20:]
        assert self.hit_file.read_text() == point, "it did not die where it should"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def resident_bytes(self) -> int:
        """The memory that the process has in RAM."""
        return self._memory_bytes("VmRSS:")

    @property
    def resident_bytes_peak(self) -> int:
        """The most that it ever had there."""
        return self._memory_bytes("VmHWM:")

    @property
    def address_space_bytes(self) -> int:
        """The addresses that it has asked for, which is what RLIMIT_AS limits."""
        return self._memory_bytes("VmSize:")

    def _memory_bytes(self, name: str) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition(name)[2].split()[0]) * 1024

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end of the process and return its exit code."""
        assert self._process is not None
        self.exit_code = self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        self._process = None
        if hasattr(self, "http"):
            self.http.close()
        return self.exit_code

    def ends_within(self, seconds: float) -> bool:
        """Tell whether the process ends by itself, for what must not end yet."""
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it as a power cut would end the process: SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self.wait()

    def terminate(self) -> int:
        """End it by SIGTERM and return its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self.wait()

    def restart(self) -> None:
        """Stop it in order and start it again on the same file."""
        assert self.terminate() == 0, self.log
        self.start()

    def close(self) -> None:
        """End it in whatever state it is."""
        if self._process is not None:
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: tuple[type[BaseException] | None, BaseException | None, TracebackType | None]) -> None:
        self.close()


def lasting_port() -> int:
    """Return a free port that no outgoing connection will be given while a server that should have it is down."""
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(10_000, first_outgoing), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def event(topic: str, event_id: str, **fields: Any) -> dict[str, Any]:
    """Return a valid event, with the fields given in place of its own."""
    return {
        "topic": topic,
        "event_id": event_id,
        "timestamp": "2026-11-23T10:15:30.123Z",
        "source": "test",
        "payload": {"n": 1},
    } | fields


def ndjson(events: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in events)


class RawConnection:
    """A socket to a server, for what no HTTP client would send."""

    def __init__(self, port: int, receive_buffer_bytes: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(("127.0.0.1", port))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive_all(self) -> bytes:
        """Return everything up to the end of the connection."""
        chunks = []
        while chunk := self.socket.recv(65536):
            chunks.append(chunk)
        return b"".join(chunks)

    def receive_answer(self) -> bytes:
        """Return one whole answer that says its length."""
        data = self.receive_until(b"", lambda data: b"\r\n\r\n" in data)
        head, _, _ = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        return self.receive_until(data, lambda data: len(data) >= len(head) + 4 + length)

    def receive_until(self, data: bytes, complete: Callable[[bytes], bool]) -> bytes:
        """Receive more than ``data``, until all of it is complete, and return that."""
        while not complete(data):
            chunk = self.socket.recv(65536)
            assert chunk, f"the connection ended after {data!r}"
            data += chunk
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def in_parallel(count: int, work: Callable[[int], None]) -> None:
    """Run ``work`` on threads that start together; what one raises is raised."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        barrier.wait(DEADLINE_S)
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
