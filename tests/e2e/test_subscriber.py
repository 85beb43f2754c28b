"""Subscribers and followers against a real server: what is handled, acknowledged, given back, and gone on from."""

import asyncio
import itertools
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import Launch
from e2e.server import DEADLINE_S, Client, ServerProcess, event, lasting_port, wait_until
from sekali.client import Follower, Gone, Inbox, Positions, Refused, Subscriber

_names = itertools.count()


@pytest.fixture
def topic() -> str:
    """Return a topic of this test's own, which is the name of its subscription as well."""
    return f"t{next(_names)}"


def at_once() -> float:
    return 0.0


def soon() -> float:
    return 0.05


def publish(http: Client, topic: str, ids: list[int]) -> None:
    answer = http.publish([event(topic, f"e-{number}", payload=number) for number in ids])
    assert answer.status == 200, answer


def figures(http: Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get_json(f"/subscriptions/{name}")
    return found


def consume(
    server: ServerProcess, name: str, handle: Callable[[Any], object], count: int, **options: Any
) -> Subscriber:
    """Run a subscriber until its handler has returned so often; every wait before a retry is none."""
    returned = itertools.count(1)

    def counting(one: Any) -> None:
        handle(one)
        if next(returned) == count:
            subscriber.stop()

    create = {"topic": f"{name}/**", "start": "earliest"} | options.pop("create", {})
    options = {"random_share": at_once} | options
    subscriber = Subscriber(server.url, name, counting, create=create, **options)
    with guarded(subscriber):
        subscriber.run()
    return subscriber


class guarded:
    """Stop a consumer that a test waits for too long, so that the test fails rather than hangs."""

    def __init__(self, consumer: Any) -> None:
        self._timer = threading.Timer(2 * DEADLINE_S, consumer.stop)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, kind: object, *_: object) -> None:
        was_in_time = self._timer.is_alive()
        self._timer.cancel()
        self._timer.join()
        assert was_in_time or kind is not None, "it was waited for too long"


def test_what_the_handler_returned_from_is_acknowledged_and_comes_no_more(server: ServerProcess, topic: str) -> None:
    publish(server.http, f"{topic}/a", [1, 2, 3])
    seen: list[tuple[Any, ...]] = []

    def handle(one: Any) -> None:
        assert figures(server.http, topic)["in_flight"] >= 1, "it is acknowledged before it is handled"
        seen.append((one["payload"], one["topic"], one["event_id"], one["attempt"]))

    counts = consume(server, topic, handle, 3).counts()
    assert seen == [(number, f"{topic}/a", f"e-{number}", 1) for number in (1, 2, 3)]
    assert (counts.acknowledged, counts.failed, counts.lost) == (3, 0, 0)
    assert figures(server.http, topic)["lag"] == 0


