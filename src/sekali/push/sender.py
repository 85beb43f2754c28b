"""Sends one event to its endpoint: signed, to an address that was checked, with a bound on everything."""

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from urllib.parse import SplitResult, urlsplit

from sekali import __version__
from sekali.delivery import Definition
from sekali.ports import StoredEvent
from sekali.push.addresses import refusal
from sekali.push.connection import Answer, Connection, NoAnswer
from sekali.push.outcome import Failure, judge
from sekali.push.signing import signed_headers, webhook_id
from sekali.settings import Network

CONNECT_TIMEOUT_S = 10.0  # with TLS, to one address
IDLE_S = 5.0
IDLE_MAX = 64  # connections kept for the next event
_PORTS = {"http": 80, "https": 443}

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class Sender:
    """Sends events. Belongs to the event loop.

    Args:
        encode: makes the body of an event.
        resolve: gives the addresses of a host, for a port. Raises OSError, UnicodeError.
        tls: what certificates are trusted.
        allowed: networks to send to although they are not public.
        wall_clock_s: Unix time.

    """

    def __init__(
        self,
        encode: Callable[[StoredEvent], bytes],
        resolve: Resolve,
        tls: ssl.SSLContext,
        allowed: tuple[Network, ...],
        wall_clock_s: Callable[[], float],
    ) -> None:
        self._encode = encode
        self._resolve = resolve
        self._tls = tls
        self._allowed = allowed
        self._wall_clock_s = wall_clock_s
        # Of each connection kept to which scheme and host it leads, and what ends it; the oldest come first.
        self._idle: dict[Connection, tuple[tuple[str, str], asyncio.TimerHandle]] = {}

    def close(self) -> None:
        """Close the connections that are kept."""
        for connection in list(self._idle):
            connection.close()

    async def send(self, definition: Definition, event: StoredEvent) -> Failure | None:
        """Send an event to where a definition says; return why it was not acknowledged, or None if it was.

        It has ``lease_seconds``, from looking up the name to the end of the answer's headers.
        """
        assert definition.url is not None and definition.secret is not None
        url = urlsplit(definition.url)
        body = self._encode(event)
        webhook = webhook_id(event.topic, event.event_id)
        headers = signed_headers(definition.secret, webhook, int(self._wall_clock_s()), body)
        try:
            async with asyncio.timeout(definition.lease_seconds):
                answer = await self._exchange(url, _request(url, headers, body))
        except TimeoutError:
            return Failure(f"no answer within {definition.lease_seconds:g} s")
        except NoAnswer as error:
            return Failure(str(error))
        assert answer.status is not None
        return judge(answer.status, answer.retry_after, datetime.fromtimestamp(self._wall_clock_s(), UTC))

    async def _exchange(self, url: SplitResult, request: bytes) -> Answer:
        connection = self._take_idle(url)
        if connection is not None:
            try:
                return await self._ask(url, connection, request)
            except NoAnswer:
                pass  # it may have been closed as the request came; the receiver tells a second one by its id
        return await self._ask(url, await self._connect(url), request)

    async def _ask(self, url: SplitResult, connection: Connection, request: bytes) -> Answer:
        answer = await connection.ask(request)
        if connection.is_open and len(self._idle) < IDLE_MAX:
            timer = asyncio.get_running_loop().call_later(IDLE_S, connection.close)
            self._idle[connection] = (url.scheme, url.netloc), timer
        else:
            connection.close()
        return answer

    def _forget(self, connection: Connection) -> None:
        if (kept := self._idle.pop(connection, None)) is not None:
            kept[1].cancel()

    def _take_idle(self, url: SplitResult) -> Connection | None:
        """Return the connection to the same place that was used last, if one is kept."""
        for connection, (place, timer) in reversed(self._idle.items()):
            if place == (url.scheme, url.netloc) and connection.is_open:
                timer.cancel()
                del self._idle[connection]
                return connection
        return None

    async def _connect(self, url: SplitResult) -> Connection:
        """Connect to the first address of a host that may be connected to and answers.

        The name is not looked up again in between: what was checked is what is connected to.

        Raises:
            NoAnswer: none does.

        """
        assert url.hostname is not None
        host, port = url.hostname, url.port or _PORTS[url.scheme]
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise NoAnswer(f"the name {host} cannot be resolved: {error}") from None
        fault = f"the name {host} has no address"
        for address in addresses:
            if (kind := refusal(address, self._allowed)) is not None:
                fault = f"{host} is at {address}, which is {kind}: not sent to unless PUSH_ALLOWED_NETWORKS allows it"
                continue
            try:
                return await self._connect_to(address, port, host if url.scheme == "https" else None)
            except NoAnswer as error:
                fault = str(error)
        raise NoAnswer(fault)

    async def _connect_to(self, address: str, port: int, tls_name: str | None) -> Connection:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await asyncio.get_running_loop().create_connection(
                    Connection,
                    address,
                    port,
                    ssl=None if tls_name is None else self._tls,
                    server_hostname=tls_name,
                )
        except TimeoutError:
            raise NoAnswer(f"no connection to {address} port {port} within {CONNECT_TIMEOUT_S:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise NoAnswer(f"the certificate of {address} port {port} is not good: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise NoAnswer(f"no TLS with {address} port {port}: {error.reason or error}") from None
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise NoAnswer(f"no connection to {address} port {port}: {reason}") from None
        connection.on_closed = self._forget
        return connection


def _request(url: SplitResult, headers: dict[str, str], body: bytes) -> bytes:
    """Return the bytes of a request. The URL is printable ASCII without blanks, so no line can be smuggled in."""
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    lines = [
        f"POST {path} HTTP/1.1",
        f"host: {url.netloc}",
        f"user-agent: sekali/{__version__}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body
