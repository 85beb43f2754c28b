"""The publisher against a server that does what a test tells it. Waits between attempts are none, unless asked for."""

import json
import logging
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fake_server import HANG_UP, USUAL, FakeServer, Reply, fake_server, json_reply, problem
from sekali.client import (
    BufferFull,
    ClientError,
    Event,
    Limits,
    NotSekali,
    Publisher,
    PublisherClosed,
    Refused,
    Unreachable,
    Verdict,
    new_event,
)

DEADLINE_S = 30.0  # only ever reached by a test that fails
BUSY = problem(503, "The server has no room", "the queue is full")
NO_COUNTS: dict[str, Any] = dict.fromkeys(("received", "stored", "duplicate", "conflict", "invalid"), 0)
Make = Callable[..., Publisher]


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


@pytest.fixture
def make(fake: FakeServer) -> Iterator[Make]:
    """Make publishers for the fake server; they are closed."""
    made: list[Publisher] = []

    def publisher(**options: Any) -> Publisher:
        made.append(Publisher(options.pop("url", fake.url), **({"random_share": lambda: 0.0} | options)))
        return made[-1]

    yield publisher
    fake.gate.set()
    for one in made:
        one.close(0)


def _sent(fake: FakeServer) -> list[Any]:
    """Return the payloads of each request."""
    return [[line["payload"] for line in request.lines] for request in fake.requests]


def test_publish_returns_at_once_and_the_delivery_has_the_verdict(fake: FakeServer, make: Make) -> None:
    fake.gate.clear()
    publisher = make(source="shop")
    delivery = publisher.publish("orders", {"total": 42})
    fake.wait_for_requests(1)
    assert not delivery.done()
    with pytest.raises(TimeoutError):
        delivery.result(0)
    fake.gate.set()
    assert delivery.result(DEADLINE_S) == Verdict("stored", 1) and delivery.done()
    assert fake.events["orders", delivery.event_id]["source"] == "shop"
    assert delivery.topic == "orders"


def test_fields_of_an_event_are_its_own(fake: FakeServer, make: Make) -> None:
    publisher = make(source="shop")
    fields: dict[str, Any] = {"event_id": "o-1", "timestamp": "2026-11-23T10:00:00Z", "source": "x", "source_seq": 3}
    publisher.publish("orders", 1, **fields).result(DEADLINE_S)
    assert {name: fake.events["orders", "o-1"][name] for name in fields} == fields


def test_every_verdict_is_told(fake: FakeServer, make: Make) -> None:
    told: list[tuple[Event, Verdict]] = []
    publisher = make(on_verdict=lambda event, verdict: told.append((event, verdict)))
    first = publisher.publish("t", 1, event_id="a")
    assert first.result(DEADLINE_S).ok
    assert publisher.publish("t", 1, event_id="a").result(DEADLINE_S) == Verdict("duplicate", 1)
    conflict = publisher.publish("t", 2, event_id="a").result(DEADLINE_S)
    assert conflict == Verdict("conflict", 1) and not conflict.ok
    fake.script.append(
        json_reply(NO_COUNTS | {"invalid": 1, "results": [{"outcome": "invalid", "error": "topic: no"}]}, 422)
    )
    invalid = publisher.publish("t", 3).result(DEADLINE_S)
    assert invalid == Verdict("invalid", None, "topic: no") and not invalid.ok
    publisher.close()
    assert [verdict.outcome for _, verdict in told] == ["stored", "duplicate", "conflict", "invalid"]
    assert told[0][0].event_id == "a" and json.loads(told[0][0].json)["payload"] == 1
    counts = publisher.counts()
    assert (counts.published, counts.stored, counts.duplicate, counts.conflict, counts.invalid) == (4, 1, 1, 1, 1)
    assert (counts.dropped, counts.held_events, counts.held_bytes) == (0, 0, 0)