def test_an_exception_gives_the_event_back_and_nothing_of_its_topic_goes_past_it(
    server: ServerProcess, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    publish(server.http, f"{topic}/a", [1, 2, 3])
    seen: list[tuple[int, int]] = []

    def handle(one: Any) -> None:
        seen.append((one["payload"], one["attempt"]))
        if one["payload"] == 2 and one["attempt"] < 3:
            raise ValueError("not today")

    counts = consume(server, topic, handle, 3).counts()
    assert seen == [(1, 1), (2, 1), (2, 2), (2, 3), (3, 1)]
    assert (counts.acknowledged, counts.failed, counts.lost) == (3, 2, 0)
    assert figures(server.http, topic)["since_start"]["expired"] == 0
    assert "ValueError: not today" in caplog.text and "Traceback" in caplog.text


def test_without_an_order_the_others_go_on(server: ServerProcess, topic: str) -> None:
    publish(server.http, f"{topic}/a", [1, 2, 3])
    seen: list[tuple[int, int]] = []

    def handle(one: Any) -> None:
        seen.append((one["payload"], one["attempt"]))
        if one["payload"] == 1 and one["attempt"] == 1:
            raise ValueError("not today")

    consume(server, topic, handle, 3, create={"order": "none"})
    assert seen == [(1, 1), (2, 1), (3, 1), (1, 2)]


def test_an_event_that_always_fails_is_a_dead_letter_with_the_text_of_the_exception(
    server: ServerProcess, topic: str
) -> None:
    publish(server.http, f"{topic}/a", [1, 2])

    def handle(one: Any) -> None:
        if one["payload"] == 1:
            raise ValueError("never \ud800 and no \u2603" + "x" * 2000)

    consume(server, topic, handle, 1, create={"max_attempts": 3})
    (dead,) = server.http.get_json(f"/subscriptions/{topic}/dead-letters")
    assert dead["attempts"] == 3 and len(dead["error"]) == 1000
    assert dead["error"].startswith("ValueError: never \\ud800 and no \u2603xx")


def test_a_lease_lasts_as_long_as_its_handler(server: ServerProcess, topic: str) -> None:
    """The first half of the wait is longer than the lease, and shows that it would have run out."""
    lease_s = 1.5
    publish(server.http, f"{topic}/a", [1, 2])
    seen: list[tuple[int, int]] = []

    def handle(one: Any) -> None:
        seen.append((one["payload"], one["attempt"]))
        if one["payload"] == 1:
            threading.Event().wait(lease_s * 1.5)

    create = {"lease_seconds": lease_s}
    counts = consume(server, topic, handle, 2, create=create).counts()
    assert seen == [(1, 1), (2, 1)] and counts.lost == 0
    assert figures(server.http, topic)["since_start"]["expired"] == 0


def test_stop_finishes_the_event_at_hand_and_gives_the_rest_back_as_if_it_had_not_been_given(
    server: ServerProcess, topic: str
) -> None:
    publish(server.http, f"{topic}/a", [1, 2, 3])
    seen: list[tuple[int, int]] = []
    consume(server, topic, lambda one: seen.append((one["payload"], one["attempt"])), 1)
    now = figures(server.http, topic)
    assert (now["lag"], now["in_flight"]) == (2, 0)
    assert (now["since_start"]["delivered"], now["since_start"]["returned"]) == (3, 0), "there was nothing to give back"
    consume(server, topic, lambda one: seen.append((one["payload"], one["attempt"])), 2)
    assert seen == [(1, 1), (2, 1), (3, 1)]


def test_asked_to_it_ends_at_the_first_exception(server: ServerProcess, topic: str) -> None:
    publish(server.http, f"{topic}/a", [1, 2])

    def handle(one: Any) -> None:
        raise KeyError(one["payload"])

    with pytest.raises(KeyError, match="1"):
        consume(server, topic, handle, 1, stop_on_error=True)
    now = figures(server.http, topic)
    assert (now["in_flight"], now["since_start"]["returned"]) == (0, 1)


def test_what_ends_a_thread_ends_the_subscriber_and_leaves_nothing_leased(server: ServerProcess, topic: str) -> None:
    publish(server.http, f"{topic}/a", [1, 2])

    def handle(one: Any) -> None:
        sys.exit(f"at {one['payload']}")

    with pytest.raises(SystemExit, match="at 1"):
        consume(server, topic, handle, 1, concurrency=2)
    now = figures(server.http, topic)
    assert (now["in_flight"], now["lag"]) == (0, 2)


def test_workers_take_topics_side_by_side(server: ServerProcess, topic: str, caplog: pytest.LogCaptureFixture) -> None:
    for name in "abcd":
        publish(server.http, f"{topic}/{name}", [1, 2, 3])
    together = threading.Barrier(4)
    seen: list[tuple[str, int]] = []

    def handle(one: Any) -> None:
        if one["payload"] == 1:
            together.wait(DEADLINE_S)
        seen.append((one["topic"], one["payload"]))

    consume(server, topic, handle, 12, concurrency=4)
    for name in "abcd":
        assert [number for found, number in seen if found == f"{topic}/{name}"] == [1, 2, 3]
    assert "pool is full" not in caplog.text, "each has a connection of its own"


def test_a_batch_is_handled_and_fails_as_one(server: ServerProcess, topic: str) -> None:
    publish(server.http, f"{topic}/a", [1, 2, 3, 4, 5])
    seen: list[list[tuple[int, int]]] = []

    def handle(batch: Any) -> None:
        seen.append([(one["payload"], one["attempt"]) for one in batch])
        if seen == [[(1, 1), (2, 1)]]:
            raise ValueError("not today")

    counts = consume(server, topic, handle, 3, batch_events_max=2).counts()
    assert seen == [[(1, 1), (2, 1)], [(1, 2), (2, 2)], [(3, 1), (4, 1)], [(5, 1)]]
    assert (counts.acknowledged, counts.failed) == (5, 2)


def test_a_lease_that_was_lost_is_noticed(server: ServerProcess, topic: str, caplog: pytest.LogCaptureFixture) -> None:
    publish(server.http, f"{topic}/a", [1, 2])
    (first, _) = server.http.events(topic=f"{topic}/a")
    seen: list[int] = []

    def handle(one: Any) -> None:
        seen.append(one["payload"])
        if seen == [1]:  # somebody rewinds, which voids the lease
            body = b'{"seq": %d}' % first["seq"]
            assert server.http.request("POST", f"/subscriptions/{topic}/seek", body=body).status == 200

    counts = consume(server, topic, handle, 3, pull_events_max=1).counts()
    assert seen == [1, 1, 2] and counts.lost == 1
    assert "events whose lease was lost" in caplog.text


def test_a_server_that_dies_and_comes_back_is_waited_for(launch: Launch, topic: str) -> None:
    server = launch(PORT=lasting_port())
    publish(server.http, f"{topic}/a", list(range(20)))
    seen: list[int] = []

    def handle(one: Any) -> None:
        seen.append(one["payload"])
        if len(seen) == 5:
            server.kill()
            server.start()

    subscriber = Subscriber(
        server.url,
        topic,
        handle,
        create={"topic": f"{topic}/**", "start": "earliest"},
        pull_events_max=10,
        random_share=soon,
    )
    with subscriber:
        wait_until(lambda: len(set(seen)) == 20 and server.running, "everything is handled")
        wait_until(lambda: figures(server.http, topic)["lag"] == 0, "everything is acknowledged")
    counts = subscriber.counts()
    assert counts.lost >= 1, "the lease did not outlive the server"
    assert list(dict.fromkeys(seen)) == list(range(20)), "in order, but for what came again"


def test_the_subscription_is_made_or_changed_and_its_pause_stays(server: ServerProcess, topic: str) -> None:
    consume_nothing = Subscriber(server.url, topic, print)
    with pytest.raises(Refused, match=rf"sekali subscriptions create {topic}") as refused:
        consume_nothing.run()
    assert refused.value.status == 404
    publish(server.http, f"{topic}/a", [1])
    consume(server, topic, lambda one: None, 1, create={"max_attempts": 7})
    made = figures(server.http, topic)
    assert (made["topic"], made["max_attempts"], made["paused"]) == (f"{topic}/**", 7, False)
    body = b'{"topic": "%b/**", "start": "earliest", "paused": true}' % topic.encode()
    assert server.http.request("PUT", f"/subscriptions/{topic}", body=body).status == 200
    with Subscriber(server.url, topic, print, create={"topic": f"{topic}/**", "start": "earliest", "max_attempts": 8}):
        wait_until(lambda: figures(server.http, topic)["max_attempts"] == 8, "it is changed")
    assert figures(server.http, topic)["paused"] is True
    with pytest.raises(Refused, match="topic"):
        Subscriber(server.url, topic, print, create={"topic": "other"}).run()


def test_a_subscription_that_is_deleted_ends_its_subscribers(server: ServerProcess, topic: str) -> None:
    publish(server.http, f"{topic}/a", [1])
    with pytest.raises(Refused, match=f"no subscription {topic}"):
        consume(server, topic, lambda one: server.http.request("DELETE", f"/subscriptions/{topic}"), 2)


class TestAsyncio:
    def test_a_coroutine_runs_on_the_event_loop(self, server: ServerProcess, topic: str) -> None:
        publish(server.http, f"{topic}/a", [1, 2, 3])
        seen: list[tuple[int, int]] = []

        async def handle(one: Any) -> None:
            await asyncio.sleep(0)
            seen.append((one["payload"], threading.get_ident()))
            if one["payload"] == 2 and one["attempt"] == 1:
                raise ValueError("not today")
            if one["payload"] == 3:
                subscriber.stop()

        subscriber = Subscriber(
            server.url, topic, handle, create={"topic": f"{topic}/**", "start": "earliest"}, random_share=at_once
        )
        with pytest.raises(TypeError, match="run_async"):
            subscriber.start()
        asyncio.run(asyncio.wait_for(subscriber.run_async(), 2 * DEADLINE_S))
        assert seen == [(number, threading.get_ident()) for number in (1, 2, 2, 3)]
        assert subscriber.counts().acknowledged == 3

    def test_who_is_cancelled_finishes_the_event_at_hand(self, server: ServerProcess, topic: str) -> None:
        publish(server.http, f"{topic}/a", [1, 2])
        seen: list[int] = []

        async def test() -> None:
            begun, go_on = asyncio.Event(), asyncio.Event()

            async def handle(one: Any) -> None:
                begun.set()
                await go_on.wait()
                seen.append(one["payload"])

            subscriber = Subscriber(server.url, topic, handle, create={"topic": f"{topic}/**", "start": "earliest"})
            running = asyncio.create_task(subscriber.run_async())
            async with asyncio.timeout(2 * DEADLINE_S):
                await begun.wait()
                running.cancel()
                await asyncio.sleep(0)
                assert not running.done()
                go_on.set()
                with pytest.raises(asyncio.CancelledError):
                    await running

        asyncio.run(test())
        assert seen == [1]
        assert (figures(server.http, topic)["lag"], figures(server.http, topic)["in_flight"]) == (1, 0)


SIGNALLED = """
import signal, sys
from sekali.client import Subscriber
def handle(event):
    print(event["payload"], flush=True)
subscriber = Subscriber(sys.argv[1], sys.argv[2], handle, create={"topic": sys.argv[2] + "/**", "start": "earliest"})
signal.signal(signal.SIGTERM, lambda *_: subscriber.stop())
subscriber.run()
print("ended", subscriber.counts().acknowledged)
"""


def test_a_signal_handler_may_stop_it(server: ServerProcess, topic: str) -> None:
    publish(server.http, f"{topic}/a", [1])
    with subprocess.Popen(
        [sys.executable, "-c", SIGNALLED, server.url, topic], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=DEADLINE_S)[0] == "ended 1\n"
        assert process.returncode == 0


def test_with_an_inbox_the_effect_happens_once_although_the_event_comes_again(
    server: ServerProcess, topic: str, tmp_path: Path
) -> None:
    """The handler dies between its commit and the acknowledgement, which here is an exception in that place."""
    publish(server.http, f"{topic}/a", [1, 2])
    inbox = Inbox()
    attempts: list[int] = []
    with closing(sqlite3.connect(tmp_path / "billing.db", check_same_thread=False)) as connection:
        connection.execute("CREATE TABLE bills (number INTEGER)")
        inbox.create_table(connection)

        def handle(one: Any) -> None:
            attempts.append(one["attempt"])
            with connection:
                if inbox.once(connection, one):
                    connection.execute("INSERT INTO bills VALUES (?)", (one["payload"],))
            if one["payload"] == 1 and one["attempt"] == 1:
                raise ConnectionError("lost in between")

        consume(server, topic, handle, 2)
        assert attempts == [1, 2, 1]
        assert connection.execute("SELECT number FROM bills").fetchall() == [(1,), (2,)]


class TestFollower:
    def test_history_and_what_comes_then_with_positions_to_go_on_from(
        self, server: ServerProcess, topic: str, tmp_path: Path
    ) -> None:
        publish(server.http, topic, [1, 2, 3])
        positions = Positions()
        seen: list[int] = []
        with closing(sqlite3.connect(tmp_path / "read.db", check_same_thread=False)) as connection:
            positions.create_table(connection)

            def handle(one: Any, position: str) -> None:
                seen.append(one["payload"])
                with connection:
                    positions.store(connection, "report", position)
                if one["payload"] in {2, 4}:
                    follower.stop()

            for expected in ([1, 2], [1, 2, 3, 4]):
                after = positions.load(connection, "report") or "earliest"
                follower = Follower(server.url, handle, topic=topic, after=after)
                if expected[-1] == 4:
                    publish(server.http, topic, [4, 5])
                with guarded(follower):
                    follower.run()
                assert seen == expected

    def test_an_exception_holds_up_what_follows(
        self, server: ServerProcess, topic: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        publish(server.http, topic, [1, 2, 3])
        seen: list[int] = []

        def handle(one: Any, position: str) -> None:
            seen.append(one["payload"])
            if seen.count(2) in {1, 2} and one["payload"] == 2:
                raise ValueError("not today")
            if one["payload"] == 3:
                follower.stop()

        follower = Follower(server.url, handle, topic=topic, after="earliest", random_share=at_once)
        with guarded(follower):
            follower.run()
        assert seen == [1, 2, 2, 2, 3]
        assert "not today" in caplog.text

    def test_batches_have_the_position_of_their_last_event(self, server: ServerProcess, topic: str) -> None:
        publish(server.http, topic, [1, 2, 3])
        seen: list[tuple[list[int], str]] = []

        def handle(batch: Any, position: str) -> None:
            seen.append(([one["payload"] for one in batch], position))
            if batch[-1]["payload"] == 3:
                follower.stop()

        follower = Follower(server.url, handle, topic=topic, after=0, batch_events_max=2)
        with guarded(follower):
            follower.run()
        assert [number for batch, _ in seen for number in batch] == [1, 2, 3] and len(seen) < 3
        log_id = server.http.stats()["log_id"]
        seqs = {one["payload"]: one["seq"] for one in server.http.events(topic=topic)}
        assert [position for _, position in seen] == [f"{log_id}-{seqs[batch[-1]]}" for batch, _ in seen]

    def test_asked_to_it_ends_at_the_first_exception(self, server: ServerProcess, topic: str) -> None:
        publish(server.http, topic, [1])

        def handle(one: Any, position: str) -> None:
            raise KeyError("first")

        follower = Follower(server.url, handle, topic=topic, after="earliest", stop_on_error=True)
        with pytest.raises(KeyError, match="first"), guarded(follower):
            follower.run()

    def test_a_position_of_another_log_says_what_to_do(self, server: ServerProcess) -> None:
        with pytest.raises(Gone, match="start again, with after='earliest' or 'latest'"):
            Follower(server.url, print, after="0" * 32 + "-5").run()
        with pytest.raises(Gone, match="above the newest event"):
            Follower(server.url, print, after=10**9).run()

    def test_it_ends_at_once_although_nothing_comes(self, server: ServerProcess, topic: str) -> None:
        """The server would have something to say only after 15 s."""
        begun = threading.Event()
        follower = Follower(server.url, lambda one, position: begun.set(), topic=topic)
        follower.start()
        numbers = itertools.count()

        def is_live() -> bool:
            publish(server.http, topic, [next(numbers)])
            return begun.is_set()

        wait_until(is_live, "it follows")
        assert follower.close(timeout_s=10)

    def test_it_goes_on_behind_a_server_that_dies(self, launch: Launch, topic: str) -> None:
        server = launch(PORT=lasting_port())
        publish(server.http, topic, [1, 2, 3])
        seen: list[int] = []
        with Follower(
            server.url,
            lambda one, position: seen.append(one["payload"]),
            topic=topic,
            after="earliest",
            random_share=soon,
        ):
            wait_until(lambda: len(seen) == 3, "history is read")
            server.kill()
            server.start()
            publish(server.http, topic, [4])
            wait_until(lambda: len(seen) == 4, "it goes on")
        assert seen == [1, 2, 3, 4]

    def test_a_coroutine_runs_on_the_event_loop(self, server: ServerProcess, topic: str) -> None:
        publish(server.http, topic, [1])
        threads: list[int] = []

        async def handle(one: Any, position: str) -> None:
            threads.append(threading.get_ident())
            follower.stop()

        follower = Follower(server.url, handle, topic=topic, after="earliest")
        asyncio.run(asyncio.wait_for(follower.run_async(), 2 * DEADLINE_S))
        assert threads == [threading.get_ident()]


def test_a_lease_that_is_released_is_as_if_it_had_not_been_given(server: ServerProcess, topic: str) -> None:
    publish(server.http, f"{topic}/a", [1, 2])
    body = b'{"topic": "%b/**", "start": "earliest"}' % topic.encode()
    assert server.http.request("PUT", f"/subscriptions/{topic}", body=body).status == 201

    def post(what: str, document: bytes) -> Any:
        return server.http.request("POST", f"/subscriptions/{topic}/{what}", body=document)

    first = post("pull", b"{}").json()
    assert [one["attempt"] for one in first["events"]] == [1, 1]
    assert post("pull", b"{}").json()["lease"] is None, "the topic is with the first"
    lease = b'{"lease": "%b"}' % first["lease"].encode()
    assert post("release", lease).status == 204
    again = post("pull", b"{}").json()
    assert [one["attempt"] for one in again["events"]] == [1, 1] and again["lease"] != first["lease"]
    assert post("release", lease).status == 204, "what is over may be released again"
    assert figures(server.http, topic)["in_flight"] == 2, "and it is not somebody else's"
    refused = post("release", b"{}")
    assert refused.status == 422 and "lease" in refused.json()["detail"]
    assert server.http.request("POST", "/subscriptions/nobody/release", body=lease).status == 404
