"""A receiver of webhooks on a loopback port, which answers as a test tells it to and writes down what it got."""

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from standardwebhooks import Webhook

SECRET = "whsec_" + "c2VrYWxpLXRlc3Qtc2VjcmV0LW9mLTMyLWJ5dGVzISE="


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came: already verified with the library of Standard Webhooks."""

    path: str
    headers: dict[str, str]
    body: bytes
    event: dict[str, Any]

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def seq(self) -> int:
        return int(self.event["seq"])


@dataclass(frozen=True, slots=True)
class Says:
    """An answer. Status 0: none, the connection is closed."""

    status: int = 204
    headers: tuple[tuple[str, str], ...] = ()


Decide = Callable[[Received], Says | int]


class Receiver:
    """Serves from its start to its end, and can be started again on the same port.

    ``decide`` runs on a thread for each connection; what it raises is an assertion that failed, and fails the test.
    """

    def __init__(self, decide: Decide = lambda _: 204, tls: ssl.SSLContext | None = None) -> None:
        self.decide = decide
        self.port = 0
        self.received: list[Received] = []
        self.acknowledged: list[Received] = []
        self.faults: list[BaseException] = []
        self._webhook = Webhook(SECRET)
        self._tls = tls
        self._news = threading.Condition()
        self._server: ThreadingHTTPServer | None = None
        self._connections: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}/hook?from=sekali"

    def start(self) -> None:
        """Listen."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def setup(self) -> None:
                super().setup()
                receiver._connections.add(self.connection)

            def finish(self) -> None:
                receiver._connections.discard(self.connection)
                super().finish()

            def do_POST(self) -> None:
                receiver._serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # whoever asked has gone

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Listen no more, so that connections are refused, and cut those that are open."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            for connection in list(self._connections):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"]))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        try:
            event = self._webhook.verify(body, headers)
            assert event == json.loads(body)
            received = Received(handler.path, headers, body, event)
            with self._news:
                self.received.append(received)
                self._news.notify_all()
            says = self.decide(received)
        except BaseException as error:
            with self._news:
                self.faults.append(error)
                self._news.notify_all()
            raise
        says = Says(says) if isinstance(says, int) else says
        if says.status == 0:
            handler.close_connection = True
            return
        handler.send_response(says.status)
        for name, value in says.headers:
            handler.send_header(name, value)
        if says.status != 204:
            handler.send_header("content-length", "0")
        handler.end_headers()
        if 200 <= says.status < 300:
            with self._news:
                self.acknowledged.append(received)
                self._news.notify_all()

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        """Wait until a condition on what was received holds.

        Raises:
            AssertionError: it did not in time, or a request was not as it should be.

        """
        with self._news:
            assert self._news.wait_for(lambda: bool(self.faults) or condition(), timeout_s), (
                f"not within {timeout_s:g} s: {what}; received {len(self.received)}"
            )
        assert self.faults == []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: tuple[type[BaseException] | None, BaseException | None, TracebackType | None]) -> None:
        self.stop()


@contextmanager
def receiver(decide: Decide = lambda _: 204, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Run a receiver; at the end, nothing may have been wrong with what it got."""
    with Receiver(decide, tls) as one:
        yield one
    assert one.faults == []