def test_what_nobody_asks_for_is_logged(fake: FakeServer, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    publisher = make()
    for payload in range(3):
        publisher.publish("t", payload, event_id="a").result(DEADLINE_S)
    publisher.close()
    lines = [record.getMessage() for record in caplog.records if record.name == "sekali.client"]
    assert "t/a: conflict" in lines[0]
    assert sum(int(line.split(": ")[1].split(".")[0]) for line in lines) == 2


def test_what_waits_meanwhile_goes_together_and_in_order(fake: FakeServer, make: Make) -> None:
    fake.gate.clear()
    publisher = make(limits=Limits(batch_events_max=4, linger_s=0))
    publisher.publish("t", 0)
    fake.wait_for_requests(1)
    for number in range(1, 10):
        publisher.publish("t", number)
    fake.gate.set()
    assert publisher.flush(DEADLINE_S)
    assert _sent(fake) == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]


def test_a_flush_does_not_linger(fake: FakeServer, make: Make) -> None:
    publisher = make(limits=Limits(linger_s=1_000))
    deliveries = [publisher.publish("t", number) for number in range(3)]
    assert publisher.flush(DEADLINE_S)
    assert all(delivery.done() for delivery in deliveries) and _sent(fake) == [[0, 1, 2]]


def test_a_flush_says_when_it_is_not_done_in_time(fake: FakeServer, make: Make) -> None:
    fake.gate.clear()
    publisher = make()
    publisher.publish("t", 1)
    assert not publisher.flush(0)
    assert make().flush(0), "nothing was published there"


def test_a_flush_does_not_wait_for_what_comes_later(fake: FakeServer, make: Make) -> None:
    fake.gate.clear()
    publisher = make(limits=Limits(linger_s=0))
    publisher.publish("t", 1)
    fake.wait_for_requests(1)
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(publisher.flush(DEADLINE_S)))
    thread.start()
    _until(lambda: publisher._pump._line._hurry_to == 1)
    publisher.publish("t", 2)
    fake.script.extend([USUAL, *[BUSY] * 100_000])
    fake.gate.set()
    thread.join(DEADLINE_S)
    assert results == [True] and publisher.counts().held_events == 1
    fake.script.clear()


@pytest.mark.parametrize("trouble", [HANG_UP, *(problem(status, "t", "d") for status in (408, 429, 502, 503, 504))])
def test_what_may_succeed_later_is_sent_again_as_it_was(fake: FakeServer, make: Make, trouble: Reply | str) -> None:
    fake.script.extend([trouble] * 20)
    assert make().publish("t", 1).result(DEADLINE_S).outcome == "stored"
    assert len(fake.requests) == 21 and len({request.body for request in fake.requests}) == 1


def test_nothing_overtakes_what_is_sent_again(fake: FakeServer, make: Make) -> None:
    fake.gate.clear()
    fake.script.extend([BUSY, HANG_UP, BUSY])
    publisher = make(limits=Limits(linger_s=0))
    publisher.publish("t", 0)
    fake.wait_for_requests(1)
    publisher.publish("t", 1)
    fake.gate.set()
    assert publisher.flush(DEADLINE_S)
    assert _sent(fake) == [[0], [0], [0], [0], [1]]


def test_it_waits_as_long_as_the_server_asks(fake: FakeServer, make: Make) -> None:
    fake.script.append(problem(503, "t", "d", Retry_After="1"))
    started_s = time.monotonic()
    make().publish("t", 1).result(DEADLINE_S)
    assert time.monotonic() - started_s >= 1


