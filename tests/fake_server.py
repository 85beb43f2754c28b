"""A server on a free port of 127.0.0.1 that answers what a test tells it to, for tests of the client."""

import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

DEADLINE_S = 30.0  # only ever reached by a test that fails
HANG_UP = "hang up"
"""An answer that is none: the connection is closed."""
USUAL = "usual"
"""The answer that there would be without a script."""


@dataclass
class Reply:
    """One scripted answer. With ``cut`` a chunked body ends without its final chunk."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


def json_reply(document: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(document).encode(), {"Content-Type": "application/json", **headers})


def problem(status: int, title: str, detail: str, **headers: str) -> Reply:
    return json_reply({"title": title, "detail": detail, "status": status}, status, **headers)


@dataclass
class Request:
    method: str
    path: str
    params: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.body.split(b"\n")]


class FakeServer:
    """Gives the replies in ``script`` in turn, then publishes into memory: ``events`` by (topic, event_id)."""

    def __init__(self) -> None:
        self.script: deque[Reply | str] = deque()
        self.requests: list[Request] = []
        self.events: dict[tuple[str, str], dict[str, Any]] = {}
        self.batch_events_max = 10_000
        self.url = ""
        self.gate = threading.Event()
        """While it is not set, requests come in and are not answered."""
        self.gate.set()
        self._lock = threading.Condition()

    def wait_for_requests(self, count: int) -> None:
        """Wait until so many came in."""
        with self._lock:
            assert self._lock.wait_for(lambda: len(self.requests) >= count, DEADLINE_S), f"not {count} requests"

    def reply(self, request: Request) -> Reply | str:
        with self._lock:
            self.requests.append(request)
            self._lock.notify_all()
        assert self.gate.wait(DEADLINE_S), "the gate stayed shut"
        with self._lock:
            scripted = self.script.popleft() if self.script else USUAL
            if scripted != USUAL:
                return scripted
            if request.path.endswith("/publish"):
                return self._publish(request)
            return problem(404, "There is no such resource", request.path)

    def _publish(self, request: Request) -> Reply:
        lines = request.body.split(b"\n")
        if len(lines) > self.batch_events_max:
            return problem(413, "The request is over a limit", f"{len(lines)} events")
        verdicts = [self._verdict(line) for line in lines]
        counts = {
            name: sum(verdict["outcome"] == name for verdict in verdicts)
            for name in ("stored", "duplicate", "conflict", "invalid")
        }
        document = {"received": len(verdicts) - counts["invalid"], **counts, "results": verdicts}
        return json_reply(document, 422 if counts["invalid"] == len(verdicts) else 200)

    def _verdict(self, line: bytes) -> dict[str, Any]:
        try:
            event = json.loads(line)
        except ValueError:
            return {"outcome": "invalid", "error": "line: not JSON"}
        identity = (event["topic"], event["event_id"])
        first = self.events.get(identity)
        if first is None:
            self.events[identity] = event | {"seq": len(self.events) + 1}
            return {"outcome": "stored", "seq": len(self.events)}
        same = first["payload"] == event["payload"] and first.get("source") == event.get("source")
        return {"outcome": "duplicate" if same else "conflict", "seq": first["seq"]}


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *arguments: object) -> None:
            pass

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Request(self.command, parts.path, dict(parse_qsl(parts.query)), dict(self.headers), body)
            reply = fake.reply(request)
            if isinstance(reply, str):
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name.replace("_", "-"), value)
            if reply.cut:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(reply.body), reply.body))
                self.close_connection = True
                return
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        do_GET = do_POST = do_PUT = _answer

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.005))
        thread.start()
        try:
            yield fake
        finally:
            fake.gate.set()
            server.shutdown()
            thread.join()
