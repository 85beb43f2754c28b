"""The subscriber against a server that does what a test tells it; leases without one."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fake_server import DEADLINE_S, FakeServer, fake_server, json_reply, problem
from sekali.client import Follower, NotSekali, Subscriber
from sekali.client.leases import Lease

SUBSCRIPTION = {"name": "billing", "topic": "orders", "order": "topic", "lease_seconds": 30.0, "paused": False}
NOTHING: dict[str, Any] = {"lease": None, "expires_at": None, "events": []}


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


def pulled(*seqs: int, **fields: Any) -> dict[str, Any]:
    events = [{"topic": "orders", "event_id": f"o-{seq}", "seq": seq, "attempt": 1} | fields for seq in seqs]
    return {"lease": "L", "expires_at": "2026-11-24T13:07:56Z", "events": events}


def run(fake: FakeServer, handle: Callable[[Any], object], *answers: Any, **options: Any) -> list[tuple[str, Any]]:
    """Give a subscriber these answers; return what it asked and told, but for pulls. The last answer stops it."""
    fake.script.extend(json_reply(answer) for answer in (SUBSCRIPTION, *answers))
    subscriber = Subscriber(fake.url, "billing", handle, **{"random_share": lambda: 0.5} | options)
    seen = fake.reply

    def reply(request: Any) -> Any:
        if not fake.script:
            subscriber.stop()
            fake.script.append(json_reply(NOTHING))
        return seen(request)

    fake.reply = reply  # type: ignore[method-assign]
    subscriber.run()
    told = [(request.path.rpartition("/")[2], json.loads(request.body or b"null")) for request in fake.requests[1:]]
    return [(what, document) for what, document in told if what != "pull"]


def failing(*seqs: int) -> Callable[[Any], None]:
    def handle(one: Any) -> None:
        if one["seq"] in seqs:
            raise ValueError("no")

    return handle


def nack(seqs: list[int], delay: float, error: str = "ValueError: no") -> tuple[str, Any]:
    return "nack", {"lease": "L", "seqs": seqs, "delay": delay, "error": error}


RELEASE = ("release", {"lease": "L"})


def ack(*seqs: int) -> tuple[str, Any]:
    return "ack", {"lease": "L", "seqs": list(seqs)}


TOLD: dict[str, Any] = {"lost": []}


def test_quick_handlers_share_an_acknowledgement(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekali.client.subscriber.ACK_AFTER_S", DEADLINE_S)
    assert run(fake, failing(), pulled(1, 2, 3), TOLD) == [ack(1, 2, 3)]


def test_slow_ones_do_not_wait_for_the_next(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekali.client.subscriber.ACK_AFTER_S", 0.0)
    assert run(fake, failing(), pulled(1, 2), TOLD, TOLD) == [ack(1), ack(2)]


@pytest.mark.parametrize(("attempt", "delay"), [(1, 0.5), (2, 1.0), (5, 8.0), (40, 150.0)])
def test_the_delay_grows_with_the_attempts(fake: FakeServer, attempt: int, delay: float) -> None:
    """With full jitter: here it is half of its bound."""
    told = run(fake, failing(2), pulled(1, 2, 3, attempt=attempt), TOLD, TOLD, TOLD)
    assert [one for one in told if one[0] != "ack"] == [nack([2], delay), RELEASE]
    assert ack(1) in told


def test_what_cannot_be_read_back_ends_as_a_dead_letter_and_never_comes_to_the_handler(fake: FakeServer) -> None:
    answer = pulled(1, 3)
    answer["events"].insert(1, {"seq": 2, "error": "the row is damaged", "attempt": 1})
    seen: list[int] = []
    told = run(fake, lambda batch: seen.extend(one["seq"] for one in batch), answer, TOLD, TOLD, {}, batch_events_max=9)
    assert seen == [1], "the topic of what is damaged is not known, so nothing goes past it"
    assert nack([2], 0.5, "ClientError: it cannot be read back: the row is damaged") in told and RELEASE in told


def busy_until_lost(subscriber: Subscriber, events: int) -> None:
    """Be a handler that is busy until so many events were lost, and the last one."""
    pause = threading.Event()
    for _ in range(int(DEADLINE_S / 0.001)):
        if subscriber.counts().lost == events:
            break
        pause.wait(0.001)
    subscriber.stop()


def test_a_lease_is_extended_while_its_handler_is_busy(fake: FakeServer) -> None:
    answers = ({"held": [1, 2]}, {"held": [1]}, TOLD)  # twice that the lease goes on
    fake.script.extend(map(json_reply, (SUBSCRIPTION | {"lease_seconds": 0.3}, pulled(1, 2), *answers)))
    subscriber = Subscriber(fake.url, "billing", lambda one: busy_until_lost(subscriber, 1))
    subscriber.run()
    asked = [request.path.rpartition("/")[2] for request in fake.requests]
    assert asked == ["billing", "pull", "extend", "extend", "ack"]
    assert (subscriber.counts().lost, subscriber.counts().acknowledged) == (1, 1)


def test_a_lease_that_is_over_is_not_worked_off(fake: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    fake.script.extend(map(json_reply, (SUBSCRIPTION | {"lease_seconds": 0.3}, pulled(1, 2))))
    fake.script.append(problem(410, "The lease is over", "pull again"))
    subscriber = Subscriber(fake.url, "billing", lambda one: busy_until_lost(subscriber, 2))
    subscriber.run()
    assert [request.path.rpartition("/")[2] for request in fake.requests] == ["billing", "pull", "extend"]
    assert (subscriber.counts().lost, subscriber.counts().acknowledged) == (2, 0)
    assert "events whose lease was lost" in caplog.text


@pytest.mark.parametrize("make", [lambda url: Subscriber(url, "billing", print), lambda url: Follower(url, print)])
def test_a_wait_that_the_server_asked_for_ends_with_it(fake: FakeServer, make: Callable[[str], Any]) -> None:
    fake.script.append(problem(503, "The server has no room", "the queue is full", Retry_After="3600"))
    consumer = make(fake.url)
    consumer.start()
    fake.wait_for_requests(1)
    assert consumer.close(DEADLINE_S) is True
    assert len(fake.requests) == 1


@pytest.mark.parametrize("answers", [[{}], [SUBSCRIPTION, {}], [SUBSCRIPTION, {"lease": "L", "events": [7]}]])
def test_what_is_no_sekali_is_said_to_be_none(fake: FakeServer, answers: list[Any]) -> None:
    fake.script.extend(map(json_reply, answers))
    with pytest.raises(NotSekali, match="Check the URL"):
        Subscriber(fake.url, "billing", print).run()


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"batch_events_max": 0},
        {"topics_max": 0},
        {"pull_events_max": 0},
        {"pull_events_max": 1001},
        {"batch_events_max": 101},
    ],
)
def test_bad_arguments_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match="1"):
        Subscriber("http://127.0.0.1:1", "billing", print, **options)
    if options == {"batch_events_max": 0}:
        with pytest.raises(ValueError, match="1 or more"):
            Follower("http://127.0.0.1:1", print, **options)


def test_one_that_has_run_does_not_run_again() -> None:
    subscriber = Subscriber("http://127.0.0.1:1", "billing", print)
    subscriber.stop()
    subscriber.run()
    with pytest.raises(RuntimeError, match="make another one"):
        subscriber.run()


def test_a_child_of_a_fork_has_a_subscriber_that_is_as_new(fake: FakeServer) -> None:
    fake.script.append(problem(503, "The server has no room", "the queue is full", Retry_After="3600"))
    with Subscriber(fake.url, "billing", print) as subscriber:
        fake.wait_for_requests(1)
        child = os.fork()
        if child == 0:
            try:
                subscriber.stop()
                subscriber.run()  # it would not run a second time
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


class TestLease:
    def test_a_batch_is_cut_where_it_is_full_and_around_what_cannot_be_read(self) -> None:
        events = [*pulled(1, 2, 3)["events"], {"seq": 4, "error": "", "attempt": 1}, *pulled(5)["events"]]
        lease = Lease("L", events, is_ordered=True)
        assert [[one["seq"] for one in part] for part in lease.parts(2)] == [[1, 2], [3], [4], [5]]

    def test_what_is_lost_is_neither_worked_off_nor_acknowledged(self) -> None:
        lease = Lease("L", pulled(1, 2, 3)["events"], is_ordered=False)
        parts = lease.parts(1)
        lease.done(next(parts))
        assert lease.lose([1, 3]) == [2]
        assert [one["seq"] for part in parts for one in part] == [3]
        assert lease.take_done() == [1] and lease.lose([3]) == [], "what was told is not lost"
        assert lease.lose() == [3] and not lease.is_held

    def test_in_order_a_failure_is_the_end_of_it(self) -> None:
        lease = Lease("L", pulled(1, 2, 3)["events"], is_ordered=True)
        parts = lease.parts(1)
        lease.done(next(parts))
        assert lease.fail(next(parts)) == [2] and list(parts) == []
        assert lease.lose([1]) == [], "what the server takes back is not lost"
        assert lease.take_done() == [1] and lease.is_held

    def test_without_an_order_the_others_stay(self) -> None:
        lease = Lease("L", pulled(1, 2)["events"], is_ordered=False)
        parts = lease.parts(1)
        assert lease.fail(next(parts)) == [1] and len(list(parts)) == 1 and lease.is_held