def test_the_waits_grow_with_each_failure_and_begin_anew_after_a_success(fake: FakeServer, make: Make) -> None:
    publisher = make(random_share=lambda: 0.001, limits=Limits(linger_s=0))
    waits_s: list[float] = []
    original = publisher._pump._changed.wait

    def wait(timeout: float | None = None) -> bool:
        if timeout is not None:
            waits_s.append(timeout)
        return original(timeout)

    publisher._pump._changed.wait = wait  # type: ignore[method-assign]
    fake.script.extend([BUSY] * 8)
    publisher.publish("t", 1).result(DEADLINE_S)
    assert 0.0035 < max(waits_s) <= 0.005
    waits_s.clear()
    fake.script.extend([BUSY] * 3)
    publisher.publish("t", 2).result(DEADLINE_S)
    assert 0 < max(waits_s) <= 0.0004


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (problem(401, "No key", "give one"), Refused),
        (problem(403, "Not with this key", "…"), Refused),
        (problem(404, "No such route", "…"), Refused),
        (problem(500, "A defect", "…"), Refused),
        (Reply(200, b"<h1>It works!</h1>"), NotSekali),
        (json_reply(NO_COUNTS | {"results": [3]}), NotSekali),
    ],
)
def test_what_would_fail_again_is_told_and_not_repeated(
    fake: FakeServer, make: Make, reply: Reply, error: type[ClientError]
) -> None:
    dropped: list[tuple[Event, Exception]] = []
    publisher = make(on_drop=lambda event, why: dropped.append((event, why)))
    fake.script.append(reply)
    delivery = publisher.publish("t", 1)
    with pytest.raises(error):
        delivery.result(DEADLINE_S)
    assert [(event.event_id, type(why)) for event, why in dropped] == [(delivery.event_id, error)]
    assert publisher.publish("t", 2).result(DEADLINE_S).ok, "the next one suffers from it"
    assert len(fake.requests) == 2 and publisher.counts().dropped == 1


def test_a_batch_that_is_too_large_is_split_in_order(fake: FakeServer, make: Make) -> None:
    fake.batch_events_max = 2
    publisher = make(limits=Limits(linger_s=1_000))
    deliveries = [publisher.publish("t", number) for number in range(5)]
    assert publisher.flush(DEADLINE_S)
    assert [delivery.result(0).seq for delivery in deliveries] == [1, 2, 3, 4, 5]


def test_of_a_split_batch_only_the_rest_is_sent_again(fake: FakeServer, make: Make) -> None:
    fake.batch_events_max = 2
    fake.script.extend([USUAL, USUAL, BUSY])  # too large, the first half, the second
    publisher = make(limits=Limits(linger_s=1_000))
    deliveries = [publisher.publish("t", number) for number in range(4)]
    assert publisher.flush(DEADLINE_S)
    assert [delivery.result(0) for delivery in deliveries] == [Verdict("stored", seq) for seq in (1, 2, 3, 4)]
    assert _sent(fake) == [[0, 1, 2, 3], [0, 1], [2, 3], [2, 3]]


def test_an_event_too_large_by_itself_is_invalid(fake: FakeServer, make: Make) -> None:
    fake.batch_events_max = 0
    assert make().publish("t", 1).result(DEADLINE_S).outcome == "invalid"


def test_an_event_is_given_up_at_its_deadline(fake: FakeServer, make: Make) -> None:
    fake.script.extend([BUSY] * 100_000)
    publisher = make(limits=Limits(give_up_after_s=0.2), on_drop=lambda event, why: None)
    delivery = publisher.publish("t", 1)
    with pytest.raises(Unreachable, match="the queue is full"):
        delivery.result(DEADLINE_S)
    assert len(fake.requests) > 1
    fake.script.clear()
    assert publisher.publish("t", 2).result(DEADLINE_S).ok


def test_a_deadline_does_not_wait_for_retry_after(fake: FakeServer, make: Make) -> None:
    fake.script.append(problem(503, "t", "d", Retry_After="3600"))
    publisher = make(limits=Limits(give_up_after_s=0.1), on_drop=lambda event, why: None)
    with pytest.raises(Unreachable):
        publisher.publish("t", 1).result(DEADLINE_S)


class _Full:
    """A publisher with room for two, whose first event is under way and not answered."""

    def __init__(self, fake: FakeServer, make: Make, **options: Any) -> None:
        self.dropped: list[Event] = []
        fake.gate.clear()
        self.publisher = make(
            limits=Limits(buffer_events_max=2, linger_s=0, give_up_after_s=options.pop("give_up_after_s", math.inf)),
            on_drop=lambda event, why: self.dropped.append(event),
            **options,
        )
        self.first = self.publisher.publish("t", 1)
        fake.wait_for_requests(1)
        self.second = self.publisher.publish("t", 2)


