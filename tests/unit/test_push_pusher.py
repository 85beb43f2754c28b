"""Pushers over real subscriptions, with an endpoint that a test plays and a clock that it turns."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

from batches import batch
from receiver import SECRET
from sekali.consumer import Consumer
from sekali.delivery import Definition, Delivery, Ordering, Place
from sekali.errors import SekaliError
from sekali.event import Verdict
from sekali.metrics import Metrics
from sekali.ports import EventStore, Page, Query, StoredEvent, Unreadable
from sekali.push import health, pushing
from sekali.push.outcome import Failure
from sekali.push.pusher import Means
from sekali.push.pushing import Pushing
from sekali.stores.memory import MemoryStore
from sekali.subscriptions import awake as awakes
from sekali.subscriptions.manager import Subscriptions
from sekali.testing import FailingStore, FakeClock, WrappedStore

S = "s"
NOT_THERE = Failure("no connection")
BAD = Failure("answered 500", is_of_event=True)
GONE = Failure("answered 410 Gone", is_of_event=True, is_gone=True)
PAUSE_AFTER_S = 3600.0


def memory() -> MemoryStore:
    return MemoryStore(FakeClock(), topics_max=1000)


class Endpoint:
    """Answers what ``answers`` say for a seq, else acknowledges; ``held`` are kept waiting until they are let go."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.urls: list[str | None] = []
        self.acknowledged: list[int] = []
        self.answers: dict[int, Failure] = {}
        self.always: Failure | None = None
        self.held: dict[int, asyncio.Event] = {}
        self.under_way: set[int] = set()
        self.most_under_way = 0
        self.topics_under_way: Counter[str] = Counter()

    async def send(self, definition: Definition, event: StoredEvent) -> Failure | None:
        self.asked.append(event.seq)
        self.urls.append(definition.url)
        self.under_way.add(event.seq)
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        self.topics_under_way[event.topic] += 1
        assert definition.order is Ordering.NONE or self.topics_under_way[event.topic] == 1
        try:
            if event.seq in self.held:
                await self.held[event.seq].wait()
            else:
                await asyncio.sleep(0)
        finally:
            self.under_way.discard(event.seq)
            self.topics_under_way[event.topic] -= 1
        failure = self.always or self.answers.get(event.seq)
        if failure is None:
            self.acknowledged.append(event.seq)
        return failure


class Running:
    """A server's parts that push, and a clock: waits end when a test turns it."""

    consumer: Consumer
    subscriptions: Subscriptions
    pushing: Pushing

    def __init__(self, store: EventStore, clock: FakeClock) -> None:
        self.store = store
        self.endpoint = Endpoint()
        self.clock = clock
        self.stopping = asyncio.Event()
        self._sleeping: dict[asyncio.Future[None], int] = {}

    @property
    def now_ns(self) -> int:
        return self.clock.ns

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleeping[future] = self.now_ns + round(seconds * 1e9)
        try:
            await future
        finally:
            del self._sleeping[future]

    def sleeping_s(self) -> list[float]:
        """How long each that waits has still to do so."""
        return sorted((until_ns - self.now_ns) / 1e9 for until_ns in self._sleeping.values())

    async def turn(self, seconds: float) -> None:
        """Let so much time pass."""
        self.clock.advance(seconds)
        for future, until_ns in self._sleeping.items():
            if until_ns <= self.now_ns and not future.done():
                future.set_result(None)
        await asyncio.sleep(0)

    async def publish(self, *topics: str) -> None:
        done: asyncio.Future[SekaliError | None] = asyncio.get_running_loop().create_future()

        def on_done(_: list[Verdict], failure: SekaliError | None) -> None:
            done.set_result(failure)

        first = self.store.summary().head
        events = [(topic, str(first + number)) for number, topic in enumerate(topics)]
        self.consumer.submit(batch(*events), time.monotonic(), on_done)
        assert await done is None

    async def put(self, **fields: Any) -> None:
        given: dict[str, Any] = {
            "topic": "t/**",
            "start": "earliest",
            "delivery": Delivery.PUSH,
            "url": "https://example.com/",
            "secret": SECRET,
        }
        await self.subscriptions.put(S, Definition(**given | fields))

    async def dead(self) -> list[tuple[int, int, str]]:
        return [(one.seq, one.attempts, one.error) for one in await self.subscriptions.dead_letters(S, 0, 100)]

    async def lag(self) -> int:
        return (await self.subscriptions.status(S, 100)).figures.lag

    def health(self) -> health.Health:
        found = self.pushing.health(S)
        assert found is not None
        return found

    async def settled(self, *seqs: int) -> None:
        """Wait until these are acknowledged, durably."""
        await eventually(lambda: set(seqs) <= set(self.endpoint.acknowledged))
        while await self.lag():
            await asyncio.sleep(0.001)

    async def goes_down(self) -> None:
        await eventually(lambda: self.pushing.health(S) is not None and self.health().is_down)
        await eventually(lambda: bool(self.sleeping_s()))


