"""Sending one event over real sockets: what is connected to, what is sent, and what endpoints can do to it."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme
import uvloop
from standardwebhooks import Webhook

from receiver import SECRET
from sekali.api.wire import pushed_json
from sekali.delivery import Definition, Delivery
from sekali.ports import StoredEvent
from sekali.push import connection, sender
from sekali.push.outcome import Failure
from sekali.push.sender import Sender
from sekali.settings import networks

LOOPBACK = networks("127.0.0.0/8, ::1")
EVENT = StoredEvent(7, "t/a", "e-1", 10**18, 10**18 + 1, "s", None, b'{"n":1}', 3, 10**18 + 5)
OK = b"HTTP/1.1 204 No Content\r\n\r\n"
Script = Callable[["Endpoint", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def definition(url: str, lease_seconds: float = 30.0) -> Definition:
    return Definition("t/**", delivery=Delivery.PUSH, url=url, secret=SECRET, lease_seconds=lease_seconds)


class Endpoint:
    """A server that plays a script on each connection, and counts them."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.port = 0
        self.connections = 0
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.left = asyncio.Event()  # a connection of it was over

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.script(self, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.left.set()
            writer.close()

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Read a request."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        body = await reader.readexactly(int(headers["content-length"]))
        self.requests.append((lines[0], headers, body))


def answers(*parts: bytes, ends: bool = False) -> Script:
    """Answer each request of a connection with these bytes, written one by one."""

    async def script(endpoint: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await endpoint.read(reader)
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            if ends:
                return

    return script


async def silent(endpoint: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await endpoint.read(reader)
    await reader.read()  # until it is left


@asynccontextmanager
async def endpoint(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Endpoint]:
    one = Endpoint(script)
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0, ssl=tls)
    one.port = server.sockets[0].getsockname()[1]
    try:
        yield one
    finally:
        server.close()


async def literal(host: str, port: int) -> list[str]:
    return ["127.0.0.1" if host == "hook.test" else host]


def made(resolve: sender.Resolve = literal, allowed: Any = LOOPBACK, tls: ssl.SSLContext | None = None) -> Sender:
    return Sender(pushed_json, resolve, tls or ssl.create_default_context(), allowed, time.time)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(15):
            await test()
        for _ in range(3):
            await asyncio.sleep(0)  # what was closed ends

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the server does
        runner.run(bounded())


def outcome_of(script: Script, lease_seconds: float = 30.0) -> Failure | None:
    """Send an event to an endpoint with that script."""
    found: list[Failure | None] = []

    async def test() -> None:
        async with endpoint(script) as one:
            sends = made()
            found.append(await sends.send(definition(f"http://127.0.0.1:{one.port}/", lease_seconds), EVENT))
            sends.close()

    run(test)
    return found[0]


class TestRequest:
    def test_it_is_signed_whole_and_the_same_at_every_attempt(self) -> None:
        async def test() -> None:
            async with endpoint(answers(OK)) as one:
                sends = made()
                url = f"http://hook.test:{one.port}/a%20b/?x=1&y=%C3%A9"
                for _ in range(2):
                    assert await sends.send(definition(url), EVENT) is None
                sends.close()
            (line, headers, body), again = one.requests
            assert line == "POST /a%20b/?x=1&y=%C3%A9 HTTP/1.1"
            assert headers["host"] == f"hook.test:{one.port}" and headers["content-type"] == "application/json"
            event = Webhook(SECRET).verify(body, headers)
            assert event == {
                "topic": "t/a",
                "event_id": "e-1",
                "timestamp": "2001-09-09T01:46:40Z",
                "source": "s",
                "payload": {"n": 1},
                "processed_at": "2001-09-09T01:46:40.000000001Z",
                "seq": 7,
            }, "not how often it was sent again, which may change between two attempts"
            assert (again[2], again[1]["webhook-id"]) == (body, headers["webhook-id"])

        run(test)

    def test_without_a_path_it_is_the_root(self) -> None:
        async def test() -> None:
            async with endpoint(answers(OK)) as one:
                sends = made()
                assert await sends.send(definition(f"http://127.0.0.1:{one.port}"), EVENT) is None
                sends.close()
            assert one.requests[0][0] == "POST / HTTP/1.1"

        run(test)


class TestConnections:
    def test_one_is_used_again_until_it_was_idle_for_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def test() -> None:
            async with endpoint(answers(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", b"ok")) as one:
                sends, where = made(), definition(f"http://127.0.0.1:{one.port}/")
                for _ in range(3):
                    assert await sends.send(where, EVENT) is None
                assert one.connections == 1
                sends.close()
                monkeypatch.setattr(sender, "IDLE_S", 0)
                assert await sends.send(where, EVENT) is None
                one.left.clear()
                await one.left.wait()
                assert await sends.send(where, EVENT) is None
                assert one.connections == 3
                sends.close()

        run(test)

    def test_one_that_the_endpoint_closed_meanwhile_is_no_failure(self) -> None:
        async def test() -> None:
            async def once(one: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await one.read(reader)
                writer.write(OK)
                await reader.readexactly(1)  # the next request has begun, and it leaves

            async with endpoint(once) as one:
                sends, where = made(), definition(f"http://127.0.0.1:{one.port}/")
                assert await sends.send(where, EVENT) is None
                assert await sends.send(where, EVENT) is None
                assert one.connections == 2
                sends.close()

        run(test)

    @pytest.mark.parametrize(
        "parts",
        [
            [b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"],
            [b"HTTP/1.0 200 OK\r\n\r\n"],
            [OK + OK],
            [OK + b"nonsense"],
            [b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + bytes(connection.BODY_BYTES_MAX * 4)],
            [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"zz\r\n"],
        ],
    )
    def test_after_an_answer_that_is_odd_another_one_is_used(self, parts: list[bytes]) -> None:
        async def test() -> None:
            async with endpoint(answers(*parts)) as one:
                sends, where = made(), definition(f"http://127.0.0.1:{one.port}/")
                for number in (1, 2):
                    assert await sends.send(where, EVENT) is None
                    assert one.connections == number
                sends.close()

        run(test)

    def test_what_nobody_asked_for_ends_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sender, "IDLE_S", 1000)

        async def test() -> None:
            async def prompter(one: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await one.read(reader)
                writer.write(OK)
                await asked.wait()
                writer.write(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n")
                await reader.read()

            asked = asyncio.Event()
            async with endpoint(prompter) as one:
                sends, where = made(), definition(f"http://127.0.0.1:{one.port}/")
                assert await sends.send(where, EVENT) is None
                asked.set()
                await one.left.wait()
                assert await sends.send(where, EVENT) is None, "the answer to nothing is not that to the next"
                sends.close()

        run(test)


class TestAnswers:
    @pytest.mark.parametrize(
        ("parts", "error"),
        [
            ([OK], None),
            ([bytes([one]) for one in OK], None),
            ([b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n", OK], None),
            ([b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"], "answered 500"),
            (
                [b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n"],
                "answered 302 Found",
            ),
            ([b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"], "answered 101"),
            ([b"SSH-2.0-OpenSSH_9.2\r\n"], "the answer is not HTTP"),
            ([b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 10_000], "the headers of the answer are over 32 KiB"),
            ([b"HTTP/1.1 500 \x1b[2J\r\ncontent-length: 0\r\n\r\n"], "answered 500 Internal Server Error"),
        ],
    )
    def test_what_they_come_to(self, parts: list[bytes], error: str | None) -> None:
        failure = outcome_of(answers(*parts))
        assert (failure is None) if error is None else (failure is not None and failure.error.startswith(error)), (
            failure
        )

    @pytest.mark.parametrize("part", [b"", b"HTTP/1.1 20"])
    def test_none_is_no_acknowledgement(self, part: bytes) -> None:
        failure = outcome_of(answers(part, ends=True))
        assert failure == Failure("the connection was closed before the answer")

    def test_a_body_that_does_not_end_takes_nothing_from_an_acknowledgement(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "BODY_TIMEOUT_S", 0.01)
        assert outcome_of(answers(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")) is None
        assert outcome_of(answers(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", ends=True)) is None

    def test_one_that_never_comes_is_not_waited_for(self) -> None:
        assert outcome_of(silent, 0.1) == Failure("no answer within 0.1 s")

    def test_nor_one_that_comes_in_drips(self) -> None:
        async def dripping(one: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await one.read(reader)
            writer.write(b"HTTP/1.1 200 OK\r\n")
            while not reader.at_eof():
                writer.write(b"x: y\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)

        assert outcome_of(dripping, 0.2) == Failure("no answer within 0.2 s")

    def test_retry_after_is_told(self) -> None:
        answer = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 12\r\ncontent-length: 0\r\n\r\n"
        failure = outcome_of(answers(answer))
        assert failure is not None and failure.retry_after_s == 12 and failure.holds_all


class TestAddresses:
    def test_nothing_is_sent_to_an_address_that_is_not_allowed(self) -> None:
        async def test() -> None:
            async with endpoint(answers(OK)) as one:
                failure = await made(allowed=()).send(definition(f"http://hook.test:{one.port}/"), EVENT)
                assert failure == Failure(
                    "hook.test is at 127.0.0.1, which is loopback: not sent to unless PUSH_ALLOWED_NETWORKS allows it"
                )
                assert one.connections == 0

        run(test)

    def test_a_name_that_leads_elsewhere_the_second_time_is_looked_up_once(self) -> None:
        """DNS rebinding: what was checked is what is connected to."""

        async def test() -> None:
            async def rebinding(host: str, port: int) -> list[str]:
                looked_up.append(host)
                return ["127.0.0.1"] if len(looked_up) == 1 else ["127.0.0.2"]

            looked_up: list[str] = []
            async with endpoint(answers(OK)) as one:
                sends = made(rebinding, networks("127.0.0.1"))
                where = definition(f"http://hook.test:{one.port}/")
                assert await sends.send(where, EVENT) is None and looked_up == ["hook.test"]
                assert one.connections == 1
                sends.close()
                await asyncio.sleep(0)
                failure = await sends.send(where, EVENT)
                assert failure is not None and "127.0.0.2, which is loopback" in failure.error
                assert one.connections == 1 and len(looked_up) == 2

        run(test)

    def test_of_several_addresses_those_allowed_are_tried_and_no_other(self) -> None:
        async def test() -> None:
            async def several(host: str, port: int) -> list[str]:
                return ["169.254.169.254", "127.0.0.9", "127.0.0.1"]

            async with endpoint(answers(OK)) as one:
                sends = made(several)
                assert await sends.send(definition(f"http://hook.test:{one.port}/"), EVENT) is None
                assert one.connections == 1
                sends.close()

        run(test)

    @pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]", "localhost"])
    def test_other_spellings_of_an_address_are_of_no_use(self, host: str) -> None:
        """By the real resolver, which takes them for what they are."""

        async def test() -> None:
            async def system(name: str, port: int) -> list[str]:
                found = await asyncio.get_running_loop().getaddrinfo(name, port)
                return [str(one[4][0]) for one in found]

            failure = await made(system, ()).send(definition(f"http://{host}:9/"), EVENT)
            assert failure is not None and "which is loopback: not sent to" in failure.error

        run(test)

    @pytest.mark.parametrize("error", [OSError("no such name"), UnicodeError("label too long")])
    def test_a_name_that_is_none_is_a_failure(self, error: Exception) -> None:
        async def test() -> None:
            async def failing(host: str, port: int) -> list[str]:
                raise error

            failure = await made(failing).send(definition("http://hook.test/"), EVENT)
            assert failure == Failure(f"the name hook.test cannot be resolved: {error}")

        run(test)

    def test_nor_is_a_resolver_waited_for_that_does_not_answer(self) -> None:
        async def test() -> None:
            async def never(host: str, port: int) -> list[str]:
                await asyncio.Event().wait()
                raise AssertionError

            failure = await made(never).send(definition("http://hook.test/", 0.1), EVENT)
            assert failure == Failure("no answer within 0.1 s")

        run(test)

    def test_where_nobody_listens_that_is_said(self) -> None:
        async def test() -> None:
            async with endpoint(silent) as one:
                port = one.port
            failure = await made().send(definition(f"http://127.0.0.1:{port}/"), EVENT)
            assert failure is not None and failure.error.startswith(f"no connection to 127.0.0.1 port {port}: ")
            assert "refused" in failure.error.lower() and not failure.is_of_event

        run(test)

    def test_no_proxy_of_the_environment_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        assert outcome_of(answers(OK)) is None


class TestTls:
    def send(self, names: list[str], host: str, *, trusted: bool = True) -> tuple[Failure | None, int]:
        authority = trustme.CA()
        found: list[Failure | None] = []
        requests = []
        server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*names).configure_cert(server_tls)
        client_tls = ssl.create_default_context()
        if trusted:
            authority.configure_trust(client_tls)

        async def test() -> None:
            async with endpoint(answers(OK), server_tls) as one:
                sends = made(tls=client_tls)
                found.append(await sends.send(definition(f"https://{host}:{one.port}/"), EVENT))
                found.append(await sends.send(definition(f"https://{host}:{one.port}/"), EVENT))
                sends.close()
                requests.extend(one.requests)

        run(test)
        assert found[0] == found[1]
        return found[1], len(requests)

    def test_the_certificate_is_that_of_the_name_although_the_address_is_connected_to(self) -> None:
        assert self.send(["hook.test"], "hook.test") == (None, 2)

    def test_nor_to_who_speaks_none(self) -> None:
        async def banner(one: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
            await reader.read()

        async def test() -> None:
            async with endpoint(banner) as one:
                failure = await made().send(definition(f"https://127.0.0.1:{one.port}/"), EVENT)
                assert failure is not None and failure.error.startswith(f"no TLS with 127.0.0.1 port {one.port}: ")
                assert one.requests == []

        run(test)

    @pytest.mark.parametrize(("names", "trusted"), [(["127.0.0.1", "other.test"], True), (["hook.test"], False)])
    def test_to_any_other_nothing_is_sent(self, names: list[str], trusted: bool) -> None:
        failure, requests = self.send(names, "hook.test", trusted=trusted)
        assert failure is not None and failure.error.startswith("the certificate of 127.0.0.1 port")
        assert requests == 0