def test_block_waits_for_room_in_turn(fake: FakeServer, make: Make) -> None:
    full = _Full(fake, make)
    line = full.publisher._pump._line
    deliveries: dict[int, Any] = {}
    threads = []
    for number in (3, 4, 5):
        threads.append(threading.Thread(target=lambda n=number: deliveries.update({n: full.publisher.publish("t", n)})))
        threads[-1].start()
        _until(lambda count=number - 2: len(line._outside) == count)  # type: ignore[misc]
    assert not deliveries
    fake.gate.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert full.publisher.flush(DEADLINE_S)
    assert [payload for request in _sent(fake) for payload in request] == [1, 2, 3, 4, 5]
    assert all(delivery.result(0).ok for delivery in deliveries.values()) and full.dropped == []


def _until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline_s
        pause.wait(0.002)


def test_who_waits_for_room_is_told_when_it_is_given_up(fake: FakeServer, make: Make) -> None:
    full = _Full(fake, make, give_up_after_s=0.01)
    outside = full.publisher._pump._line._outside
    errors: list[BaseException] = []

    def publish() -> None:
        try:
            full.publisher.publish("t", 3)
        except Unreachable as error:
            errors.append(error)

    thread = threading.Thread(target=publish)
    thread.start()
    _until(lambda: bool(outside) and time.monotonic() > outside[0].deadline_s)
    fake.script.append(BUSY)
    fake.gate.set()
    thread.join(DEADLINE_S)
    assert len(errors) == 1 and len(full.dropped) == 3


def test_who_waits_for_room_can_be_interrupted_and_has_published_nothing(fake: FakeServer, make: Make) -> None:
    full = _Full(fake, make)
    entry = full.publisher.offer(new_event("t", 3))
    assert entry.accepted is not None

    class Interrupted:
        def result(self) -> None:
            raise KeyboardInterrupt

    entry_offer = full.publisher.offer

    def offer(event: Event, *, may_wait: bool = True) -> Any:
        found = entry_offer(event, may_wait=may_wait)
        found.accepted = Interrupted()  # type: ignore[assignment]
        return found

    full.publisher.offer = offer  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        full.publisher.publish("t", 4)
    fake.gate.set()
    assert full.publisher.flush(DEADLINE_S)
    assert [payload for request in _sent(fake) for payload in request] == [1, 2, 3]
    assert full.publisher.counts().published == 3


def test_raise(fake: FakeServer, make: Make) -> None:
    full = _Full(fake, make, when_full="raise")
    with pytest.raises(BufferFull):
        full.publisher.publish("t", 3)
    assert full.dropped == [] and full.publisher.counts().published == 2


def test_drop_newest(fake: FakeServer, make: Make) -> None:
    full = _Full(fake, make, when_full="drop_newest")
    third = full.publisher.publish("t", 3)
    with pytest.raises(BufferFull):
        third.result(0)
    assert [event.event_id for event in full.dropped] == [third.event_id]
    assert full.publisher.counts().dropped == 1 and full.publisher.counts().published == 3


def test_drop_oldest(fake: FakeServer, make: Make) -> None:
    full = _Full(fake, make, when_full="drop_oldest")
    third = full.publisher.publish("t", 3)
    with pytest.raises(BufferFull):
        full.second.result(0)
    fake.gate.set()
    assert third.result(DEADLINE_S).ok and full.first.result(DEADLINE_S).ok
    assert [event.event_id for event in full.dropped] == [full.second.event_id]


def test_publish_or_drop_never_waits(fake: FakeServer, make: Make) -> None:
    full = _Full(fake, make, when_full="block")
    full.publisher.publish_or_drop(new_event("t", 3))
    assert len(full.dropped) == 1
    counts = full.publisher.counts()
    assert (counts.published, counts.dropped) == (3, 1)
    full.publisher.publish_or_drop(Event("t", "large", b"x" * 100_000_000))
    assert full.publisher.counts().dropped == 2
    fake.gate.set()
    full.publisher.close()
    full.publisher.publish_or_drop(new_event("t", 4))
    assert full.publisher.counts().dropped == 3