async def eventually(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@asynccontextmanager
async def running(
    store: EventStore | None = None, *, shares: Callable[[], float] = lambda: 0.0
) -> AsyncIterator[Running]:
    """Run the parts. With a share of nothing no failure makes anybody wait.

    Events become due by a clock of their own, the true one.
    """
    one = Running(store or memory(), FakeClock())
    numbers = count(1)
    with ThreadPoolExecutor(2) as readers:
        one.subscriptions = Subscriptions(
            one.store,
            readers,
            one.stopping,
            time.monotonic_ns,
            lambda: f"lease {next(numbers)}",
            subscriptions_max=5,
        )
        one.pushing = Pushing(
            Means(
                one.subscriptions,
                one.endpoint.send,
                one.stopping,
                lambda: one.now_ns,
                one.sleep,
                shares,
                asyncio.Semaphore(pushing.REQUESTS_IN_ALL_MAX),
                PAUSE_AFTER_S,
            )
        )

        def on_recovered() -> None:
            one.subscriptions.look_again()
            one.pushing.look_again()

        one.consumer = Consumer(
            one.store,
            Metrics(time.monotonic),
            time.monotonic,
            workers=0,
            queue_events_max=1000,
            commit_events_max=100,
            commit_wait_ms_max=0,
            on_stored=lambda count, head, topics: one.subscriptions.stored(head, topics),
            on_recovered=on_recovered,
        )
        one.consumer.start()
        one.subscriptions.start(one.consumer)
        one.pushing.start(one.consumer.ready)
        await one.consumer.ready.wait()
        try:
            yield one
        finally:
            one.stopping.set()
            await one.pushing.stop()
            await one.subscriptions.stop()
            assert await one.consumer.stop(30)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(15):
            await test()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the server does
        runner.run(bounded())


class TestDelivering:
    def test_each_event_is_sent_once_and_not_again_after_a_restart(self) -> None:
        async def test() -> None:
            store = memory()
            async with running(store) as one:
                await one.publish("t/a", "u", "t/b")
                await one.put()
                await one.settled(1, 3)
                await one.publish("t/a")
                await one.settled(4)
                assert sorted(one.endpoint.asked) == [1, 3, 4]
            async with running(store) as one:
                await one.publish("t/a")
                await one.settled(5)
                assert one.endpoint.asked == [5]

        run(test)

    def test_events_of_a_topic_come_in_order_and_a_failed_one_holds_its_topic_back_alone(self) -> None:
        async def test() -> None:
            async with running() as one:
                one.endpoint.answers[1] = Failure("answered 400", is_of_event=True, retry_after_s=600)
                await one.publish("t/a", "t/b", "t/a", "t/b", "t/c")
                await one.put()
                await eventually(lambda: {2, 4, 5} <= set(one.endpoint.acknowledged))
                assert 3 not in one.endpoint.asked and one.endpoint.asked.index(2) < one.endpoint.asked.index(4)
                while await one.lag() != 2:
                    await asyncio.sleep(0.001)

        run(test)

    def test_without_order_they_come_as_fast_as_the_window_allows(self) -> None:
        async def test() -> None:
            async with running() as one:
                one.endpoint.held = {seq: asyncio.Event() for seq in range(30, 51)}
                await one.publish(*["t/a"] * 50)
                await one.put(order=Ordering.NONE)
                await eventually(lambda: len(one.endpoint.under_way) == health.REQUESTS_MAX)
                await eventually(lambda: (one.pushing.health(S) or health.Health()).window == health.REQUESTS_MAX)
                for event in one.endpoint.held.values():
                    event.set()
                await one.settled(*range(1, 51))
                assert one.endpoint.most_under_way == health.REQUESTS_MAX
                assert sorted(one.endpoint.asked) == list(range(1, 51))

        run(test)

    def test_an_event_that_always_fails_is_a_dead_letter_and_a_replay_sends_it(self) -> None:
        async def test() -> None:
            async with running() as one:
                one.endpoint.answers[1] = BAD
                await one.publish("t/a", "t/a")
                await one.put(max_attempts=3)
                await one.settled(2)
                assert one.endpoint.asked == [1, 1, 1, 2] and await one.dead() == [(1, 3, "answered 500")]
                one.endpoint.answers.clear()
                assert await one.subscriptions.replay(S, None) == ([1], False)
                await one.settled(1)
                assert await one.dead() == []

        run(test)

    def test_one_that_cannot_be_read_is_a_dead_letter_and_no_fault_of_the_endpoint(self) -> None:
        class Damaged(WrappedStore):
            def read(self, query: Query) -> Page:
                page = self._store.read(query)
                return Page([Unreadable(1, "damaged") if one.seq == 1 else one for one in page.events], page.next)

        async def test() -> None:
            async with running(Damaged(memory())) as one:
                await one.publish("t/a", "t/a")
                await one.put(max_attempts=2)
                await one.settled(2)
                assert one.endpoint.asked == [2] and one.health().last_error is None
                assert await one.dead() == [(1, 2, "the event cannot be read back: damaged")]

        run(test)

    def test_a_defect_in_sending_is_told_and_waits_like_any_failure(self) -> None:
        async def test() -> None:
            async with running(shares=lambda: 0.5) as one:

                async def broken(*_: object) -> Failure | None:
                    raise ZeroDivisionError("oh")

                object.__setattr__(one.pushing._means, "send", broken)
                with capture_logs() as logs:
                    await one.publish(*(f"t/{number}" for number in range(10)))
                    await one.put()
                    await one.goes_down()
                assert one.health().last_error == "a defect of the server: ZeroDivisionError('oh')"
                assert [entry["event"] for entry in logs].count("a defect of the server") == health.DOWN_AFTER

        run(test)

    def test_waits_too_short_for_a_timer(self) -> None:
        """What is due within half a millisecond is no timer to uvloop, and its handle has no time."""

        async def test() -> None:
            async with running(shares=lambda: 0.0002) as one:
                one.endpoint.answers = dict.fromkeys(range(1, 21), BAD)
                await one.publish(*(f"t/{number}" for number in range(20)))
                await one.put(max_attempts=4, order=Ordering.NONE)
                while len(await one.dead()) < 20:
                    await one.turn(10)  # its endpoint is down after that many failures
                    await asyncio.sleep(0.001)
                assert len(one.endpoint.asked) == 80

        run(test)


class TestIdle:
    def test_one_with_nothing_to_do_waits_without_looking(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its wait is one that only an event ends: no timer but one of an hour, no read."""

        monkeypatch.setattr(awakes, "LOOK_INTERVAL_S", 0.001)

        async def test() -> None:
            reads = []

            class Counting(WrappedStore):
                def read(self, query: Query) -> Page:
                    reads.append(query)
                    return self._store.read(query)

            async with running(Counting(memory())) as one:
                await one.put()
                awake = one.subscriptions._consumed._awake
                await eventually(lambda: S in awake and len(awake[S]._waiters) == 1)
                waiter = awake[S]._waiters[0]
                assert waiter.ask.still_wanted is None and waiter.ask.until_s - asyncio.get_running_loop().time() > 3000
                for _ in range(20):
                    await asyncio.sleep(0.001)
                assert list(awake[S]._waiters) == [waiter], "nothing ended its wait"
                assert reads == [] and one.sleeping_s() == []

        run(test)


class TestDown:
    def test_its_events_are_spared_and_go_on_once_it_answers(self) -> None:
        async def test() -> None:
            async with running(shares=lambda: 0.0) as one:
                one.endpoint.always = NOT_THERE
                await one.publish("t/a", "t/a", "t/b")
                await one.put(max_attempts=6)

                await eventually(lambda: one.pushing.health(S) is not None and one.health().failures >= 40)
                assert await one.dead() == [], "forty failures, and nobody is dead"
                with capture_logs() as logs:
                    one.endpoint.always = None
                    await one.settled(1, 2, 3)
                assert "the endpoint answers again" in [entry["event"] for entry in logs]
                assert not one.health().is_down and one.health().failures == 0
                status = await one.subscriptions.status(S, 10)
                assert status.counts.returned < health.DOWN_AFTER and status.counts.expired == 0

        run(test)

    def test_it_is_probed_by_one_request_at_a_time_after_waits_that_grow(self) -> None:
        async def test() -> None:
            async with running(shares=lambda: 0.5) as one:
                one.endpoint.always = NOT_THERE
                await one.publish(*(f"t/{number}" for number in range(20)))
                with capture_logs() as logs:
                    await one.put(order=Ordering.NONE)
                    await one.goes_down()
                (warning,) = [entry for entry in logs if entry["event"] == "the endpoint is down"]
                assert warning["log_level"] == "warning" and warning["subscription"] == S
                one.endpoint.most_under_way = 0
                for expected_s in (0.5, 1, 2, 4, 8, 16, 32, 64, 128, 150, 150):
                    assert one.sleeping_s() == [pytest.approx(expected_s)]
                    asked = len(one.endpoint.asked)
                    await one.turn(expected_s * 0.99)
                    assert len(one.endpoint.asked) == asked
                    await one.turn(expected_s * 0.011)
                    await eventually(lambda: bool(one.sleeping_s()))
                    assert len(one.endpoint.asked) == asked + 1
                assert one.endpoint.most_under_way == 1

        run(test)

    def test_what_it_asks_for_is_kept(self) -> None:
        async def test() -> None:
            async with running() as one:
                one.endpoint.always = Failure("answered 429", retry_after_s=30, holds_all=True)
                await one.publish("t/a", "t/b")
                await one.put()
                await eventually(lambda: bool(one.sleeping_s()))
                assert one.sleeping_s() == [30] and one.endpoint.asked == [1]
                one.endpoint.always = None
                await one.turn(29.9)
                assert one.endpoint.asked == [1]
                await one.turn(0.2)
                await one.settled(1, 2)

        run(test)


class TestPaused:
    def test_after_so_long_without_success_it_is_paused_durably_and_says_why(self) -> None:
        async def test() -> None:
            store = memory()
            async with running(store, shares=lambda: 0.5) as one:
                one.endpoint.always = NOT_THERE
                await one.publish(*(f"t/{number}" for number in range(10)))
                with capture_logs() as logs:
                    await one.put()
                    await one.goes_down()
                    await one.turn(PAUSE_AFTER_S)
                    await eventually(lambda: one.pushing.health(S) is None)
                assert "paused: PUT it with paused false when it is mended" in [entry["event"] for entry in logs]
                subscription = await one.subscriptions.get(S)
                assert subscription.definition.paused and subscription.pause is not None
                reason = "the endpoint has been down for 3600 s; the last error: no connection"
                assert subscription.pause.reason == reason
                assert (await one.subscriptions.samples())[S]["sekali_subscription_paused"] == 1
                asked = len(one.endpoint.asked)
            async with running(store) as one:
                assert (await one.subscriptions.get(S)).pause == subscription.pause, "after a restart, too"
                await one.publish("t/a")
                await one.put(paused=True)
                assert (await one.subscriptions.get(S)).pause == subscription.pause, "the same again changes nothing"
                await one.put(paused=True, max_attempts=7)
                assert (await one.subscriptions.get(S)).pause == subscription.pause, "nor does what does not resume it"
                assert one.endpoint.asked == [] and asked > health.DOWN_AFTER
                await one.put(paused=False)
                await one.settled(*range(1, 12))
                assert (await one.subscriptions.get(S)).pause is None and await one.dead() == []

        run(test)

    def test_one_that_is_gone_is_paused_at_once(self) -> None:
        async def test() -> None:
            async with running() as one:
                one.endpoint.always = GONE
                await one.publish("t/a")
                await one.put(max_attempts=1)
                await eventually(lambda: one.pushing.health(S) is None and len(one.endpoint.asked) == 1)
                subscription = await one.subscriptions.get(S)
                assert subscription.pause is not None
                assert subscription.pause.reason == "the endpoint answered 410 Gone: it wants no events any more"
                assert await one.dead() == [] and await one.lag() == 1

        run(test)

    def test_one_that_was_altered_meanwhile_is_not(self) -> None:
        async def test() -> None:
            async with running() as one:
                one.endpoint.always = GONE
                one.endpoint.held = {1: asyncio.Event()}
                await one.publish("t/a")
                await one.put()
                await eventually(lambda: one.endpoint.asked == [1])
                await one.put(url="https://example.com/new")
                one.endpoint.always = None
                old, one.endpoint.held[1] = one.endpoint.held[1], asyncio.Event()
                one.endpoint.answers[1] = GONE
                old.set()
                await eventually(lambda: len(one.endpoint.asked) == 2)
                del one.endpoint.answers[1]
                one.endpoint.held[1].set()
                await one.settled(1)
                assert one.endpoint.urls == ["https://example.com/", "https://example.com/new"]
                assert not (await one.subscriptions.get(S)).definition.paused

        run(test)


class TestChanges:
    """What is changed while the server runs counts at once, whatever a pusher is about."""

    def test_one_that_waits_long_for_its_endpoint_starts_anew_with_another(self) -> None:
        async def test() -> None:
            async with running() as one:
                one.endpoint.always = Failure("answered 503", retry_after_s=3000, holds_all=True)
                await one.publish("t/a")
                await one.put()
                await eventually(lambda: one.sleeping_s() == [3000])
                one.endpoint.always = None
                await one.put(url="https://example.com/new")
                await one.settled(1)
                assert one.endpoint.urls[-1] == "https://example.com/new"

        run(test)

    def test_one_that_is_paused_sends_nothing_and_goes_on_where_it_was(self) -> None:
        async def test() -> None:
            async with running() as one:
                one.endpoint.held = {1: asyncio.Event()}
                await one.publish("t/a", "t/b")
                await one.put()
                await eventually(lambda: bool(one.endpoint.under_way))
                await one.put(paused=True)
                one.endpoint.held[1].set()
                await eventually(lambda: one.endpoint.acknowledged == [1])
                while await one.lag() != 1:  # what was under way is acknowledged
                    await asyncio.sleep(0.001)
                assert one.endpoint.asked == [1]
                await one.put()
                await one.settled(2)
                assert one.endpoint.asked == [1, 2]

        run(test)

    def test_nothing_is_begun_once_that_is_answered_however_late_its_pusher_ends(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def test() -> None:
            async with running() as one:
                one.endpoint.held = {1: asyncio.Event()}
                await one.publish("t/a", "t/b")
                await one.put()
                await eventually(lambda: bool(one.endpoint.under_way))
                monkeypatch.setattr(one.pushing, "_match", lambda _: None)
                await one.put(paused=True)
                one.endpoint.held[1].set()
                await eventually(lambda: not one.pushing._means.sending)
                assert one.endpoint.asked == [1]
                monkeypatch.undo()

        run(test)

    def test_one_that_is_deleted_sends_nothing_more(self) -> None:
        async def test() -> None:
            async with running() as one:
                one.endpoint.held = {1: asyncio.Event()}
                await one.publish("t/a", "t/a", "t/b")
                await one.put()
                await eventually(lambda: bool(one.endpoint.under_way))
                await one.subscriptions.delete(S)
                one.endpoint.held[1].set()
                await eventually(lambda: not one.endpoint.under_way)
                await one.publish("t/a")
                await eventually(lambda: not one.pushing._pushers and not one.pushing._means.sending)
                assert one.endpoint.asked == [1]

        run(test)

    def test_one_that_is_sought_sends_what_is_there_now_and_not_what_it_held(self) -> None:
        async def test() -> None:
            async with running() as one:
                one.endpoint.answers[1] = Failure("answered 429", retry_after_s=30, holds_all=True)
                await one.publish("t/a", "t/b", "t/c")
                await one.put()
                # The second is in its hand, and waits for its turn.
                await eventually(lambda: bool(one.sleeping_s()))
                assert (await one.subscriptions.status(S, 10)).in_flight == 1
                await one.subscriptions.seek(S, Place(seq=3))
                await one.turn(30)
                await one.settled(3)
                assert one.endpoint.asked == [1, 3]
                await one.subscriptions.seek(S, Place(seq=2))
                await one.settled(2, 3)
                assert one.endpoint.asked[2:] == [2, 3]

        run(test)


class TestStopping:
    def test_what_is_under_way_is_finished_and_nothing_begun(self) -> None:
        async def test() -> None:
            store = memory()
            async with running(store) as one:
                one.endpoint.held = {1: asyncio.Event()}
                await one.publish("t/a", "t/b")
                await one.put()
                await eventually(lambda: bool(one.endpoint.under_way))
                one.stopping.set()
                await asyncio.sleep(0)
                one.endpoint.held[1].set()
                await eventually(lambda: not one.pushing._means.sending and not one.pushing._pushers)
                assert one.endpoint.asked == one.endpoint.acknowledged == [1]
            async with running(store) as one:
                await one.settled(2)
                assert one.endpoint.asked == [2]

        run(test)

    def test_what_does_not_end_is_as_if_it_had_not_been_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pushing, "FINISH_S", 0.01)

        async def test() -> None:
            store = memory()
            async with running(store) as one:
                one.endpoint.held = {1: asyncio.Event()}
                await one.publish("t/a")
                await one.put()
                await eventually(lambda: bool(one.endpoint.under_way))
            assert not one.endpoint.under_way and one.endpoint.acknowledged == []
            assert store.pending(S)[1][0].state.open == (), "no attempt is counted"
            async with running(store) as one:
                await one.settled(1)

        run(test)


class TestTrouble:
    def test_an_acknowledgement_that_could_not_be_stored_is_sent_again(self) -> None:
        async def test() -> None:
            store = FailingStore(memory())
            async with running(store) as one:
                await one.publish("t/a")
                one.endpoint.held = {1: asyncio.Event()}
                await one.put()
                await eventually(lambda: bool(one.endpoint.under_way))
                store.failures_left = 1
                one.endpoint.held[1].set()
                await eventually(lambda: store.failed == 1)
                for _ in range(3):  # it waits for the store, by our clock
                    await asyncio.sleep(0.01)
                    await one.turn(1)
                await eventually(lambda: one.consumer.trouble is None)
                while await one.lag():
                    await one.turn(1)
                    await asyncio.sleep(0.001)
                assert one.endpoint.asked == [1, 1]

        run(test)
