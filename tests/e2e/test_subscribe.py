"""``/subscribe`` and ``sekali tail`` over real sockets: history and live, once and in order, whatever breaks."""

import json
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from e2e.conftest import Launch
from e2e.server import (
    NDJSON,
    SEKALI,
    Client,
    RawConnection,
    ServerProcess,
    clean_environment,
    event,
    lasting_port,
    run_sekali,
    verify,
    wait_until,
)
from event_stream import EventStream
from sekali.client.errors import Gone
from sekali.client.follow import Row, follow
from sekali.client.http import Server
from sekali.keyfile import KeyFile
from sekali.topics import matches

MIB = 1024 * 1024
Opened = Callable[..., EventStream]
BOOTSTRAP = "boot." + "b" * 43


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic of the test's own, in a server that several use."""
    return f"t/{request.node.name.replace('[', '/').replace(']', '')}"


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Open streams that are closed at the end."""
    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(EventStream(*arguments, **options))


def followers(http: Client) -> int:
    return int(http.metric("sekali_followers"))


def publish(http: Client, topic: str, *ids: object) -> list[int]:
    """Publish events in one request and return their seqs."""
    answer = http.publish([event(topic, str(one)) for one in ids])
    assert answer.outcomes == ["stored"] * len(ids), answer
    return [int(seq) for seq in answer.seqs]


# What comes.


def test_history_comes_first_and_then_what_is_published(server: ServerProcess, http: Client, topic: str) -> None:
    seqs = publish(http, topic, *range(5))
    with EventStream(server.port, topic=topic, after="earliest") as stream:
        assert stream.receive_events(5) == seqs
        seqs += publish(http, topic, 5, 6)
        publish(http, "elsewhere/" + topic, 1)
        seqs += publish(http, topic, 7)
        assert stream.receive_events(8) == seqs
        assert stream.events == http.events(topic=topic), "an event is what it is in /events"
        log_id = http.stats()["log_id"]
        assert [block.id for block in stream.blocks] == [f"{log_id}-{seq}" for seq in (0, *seqs)]
        assert stream.status == 200
        head = (stream.decoder.head or b"").lower().decode()
        for header in ("content-type: text/event-stream", "cache-control: no-store", "x-accel-buffering: no"):
            assert f"\r\n{header}\r\n" in head + "\r\n"


def test_without_after_only_what_comes_is_shown(server: ServerProcess, http: Client, topic: str) -> None:
    publish(http, topic, 1)
    with EventStream(server.port, topic=topic).open() as stream:
        (seq,) = publish(http, topic, 2)
        assert stream.receive_events(1) == [seq]


def test_a_reader_goes_on_behind_the_last_event_it_saw(server: ServerProcess, http: Client, topic: str) -> None:
    seqs = publish(http, topic, *range(10))
    with EventStream(server.port, topic=topic, after=seqs[0] - 1) as stream:
        stream.receive_events(4)
        seen = [block.id for block in stream.blocks if block.data is not None]
    for place, headers, after in (
        (seqs[3], {"Last-Event-ID": str(seen[3])}, {}),
        (seqs[3], {"Last-Event-ID": str(seen[3])}, {"after": 0}),
        (seqs[3], {}, {"after": seqs[3]}),
    ):
        with EventStream(server.port, headers=headers, topic=topic, **after) as again:
            assert again.receive_events(6) == seqs[4:]
            assert again.blocks[0].seq == place


def test_a_place_told_before_the_first_event_is_as_good(server: ServerProcess, http: Client, topic: str) -> None:
    with EventStream(server.port, topic=topic).open() as stream:
        place = stream.last_event_id
    seqs = publish(http, topic, 1, 2)
    with EventStream(server.port, headers={"Last-Event-ID": place}, topic=topic) as again:
        assert again.receive_events(2) == seqs


def test_followers_that_come_at_any_moment_of_a_load_see_everything_once(launch: Launch) -> None:
    seed = random.randrange(2**32)
    Console().print(f"seed {seed}")
    rng = random.Random(seed)
    server = launch()
    http = server.http
    patterns = [None, "**", "a/*", "a/1", "*/1", "b/**", "nothing/*"]
    topics = ["a/1", "a/2", "b/1", "b/2/3"]
    requests, batch = 150, 40
    streams: list[tuple[str | None, EventStream, threading.Thread]] = []
    progress = threading.Condition()
    answered = 0

    def load(number: int) -> None:
        nonlocal answered
        own = random.Random(seed + number)
        for request in range(requests):
            made = [event(own.choice(topics), f"{number}-{request}-{one}") for one in range(batch)]
            assert http.publish(made).status == 200
            with progress:
                answered += 1
                progress.notify_all()

    publishers = [threading.Thread(target=load, args=(number,)) for number in range(3)]
    for publisher in publishers:
        publisher.start()
    total = 3 * requests * batch
    for moment in sorted(rng.randrange(3 * requests) for _ in range(21)):
        with progress:
            assert progress.wait_for(lambda moment=moment: answered >= moment, 30)  # type: ignore[misc]
        pattern = patterns[len(streams) % len(patterns)]
        params: dict[str, Any] = {"after": rng.choice(["earliest", "latest"])}
        params |= {} if pattern is None else {"topic": pattern}
        stream = EventStream(server.port, **params).open()
        reader = threading.Thread(target=_read_until_closed, args=(stream,))
        reader.start()
        streams.append((pattern, stream, reader))
    for publisher in publishers:
        publisher.join()
    stored = [json.loads(line) for line in http.export().splitlines()]
    assert len(stored) == total
    for pattern, stream, reader in streams:
        begun = stream.blocks[0].seq
        expected = [
            one["seq"] for one in stored if one["seq"] > begun and (pattern is None or matches(pattern, one["topic"]))
        ]
        wait_until(lambda s=stream, e=expected: not e or s.blocks[-1].seq >= e[-1], "the end")  # type: ignore[misc]
        stream.socket.shutdown(2)
        reader.join()
        stream.close()
        assert stream.seqs == expected, pattern
    assert any(stream.blocks[0].seq not in {0, total} for _, stream, _ in streams), "nobody came in the middle"
    wait_until(lambda: followers(http) == 0, "all have left")


def _read_until_closed(stream: EventStream) -> None:
    while stream.receive():
        pass


def test_events_that_were_stored_by_a_commit_that_failed_are_shown_after_the_recovery(launch: Launch) -> None:
    server = launch(faults="failing-after-commit")
    with EventStream(server.port).open() as stream:
        server.fault_file.touch()
        assert server.http.publish(event("orphan", "1")).status == 503
        server.fault_file.unlink()
        assert stream.receive_events(1) == [1], "nobody publishes anything else"


# What is refused.


@pytest.mark.parametrize(
    ("params", "headers", "status", "said"),
    [
        ({"after": 10**9}, {}, 410, "above the newest event"),
        ({"after": "-1"}, {}, 422, "after"),
        ({"after": "newest"}, {}, 422, "after"),
        ({"after": "9" * 4000}, {}, 422, "after"),
        ({"topic": "a//b"}, {}, 422, "topic"),
        ({}, {"Last-Event-ID": "f" * 32 + "-1"}, 410, "a backup was restored"),
        ({}, {"Last-Event-ID": "1"}, 422, "Last-Event-ID"),
    ],
)
def test_places_and_topics_that_are_none(
    server: ServerProcess, http: Client, params: dict[str, object], headers: dict[str, str], status: int, said: str
) -> None:
    answer = http.request("GET", "/subscribe", params=params, headers=headers)
    assert answer.status == status and said in answer.json()["detail"], answer
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE"])
def test_no_other_method_gets_a_stream(http: Client, method: str) -> None:
    answer = http.request(method, "/subscribe", body=b"{}" if method != "HEAD" else None)
    assert answer.status == 405 and answer.headers["Allow"] == "GET"


def test_positions_of_a_log_that_was_restored_are_gone(launch: Launch, tmp_path: Path) -> None:
    server = launch()
    publish(server.http, "t", 1, 2)
    with EventStream(server.port, after="earliest") as stream:
        stream.receive_events(2)
    copy_path = tmp_path / "copy" / "store.db"
    copy_path.parent.mkdir()
    assert run_sekali("backup", copy_path, "--db-path", server.db_path).returncode == 0
    copy = launch(copy_path)
    with EventStream(copy.port, headers={"Last-Event-ID": stream.last_event_id}) as again:
        assert again.status == 410
    with Server(copy.url) as restored, pytest.raises(Gone, match="a backup was restored"):
        next(follow(restored, last_event_id=stream.last_event_id))


# Who may follow what.


@contextmanager
def guarded(launch: Launch, **scopes: list[str]) -> Iterator[tuple[ServerProcess, dict[str, str]]]:
    """Start a server that asks for keys, and make one for each name."""
    server = launch(start=False, BOOTSTRAP_KEY=BOOTSTRAP)
    server.db_path.parent.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    keys = {name: KeyFile(server.db_path).create(name, one, now)[1] for name, one in scopes.items()}
    server.start()
    server.http = Client(server.url, key=BOOTSTRAP)
    yield server, keys


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_follows_what_it_may_read_and_nothing_else_exists_for_it(launch: Launch, opened: Opened) -> None:
    with guarded(launch, shop=["read:shop/**"], publisher=["publish:**"]) as (server, keys):
        publish(server.http, "shop/a", 1)
        publish(server.http, "hidden", 1)
        with EventStream(server.port, after="earliest") as stream:
            assert stream.status == 401
        for key, params, status in (
            ("publisher", {}, 403),
            ("shop", {"topic": "hidden"}, 403),
            ("shop", {"after": 2}, 410),
        ):
            with EventStream(server.port, headers=bearer(keys[key]), **params) as stream:
                assert stream.status == status
        own = opened(server.port, headers=bearer(keys["shop"]), after="earliest")
        latest = opened(server.port, headers=bearer(keys["shop"])).open()
        by_pattern = opened(server.port, headers=bearer(keys["shop"]), topic="*", after="earliest").open()
        everything = opened(server.port, headers=bearer(BOOTSTRAP), after="earliest")
        assert latest.blocks[0].seq == 1, "the newest event is one that it may read"
        publish(server.http, "hidden", 2)
        publish(server.http, "shop/b", 2)
        assert everything.receive_events(4) == [1, 2, 3, 4]
        assert own.receive_events(2) == [1, 4]
        assert latest.receive_events(1) == [4]
        assert by_pattern.seqs == []
        assert server.terminate() == 0
        by_pattern.receive_all()
        assert [block.seq for block in by_pattern.blocks] == [0]


def test_a_key_that_is_revoked_or_expires_ends_its_streams(launch: Launch, opened: Opened) -> None:
    with guarded(launch, revoked=["read:**"], kept=["read:**"]) as (server, keys):
        now = datetime.now(UTC)
        _, expiring = KeyFile(server.db_path).create("expiring", ["read:**"], now, now + timedelta(seconds=2))
        kept = opened(server.port, headers=bearer(keys["kept"])).open()
        revoked = opened(server.port, headers=bearer(keys["revoked"])).open()
        wait_until(lambda: _is_known(server, expiring), "the new key is known")
        ends = opened(server.port, headers=bearer(expiring)).open()
        KeyFile(server.db_path).revoke(keys["revoked"].partition(".")[0])
        for stream in (revoked, ends):
            stream.receive_all()
            assert stream.decoder.complete, "it ends in order"
        (seq,) = publish(server.http, "t", 1)
        assert kept.receive_events(1) == [seq]


def _is_known(server: ServerProcess, key: str) -> bool:
    with EventStream(server.port, headers=bearer(key)) as stream:
        return stream.status == 200


# Who waits, who leaves, who is slow.


def test_who_waits_hears_from_the_server_and_comes_forward(launch: Launch) -> None:
    server = launch(faults="quick-heartbeats")
    with EventStream(server.port, topic="nothing/*").open() as stream:
        seqs = publish(server.http, "t", *range(10))
        assert stream.receive_to(seqs[-1]) == []
        assert stream.blocks[-1].comment
        place = stream.last_event_id
    with EventStream(server.port, headers={"Last-Event-ID": place}).open() as again:
        (seq,) = publish(server.http, "t", 10)
        assert again.receive_events(1) == [seq], "what it was told it needs not see again"


@pytest.mark.parametrize("leave", ["close", "half close", "reset"])
def test_who_leaves_is_noticed_at_once(launch: Launch, leave: str) -> None:
    server = launch()
    with EventStream(server.port).open() as stream:
        wait_until(lambda: followers(server.http) == 1, "it is counted")
        if leave == "half close":
            stream.socket.shutdown(1)
        else:
            if leave == "reset":
                stream.socket.setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")  # SOL_SOCKET, SO_LINGER: on, 0 s
            stream.close()
        # Without another event or a heartbeat, which comes after 15 s.
        wait_until(lambda: followers(server.http) == 0, "it is gone", timeout_s=10)


def _fill(http: Client, megabytes: int) -> None:
    for part in range(megabytes):
        events = [event("large", f"{part}-{number}", payload="x" * 10_000) for number in range(100)]
        assert http.publish(events).json()["stored"] == 100


def test_a_reader_that_takes_nothing_is_cut_off_and_goes_on_by_itself(launch: Launch) -> None:
    server = launch(ANSWER_TIMEOUT_S=0.5)
    with EventStream(server.port, receive_buffer_bytes=4096).open() as stream:
        _fill(server.http, 20)
        cut = 'sekali_connections_ended_total{reason="answer-not-taken"}'
        wait_until(lambda: server.http.metric(cut) == 1, "it is cut off")
        assert followers(server.http) == 0
        stream.receive_all()
        assert not stream.decoder.complete
    seen = stream.seqs
    with EventStream(server.port, headers={"Last-Event-ID": stream.last_event_id}) as again:
        again.receive_events(2000 - len(seen))
    assert seen + again.seqs == list(range(1, 2001))
    assert seen and again.seqs


def test_followers_that_take_nothing_hold_little_memory(launch: Launch, opened: Opened) -> None:
    server = launch(CONNECTION_BYTES_MAX=16 * MIB)
    _fill(server.http, 5)
    for _ in range(50):
        opened(server.port, receive_buffer_bytes=4096, after="earliest")
    before = server.resident_bytes
    _fill_more(server.http, 60)
    growth = server.resident_bytes_peak - before
    # The ring, what connections may hold, and what is on its way there.
    assert growth < 100 * MIB, f"{growth:,} bytes"


def _fill_more(http: Client, megabytes: int) -> None:
    for part in range(megabytes):
        events = [event("more", f"{part}-{number}", payload="y" * 10_000) for number in range(100)]
        assert http.publish(events).json()["stored"] == 100


# The server goes and comes.


def test_the_end_of_the_server_ends_streams_at_once_and_in_order(launch: Launch, opened: Opened) -> None:
    server = launch(STOP_TIMEOUT_S=30)
    _fill(server.http, 10)
    idle = opened(server.port).open()
    behind = opened(server.port, after="earliest").open()
    stalled = opened(server.port, receive_buffer_bytes=4096, after="earliest").open()
    wait_until(lambda: server.http.metric("sekali_connection_bytes") > 0, "a reader takes nothing")
    assert server.terminate() == 0, server.log
    for stream in (idle, behind):
        stream.receive_all()
        assert stream.decoder.complete
    stalled.receive_all()
    assert not stalled.decoder.complete
    told = [line["event"] for line in server.log]
    assert not [line for line in told if "timeout" in line or "Exception" in line], told


@contextmanager
def _tail(server: ServerProcess, *options: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [SEKALI, "tail", "--url", f"http://127.0.0.1:{server.port}", "--json", *options],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_tail_goes_on_through_restarts_without_a_gap_or_a_repeat(launch: Launch, end: str) -> None:
    server = launch(PORT=lasting_port())
    seqs = publish(server.http, "t/0", *range(100))
    with _tail(server, "--after", "earliest", "--topic", "t/*") as process:
        assert process.stdout is not None and process.stderr is not None
        shown: list[int] = []
        for number in range(3):
            while len(shown) < len(seqs):
                shown.append(json.loads(process.stdout.readline())["seq"])
            if end == "kill":
                server.kill()
            else:
                assert server.terminate() == 0
            server.start()
            publish(server.http, "elsewhere", number)
            seqs += publish(server.http, "t/1", *range(100 * number, 100 * number + 100))
        while len(shown) < len(seqs):
            shown.append(json.loads(process.stdout.readline())["seq"])
        assert shown == seqs
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stdout.read() == ""
        assert "waiting for the server" in process.stderr.read()
    assert server.terminate() == 0
    verify(server.db_path)


def test_the_client_follows_a_server_that_is_killed_again_and_again(launch: Launch) -> None:
    server = launch(PORT=lasting_port())
    lives, requests, batch = 4, 10, 50
    rows: list[Row] = []

    def read() -> None:
        with Server(server.url, give_up_after_s=60) as client:
            for found in follow(client, after="earliest"):
                rows.extend(found)
                if len(rows) >= lives * requests * batch:
                    return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    for life in range(lives):
        for part in range(requests):
            publish(server.http, f"t/{part % 3}", *(f"{life}-{part}-{one}" for one in range(batch)))
        server.kill()
        server.start()
    reader.join(30)
    assert [row.event["seq"] for row in rows] == list(range(1, lives * requests * batch + 1))


def test_an_open_stream_is_not_in_the_way_of_others(server: ServerProcess, http: Client, topic: str) -> None:
    """A stream reads in short transactions, and its connection answers nothing else meanwhile."""
    publish(http, topic, 1)
    with EventStream(server.port, topic=topic, after="earliest") as stream, RawConnection(server.port) as other:
        stream.receive_events(1)
        other.send(f"GET /events?topic={topic} HTTP/1.1\r\nHost: localhost\r\nAccept: {NDJSON}\r\n\r\n".encode())
        other._receive_until(b"", lambda data: b'"seq"' in data)
        stream.socket.sendall(b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n")
        (seq,) = publish(http, topic, 2)
        assert stream.receive_events(2)[-1] == seq