def test_an_outage_is_ridden_out_with_a_line_now_and_then(
    fake: FakeServer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    fake.script.extend([BUSY] * 50)
    make().publish("t", 1).result(DEADLINE_S)
    lines = [record.getMessage() for record in caplog.records if record.name == "sekali.client"]
    assert len(lines) == 1 and "the queue is full" in lines[0]


def test_close_waits_for_everything_and_takes_nothing_more(fake: FakeServer, make: Make) -> None:
    with make(limits=Limits(linger_s=1_000)) as publisher:
        deliveries = [publisher.publish("t", number) for number in range(10)]
    assert all(delivery.result(0).ok for delivery in deliveries)
    with pytest.raises(PublisherClosed):
        publisher.publish("t", 11)
    assert publisher.close() is True, "closing again"
    assert publisher._pump._threads and not any(thread.is_alive() for thread in publisher._pump._threads)


def test_what_is_left_when_closing_takes_too_long_is_told(fake: FakeServer, make: Make) -> None:
    full = _Full(fake, make)
    blocked: list[BaseException] = []

    def publish() -> None:
        try:
            full.publisher.publish("t", 3)
        except ClientError as error:
            blocked.append(error)

    thread = threading.Thread(target=publish)
    thread.start()
    _until(lambda: len(full.publisher._pump._line._outside) == 1)
    assert full.publisher.close(0) is False
    thread.join(DEADLINE_S)
    assert [type(error) for error in blocked] == [PublisherClosed]
    for delivery in (full.first, full.second):
        with pytest.raises(PublisherClosed):
            delivery.result(0)
    assert len(full.dropped) == 3 and full.publisher.counts().dropped == 3
    fake.gate.set()
    for thread in full.publisher._pump._threads:
        thread.join(DEADLINE_S)
    assert full.publisher.counts().stored == 0, "the late answer was counted beside the drop"


def test_close_cuts_a_long_wait_short_at_its_time(fake: FakeServer, make: Make) -> None:
    fake.script.append(problem(503, "t", "d", Retry_After="3600"))
    publisher = make(on_drop=lambda event, why: None)
    delivery = publisher.publish("t", 1)
    fake.wait_for_requests(1)
    assert publisher.close(0.1) is False and delivery.done()
    for thread in publisher._pump._threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_many_threads_publish_each_event_once_and_each_in_its_order(fake: FakeServer, make: Make) -> None:
    fake.script.extend([USUAL, BUSY, HANG_UP, USUAL, BUSY] * 5)
    publisher = make(limits=Limits(buffer_events_max=50, batch_events_max=7))
    deliveries: list[Any] = []

    def publish(topic: str) -> None:
        for number in range(100):
            deliveries.append(publisher.publish(topic, number))

    threads = [threading.Thread(target=publish, args=(f"t{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert publisher.close(DEADLINE_S)
    assert Counter(delivery.result(0).outcome for delivery in deliveries) == {"stored": 800}
    for number in range(8):
        stored = [event for (topic, _), event in fake.events.items() if topic == f"t{number}"]
        assert [event["payload"] for event in stored] == list(range(100))


def test_several_connections_work_at_once(fake: FakeServer, make: Make) -> None:
    fake.gate.clear()
    publisher = make(connections=3, limits=Limits(linger_s=0, batch_events_max=1))
    deliveries = [publisher.publish("t", number) for number in range(6)]
    fake.wait_for_requests(3)
    fake.gate.set()
    assert publisher.flush(DEADLINE_S) and all(delivery.result(0).ok for delivery in deliveries)
    assert sorted(payload for request in _sent(fake) for payload in request) == list(range(6))


def test_the_key_is_sent_and_may_come_from_the_environment(
    fake: FakeServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(api_key="one.secret").publish("t", 1).result(DEADLINE_S)
    monkeypatch.setenv("SEKALI_API_KEY", "two.secret")
    make().publish("t", 1).result(DEADLINE_S)
    make(api_key="three.secret").publish("t", 1).result(DEADLINE_S)
    monkeypatch.delenv("SEKALI_API_KEY")
    make().publish("t", 1).result(DEADLINE_S)
    keys = [request.headers.get("Authorization") for request in fake.requests]
    assert keys == ["Bearer one.secret", "Bearer two.secret", "Bearer three.secret", None]
    assert {request.headers["User-Agent"] for request in fake.requests} == {"sekali-client"}


def test_callbacks_that_fail_or_publish_do_no_harm(fake: FakeServer, make: Make, caplog: Any) -> None:
    again: list[Any] = []

    def on_verdict(event: Event, verdict: Verdict) -> None:
        if event.event_id == "first":
            again.append(publisher.publish("t", 2))
            raise RuntimeError("mine")

    publisher = make(on_verdict=on_verdict)
    delivery = publisher.publish("t", 1, event_id="first")
    delivery.add_done_callback(lambda one: again.append(one.event_id))
    assert delivery.result(DEADLINE_S).ok
    _until(lambda: len(again) == 2)
    assert publisher.flush(DEADLINE_S) and "mine" in caplog.text
    assert next(one for one in again if one != "first").result(0).ok


def test_a_callback_is_not_left_waiting_for_itself(fake: FakeServer, make: Make) -> None:
    errors: list[BaseException] = []

    def on_verdict(event: Event, verdict: Verdict) -> None:
        for call in (lambda: publisher.publish("t", 3), publisher.flush, publisher.close):
            try:
                call()
            except Exception as error:
                errors.append(error)

    publisher = make(on_verdict=on_verdict, limits=Limits(buffer_events_max=2, batch_events_max=1, linger_s=0))
    fake.gate.clear()
    publisher.publish("t", 1)
    fake.wait_for_requests(1)
    publisher.publish("t", 2)
    entry = publisher.offer(new_event("t", 4))  # takes the room that the first makes
    fake.gate.set()
    assert publisher.flush(DEADLINE_S) and entry.delivery.done()
    assert [type(error) for error in errors[:3]] == [BufferFull, RuntimeError, RuntimeError]


def test_a_connection_that_ends_while_it_is_secured_is_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted = threading.Semaphore(0)

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.close()
                accepted.release()

        threading.Thread(target=hang_up, daemon=True).start()
        publisher = Publisher(
            f"https://127.0.0.1:{listener.getsockname()[1]}", random_share=lambda: 0.0, on_drop=lambda event, why: None
        )
        delivery = publisher.publish("t", 1)
        for _ in range(5):
            assert accepted.acquire(timeout=DEADLINE_S)
        assert not delivery.done()
        publisher.close(0)
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "ftp://x"},
        {"when_full": "explode"},
        {"connections": 0},
        {"api_key": "no key"},
        {"connections": 2, "outbox": "x"},
        {"when_full": "drop_oldest", "outbox": "x"},
        {"when_full": "drop_newest", "outbox": "x"},
    ],
)
def test_arguments_that_cannot_be_are_refused(make: Make, tmp_path: Any, wrong: dict[str, Any]) -> None:
    if "outbox" in wrong:
        wrong = wrong | {"outbox": tmp_path / "outbox.db"}
    with pytest.raises(ValueError, match=r"URL|WhenFull|connection|key|nothing is dropped"):
        make(**wrong)
    assert not list(tmp_path.iterdir())


def test_a_publisher_that_has_nothing_to_send_makes_no_thread(make: Make) -> None:
    before = threading.active_count()
    publisher = make()
    assert threading.active_count() == before
    assert publisher.close() and threading.active_count() == before


def test_the_logger_is_the_one_that_the_documentation_names() -> None:
    assert "sekali.client" in logging.Logger.manager.loggerDict
