"""Subscriptions in a running loop: what waits, commits, fails and begins anew around the lanes."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest
import uvloop

from batches import batch
from sekali.consumer import Consumer
from sekali.delivery import Definition, Figures, Ordering, PendingLane, Place, Subscription
from sekali.errors import (
    CommitUnknown,
    InvalidQuery,
    LeaseGone,
    NoSuchSubscription,
    PositionGone,
    QueueFull,
    SekaliError,
    StoreBroken,
    SubscriptionDiffers,
    TooManySubscriptions,
    Unavailable,
)
from sekali.event import Verdict
from sekali.metrics import Metrics
from sekali.ports import EventStore, Page, Query
from sekali.stores.memory import MemoryStore
from sekali.subscriptions import awake, consumed, lanes, manager
from sekali.subscriptions.manager import Subscriptions
from sekali.subscriptions.surroundings import Ask, Delivered
from sekali.testing import FailingStore, FakeClock, GatedStore, WrappedStore

S = "s"


def memory() -> MemoryStore:
    return MemoryStore(FakeClock(), topics_max=1000)


class SlowToWake(WrappedStore):
    """Holds the answer about what is pending back."""

    def __init__(self, store: EventStore) -> None:
        super().__init__(store)
        self.gate, self.reached = threading.Event(), threading.Event()

    def pending(self, name: str) -> tuple[int, list[PendingLane]]:
        found = super().pending(name)
        self.reached.set()
        self.gate.wait()
        return found


class Running:
    """Subscriptions and the consumer under them, with short words for what consumers do."""

    def __init__(self, store: EventStore, consumer: Consumer, subscriptions: Subscriptions) -> None:
        self.store = store
        self.consumer = consumer
        self.subscriptions = subscriptions

    async def publish(self, *events: tuple[str, str]) -> None:
        future: asyncio.Future[SekaliError | None] = asyncio.get_running_loop().create_future()

        def on_done(_: list[Verdict], failure: SekaliError | None) -> None:
            future.set_result(failure)

        self.consumer.submit(batch(*events), time.monotonic(), on_done)
        if (failure := await future) is not None:
            raise failure

    async def put(self, **fields: Any) -> bool:
        return await self.subscriptions.put(S, Definition(**{"topic": "t/**", "start": "earliest"} | fields))

    async def pull(self, events_max: int = 10, wait_s: float = 0, **options: Any) -> Delivered:
        until_s = asyncio.get_running_loop().time() + wait_s
        delivered = await self.subscriptions.pull(S, Ask(events_max, until_s, **options))
        return delivered or Delivered("", 0, [])

    async def ack(self, delivered: Delivered, *seqs: int) -> list[int]:
        """Acknowledge, everything where no seqs are given; return what was lost."""
        return await self.subscriptions.acknowledge(S, delivered.lease_id, seqs or given(delivered))

    async def nack(self, delivered: Delivered, *seqs: int, delay_s: float = 0, error: str = "no") -> list[int]:
        return await self.subscriptions.give_back(S, delivered.lease_id, seqs or given(delivered), delay_s, error)

    async def dead(self) -> list[tuple[int, int, str]]:
        return [(one.seq, one.attempts, one.error) for one in await self.subscriptions.dead_letters(S, 0, 100)]


def given(delivered: Delivered) -> list[int]:
    return [event.seq for event, _ in delivered.events]


def attempts(delivered: Delivered) -> list[tuple[int, int]]:
    return [(event.seq, attempt) for event, attempt in delivered.events]


@asynccontextmanager
async def running(store: EventStore, *, subscriptions_max: int = 5) -> AsyncIterator[Running]:
    """Start over a store; it ends as if the server were killed: nothing is written at the end."""
    stopping = asyncio.Event()
    numbers = count(1)
    with ThreadPoolExecutor(2) as readers:
        subscriptions = Subscriptions(
            store,
            readers,
            stopping,
            time.monotonic_ns,
            lambda: f"lease {next(numbers)}",
            subscriptions_max=subscriptions_max,
        )
        consumer = Consumer(
            store,
            Metrics(time.monotonic),
            time.monotonic,
            workers=0,
            queue_events_max=1000,
            commit_events_max=100,
            commit_wait_ms_max=0,
            on_stored=lambda count, head, topics: subscriptions.stored(head, topics),
            on_recovered=subscriptions.look_again,
        )
        consumer.start()
        subscriptions.start(consumer)
        await consumer.ready.wait()
        try:
            yield Running(store, consumer, subscriptions)
        finally:
            stopping.set()
            await subscriptions.stop()
            assert await consumer.stop(30)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # the loop that the server runs on
        runner.run(bounded())


def waiters(one: Running) -> int:
    """How many wait for events."""
    awake_one = one.subscriptions._consumed.get(S)
    return 0 if awake_one is None else len(awake_one._waiters)


async def eventually(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


class TestDelivering:
    def test_events_come_once_and_not_again_after_a_restart(self) -> None:
        async def test() -> None:
            store = memory()
            async with running(store) as one:
                assert await one.put()
                await one.publish(("t/a", "1"), ("t/a", "2"), ("u", "1"), ("t/a", "3"))
                first = await one.pull(2)
                assert attempts(first) == [(1, 1), (2, 1)]
                assert given(await one.pull()) == [], "the topic is taken"
                assert await one.ack(first, 1) == []
            async with running(store) as one:
                again = await one.pull()
                assert attempts(again) == [(2, 1), (4, 1)], "leases are void, acknowledgements are not"
                assert await one.ack(again) == []
                assert given(await one.pull()) == []
            async with running(store) as one:
                assert given(await one.pull()) == []

        run(test)

    def test_topics_go_on_beside_each_other(self) -> None:
        async def test() -> None:
            async with running(memory()) as one:
                await one.put()
                await one.publish(*((f"t/{topic}", str(number)) for number in range(2) for topic in "abc"))
                a, b = await one.pull(), await one.pull(1)
                assert (given(a), given(b)) == ([1, 4], [2])
                assert given(await one.pull(topics_max=5)) == [3, 6]
                await one.ack(b)
                assert given(await one.pull()) == [5]
                assert given(await one.pull()) == []

        run(test)

    def test_without_order_everybody_gets_of_one_topic(self) -> None:
        async def test() -> None:
            async with running(memory()) as one:
                await one.put(order=Ordering.NONE)
                await one.publish(*(("t/a", str(number)) for number in range(5)))
                a, b = await one.pull(2), await one.pull(2)
                assert (given(a), given(b)) == ([1, 2], [3, 4])
                assert await one.ack(b) == []
                assert await one.nack(a, 1) == []
                assert attempts(await one.pull()) == [(1, 2), (5, 1)]

        run(test)

    def test_a_commit_wakes_who_waits_in_the_order_they_came(self) -> None:
        async def test() -> None:
            async with running(memory()) as one:
                await one.put()
                order: list[int] = []

                async def wait(number: int) -> list[int]:
                    found = given(await one.pull(1, 30))
                    order.append(number)
                    return found

                waiting = [asyncio.create_task(wait(number)) for number in range(3)]
                await eventually(lambda: waiters(one) == 3)
                await one.publish(("u", "nobody waits for this"), ("t/a", "1"), ("t/a", "2"))
                await eventually(lambda: order == [0])
                await one.publish(("t/b", "1"), ("t/c", "1"))
                assert sorted(await asyncio.gather(*waiting)) == [[2], [4], [5]]  # of topics stored together either
                assert order == [0, 1, 2]

        run(test)

    def test_who_leaves_takes_nothing_along(self) -> None:
        async def test() -> None:
            async with running(memory()) as one:
                await one.put()
                leaving = asyncio.create_task(one.pull(1, 30))
                await eventually(lambda: waiters(one) == 1)
                staying = asyncio.create_task(one.pull(1, 30))
                await eventually(lambda: waiters(one) == 2)

                def leave_at_once(count: int, head: int, topics: list[list[str]]) -> None:
                    one.subscriptions.stored(head, topics)
                    assert waiters(one) == 1, "it has been given the lane, and does not know it yet"
                    leaving.cancel()

                one.consumer._on_stored = leave_at_once
                await one.publish(("t/a", "1"))
                with pytest.raises(asyncio.CancelledError):
                    await leaving
                assert given(await staying) == [1]

        run(test)

    def test_a_key_that_is_revoked_ends_the_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(awake, "LOOK_INTERVAL_S", 0.001)

        async def test() -> None:
            def refuse() -> None:
                raise InvalidQuery("key", "revoked")

            async with running(memory()) as one:
                await one.put()
                with pytest.raises(InvalidQuery):
                    await one.pull(1, 30, still_wanted=refuse)
                assert not any(awake_one.is_in_use for awake_one in one.subscriptions._consumed)

        run(test)

    def test_a_server_that_stops_lets_go(self) -> None:
        async def test() -> None:
            async with running(memory()) as one:
                await one.put()
                waiting = asyncio.create_task(one.pull(1, 30))
                await eventually(lambda: waiters(one) == 1)
                one.subscriptions._stopping.set()
                assert given(await waiting) == []
                await one.publish(("t/a", "1"))
                assert given(await one.pull(1, 30)) == []

        run(test)

    def test_a_paused_one_gives_nothing_until_it_goes_on(self) -> None:
        async def test() -> None:
            async with running(memory()) as one:
                await one.put(paused=True)
                await one.publish(("t/a", "1"))
                assert given(await one.pull()) == []
                waiting = asyncio.create_task(one.pull(1, 30))
                await eventually(lambda: waiters(one) == 1)
                assert await one.put(paused=False) is False
                assert given(await waiting) == [1]

        run(test)

    def test_what_is_stored_while_it_wakes_is_not_missed(self) -> None:
        async def test() -> None:
            store = SlowToWake(memory())
            async with running(store) as one:
                await one.put()
                waiting = asyncio.create_task(one.pull(10, 30, topics_max=9))
                await asyncio.to_thread(store.reached.wait)
                await one.publish(("t/a", "1"))
                await one.publish(("t/b", "1"), ("u", "1"))
                store.gate.set()
                assert given(await waiting) == [1, 2]

        run(test)

    def test_nobody_begins_to_wait_in_a_server_that_stops(self) -> None:
        async def test() -> None:
            store = SlowToWake(memory())
            async with running(store) as one:
                await one.put()
                waiting = asyncio.create_task(one.pull(1, 3600))
                await asyncio.to_thread(store.reached.wait)
                one.subscriptions._stopping.set()
                await asyncio.sleep(0)  # whoever waits is let go
                store.gate.set()
                assert given(await waiting) == []

        run(test)

    def test_one_that_nobody_uses_falls_asleep_and_goes_on_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(consumed, "ASLEEP_AFTER_S", 0)
        monkeypatch.setattr(consumed, "LOOK_INTERVAL_S", 0.001)

        async def test() -> None:
            async with running(memory()) as one:
                await one.put()
                await one.publish(("t/a", "1"), ("t/a", "2"))
                held = await one.pull(1)
                assert [*one.subscriptions._consumed], "it holds something"
                await one.ack(held)
                await eventually(lambda: not [*one.subscriptions._consumed])
                await one.publish(("t/b", "1"))
                assert one.subscriptions._consumed._by_topic == {}, "a commit does not even look"
                assert given(await one.pull(topics_max=9)) == [2, 3]

        run(test)


class TestFailing:
    def test_what_fails_comes_again_and_is_given_up_at_last(self) -> None:
        async def test() -> None:
            async with running(memory()) as one:
                await one.put(max_attempts=3)
                await one.publish(("t/a", "1"), ("t/a", "2"))
                delivered = await one.pull()
                assert await one.nack(delivered, 1, error="first") == []
                delivered = await one.pull()
                assert attempts(delivered) == [(1, 2), (2, 1)]
                assert await one.nack(delivered, 1, error="second") == []
                delivered = await one.pull()
                assert attempts(delivered) == [(1, 3)], "by itself, now that it comes near to be given up"
                assert await one.dead() == []
                assert await one.nack(delivered, error="third") == []
                assert await one.dead() == [(1, 3, "third")]
                assert attempts(await one.pull()) == [(2, 1)], "what follows was not tried"
                status = await one.subscriptions.status(S, 100)
                assert (status.figures.lag, status.figures.dead_letters, status.in_flight) == (1, 1, 1)
                assert (status.counts.returned, status.counts.dead, status.counts.redelivered) == (3, 1, 2)

        run(test)

    def test_a_delay_holds_back_the_topic_and_nothing_else(self) -> None:
        async def test() -> None:
            async with running(memory()) as one:
                await one.put()
                await one.publish(("t/a", "1"), ("t/a", "2"), ("t/b", "1"))
                assert await one.nack(await one.pull(1), delay_s=0.2) == []
                assert given(await one.pull()) == [3]
                assert given(await one.pull()) == []
                assert attempts(await one.pull(10, 30)) == [(1, 2), (2, 1)]

        run(test)

    def test_a_delay_and_attempts_outlive_a_restart(self) -> None:
        async def test() -> None:
            store = memory()
            async with running(store) as one:
                await one.put(order=Ordering.NONE)
                await one.publish(("t/a", "1"), ("t/a", "2"), ("t/a", "3"))
                delivered = await one.pull()
                await one.nack(delivered, 2)
                await one.nack(delivered, 1, delay_s=0.2)
                await one.ack(delivered, 3)
            async with running(store) as one:
                assert attempts(await one.pull()) == [(2, 2)]
                assert attempts(await one.pull(10, 30)) == [(1, 2)]

        run(test)

    def test_a_lease_that_runs_out_is_given_to_the_next_and_says_so_to_the_first(self) -> None:
        async def test() -> None:
            async with running(memory()) as one:
                await one.put(max_attempts=2)
                await one.publish(("t/a", "1"), ("t/a", "2"))
                slow = await one.pull(1, lease_s=0.05)
                next_one = await one.pull(10, 30)
                assert attempts(next_one) == [(1, 2)]
                assert await one.ack(slow) == [1], "it is another's now"
                assert await one.nack(slow) == [1]
                with pytest.raises(LeaseGone):
                    await one.subscriptions.extend(S, slow.lease_id, 30)
                assert await one.ack(next_one) == []
                assert await one.ack(slow) == [], "what is settled may be acknowledged again"
                last = await one.pull(10, 30, lease_s=0.05)
                assert attempts(last) == [(2, 1)]
                assert attempts(await one.pull(10, 30, lease_s=0.05)) == [(2, 2)]
                deadline_s = time.monotonic() + 30
                while not await one.dead():
                    assert time.monotonic() < deadline_s
                assert await one.dead() == [(2, 2, "the lease ran out")]

        run(test)

    def test_a_lease_can_be_extended(self) -> None:
        async def test() -> None:
            async with running(memory()) as one:
                await one.put()
                await one.publish(("t/a", "1"), ("t/b", "1"))
                long, short = await one.pull(lease_s=0.1), await one.pull(lease_s=0.1)
                expires_at_ns, held = await one.subscriptions.extend(S, long.lease_id, 60)
                assert held == [1] and expires_at_ns > long.expires_at_ns + 50e9
                assert attempts(await one.pull(10, 30)) == [(2, 2)]
                assert await one.ack(long) == [] and await one.ack(short) == [2]

        run(test)

    def test_what_is_due_at_once_may_be_followed_by_what_is_due_sooner_or_later(self) -> None:
        async def test() -> None:
            async with running(memory()) as one:
                await one.put(order=Ordering.NONE)
                await one.publish(("t/a", "1"), ("t/b", "1"), ("t/c", "1"))
                late, due, later = await one.pull(1), await one.pull(1), await one.pull(1)
                subscription = one.subscriptions._consumed._awake[S]
                for delivered, lease_s in ((late, 20.0), (due, 1e-9), (later, 30.0), (late, 1e-9)):
                    subscription.extend(delivered.lease_id, lease_s)
                again = attempts(await one.pull(1, 30)) + attempts(await one.pull(1, 30))
                assert sorted(again) == [(1, 2), (2, 2)]

        run(test)

    def test_an_acknowledgement_whose_answer_was_lost_can_be_sent_again(self) -> None:
        async def test() -> None:
            store = memory()
            async with running(store) as one:
                await one.put()
                await one.publish(("t/a", "1"), ("t/a", "2"), ("u", "1"))
                delivered = await one.pull(1)
                assert await one.ack(delivered) == await one.ack(delivered) == []
                assert await one.ack(delivered, 1, 2, 3, 99) == [2, 3, 99], "not given; of another topic; not there"
            async with running(store) as one:
                assert await one.ack(delivered, 1, 2) == [2]

        run(test)

    def test_dead_letters_are_replayed_and_dropped(self) -> None:
        async def test() -> None:
            store = memory()
            async with running(store) as one:
                await one.put(max_attempts=1)
                await one.publish(*(("t/a", str(number)) for number in range(4)), ("t/b", "1"))
                for _ in range(5):
                    await one.nack(await one.pull(1))
                assert [seq for seq, *_ in await one.dead()] == [1, 5, 2, 3, 4]
                assert await one.subscriptions.replay(S, [2, 99]) == ([2], False)
                assert attempts(await one.pull()) == [(2, 1)]
                await one.subscriptions.drop(S, [3])
                assert [seq for seq, *_ in await one.dead()] == [1, 5, 4]
            async with running(store) as one:  # what was replayed and not acknowledged is not forgotten
                again = await one.pull()
                assert attempts(again) == [(2, 1)]
                await one.ack(again)
                assert await one.subscriptions.replay(S, None) == ([1, 5, 4], False)
                assert await one.dead() == []
                assert given(await one.pull(topics_max=2)) == [1, 4, 5]
                assert await one.subscriptions.replay(S, None) == ([], False)
                await one.subscriptions.drop(S, None)

        run(test)

    def test_a_replay_of_many_comes_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(awake, "REPLAYED_AT_ONCE", 2)

        async def test() -> None:
            async with running(memory()) as one:
                await one.put(max_attempts=1)
                await one.publish(*(("t/a", str(number)) for number in range(3)))
                for _ in range(3):
                    await one.nack(await one.pull(1))
                assert await one.subscriptions.replay(S, None) == ([1, 2], True)
                assert await one.subscriptions.replay(S, None) == ([3], False)
                assert given(await one.pull()) == [1, 2, 3]

        run(test)


class TestMany:
    @pytest.mark.parametrize(
        ("limit", "first", "then"), [("OPEN_OF_LANE_MAX", [1, 2, 4, 5], [3]), ("OPEN_MAX", [1, 4], [2])]
    )
    def test_what_is_open_is_bounded_and_others_wait(
        self, monkeypatch: pytest.MonkeyPatch, limit: str, first: list[int], then: list[int]
    ) -> None:
        monkeypatch.setattr(lanes, limit, 2)

        async def test() -> None:
            async with running(memory()) as one:
                await one.put(order=Ordering.NONE)
                await one.publish(("t/a", "1"), ("t/a", "2"), ("t/a", "3"), ("t/b", "1"), ("t/b", "2"))
                taken = [await one.pull(1) for _ in range(4)]
                assert sorted(seq for each in taken for seq in given(each)) == first
                assert given(await one.pull(1)) == []
                await one.ack(next(each for each in taken if 1 in given(each)))
                assert given(await one.pull(1)) == then

        run(test)

    @pytest.mark.parametrize("limit", ["OPEN_OF_LANE_MAX", "OPEN_MAX"])
    def test_a_replay_waits_for_room(self, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
        async def test() -> None:
            async with running(memory()) as one:
                await one.put(max_attempts=1)
                await one.publish(("t/a", "1"), ("t/a", "2"), ("t/a", "3"))
                await one.nack(await one.pull(1))
                await one.nack(await one.pull(1))
                held = await one.pull(1)
                monkeypatch.setattr(lanes, limit, 2)
                with pytest.raises(QueueFull, match="let some be acknowledged first"):
                    await one.subscriptions.replay(S, None)
                assert [seq for seq, _, _ in await one.dead()] == [1, 2]
                await one.ack(held)
                assert await one.subscriptions.replay(S, None) == ([1, 2], False)

        run(test)

    def test_metrics_are_of_the_first_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(manager, "SAMPLED_MAX", 2)
        monkeypatch.setattr(manager, "LAG_MAX", 3)

        async def test() -> None:
            async with running(memory()) as one:
                for name in ("c", "a", "b"):
                    await one.subscriptions.put(name, Definition("**", "earliest"))
                await one.publish(*(("t", str(number)) for number in range(5)))
                samples = await one.subscriptions.samples()
                assert [*samples] == ["a", "b"]
                assert samples["a"]["sekali_subscription_lag_events"] == 3
                assert not (await one.subscriptions.status("a", 3)).figures.lag_is_exact

        run(test)

    def test_one_that_is_damaged_says_so_and_the_others_go_on(self) -> None:
        class Damaged(WrappedStore):
            def subscriptions(self) -> list[Subscription]:
                found = {one.name: one for one in super().subscriptions()}
                if S in found:
                    found[S] = Subscription(S, Definition("**"), 0, 0, fault="it is damaged")
                return [*found.values()]

            def figures(self, name: str, lag_max: int) -> Figures:
                if name == S:
                    raise StoreBroken("it is damaged")
                return super().figures(name, lag_max)

        async def test() -> None:
            async with running(Damaged(memory())) as one:
                await one.put()
                await one.subscriptions.put("other", Definition("**", "earliest"))
                await one.publish(("t/a", "1"))
                for doing in (
                    one.pull(),
                    one.put(),
                    one.subscriptions.get(S),
                    one.subscriptions.seek(S, Place(seq=1)),
                    one.subscriptions.acknowledge(S, "x", [1]),
                ):
                    with pytest.raises(StoreBroken, match="it is damaged"):
                        await doing
                delivered = await one.subscriptions.pull("other", Ask(10))
                assert delivered is not None and given(delivered) == [1]
                assert [*await one.subscriptions.samples()] == ["other"]
                await one.subscriptions.delete(S)
                assert [each.name for each in await one.subscriptions.all()] == ["other"]

        run(test)


class TestCommits:
    @pytest.mark.parametrize("after_commit", [False, True])
    def test_after_a_commit_that_failed_what_is_stored_counts(self, after_commit: bool) -> None:
        async def test() -> None:
            store = FailingStore(memory(), after_commit=after_commit)
            async with running(store) as one:
                await one.put()
                await one.publish(("t/a", "1"), ("t/a", "2"), ("t/a", "3"))
                delivered = await one.pull(2)
                assert await one.ack(delivered, 1) == []
                waiting = asyncio.create_task(one.pull(1, 30))
                await eventually(lambda: waiters(one) == 1)
                store.failures_left = 1
                with pytest.raises(CommitUnknown):
                    await one.ack(delivered, 2)
                assert store.failed == 1
                with pytest.raises(CommitUnknown):
                    await waiting
                await eventually(lambda: one.consumer.trouble is None)
                # The lease is void. Nobody was told that 2 is settled; 1 is.
                assert await one.ack(delivered) == ([] if after_commit else [2])
                assert given(await one.pull()) == ([3] if after_commit else [2, 3])

        run(test)

    def test_what_was_said_behind_a_commit_that_fails_fails_with_it(self) -> None:
        async def test() -> None:
            failing = FailingStore(memory())
            gated = GatedStore(failing)
            gated.gate.set()
            async with running(gated) as one:
                await one.put(order=Ordering.NONE)
                await one.publish(*(("t/a", str(number)) for number in range(3)))
                delivered = await one.pull()
                gated.gate.clear()
                gated.reached.clear()
                first = asyncio.create_task(one.ack(delivered, 1))
                await asyncio.to_thread(gated.reached.wait)
                others = [asyncio.create_task(one.ack(delivered, seq)) for seq in (2, 3)]
                await eventually(lambda: len(one.consumer._changes) == 2)
                failing.failures_left = 1
                gated.gate.set()
                for acknowledging in (first, *others):
                    with pytest.raises(CommitUnknown):
                        await acknowledging
                assert failing.failed == 1
                await eventually(lambda: one.consumer.trouble is None)
                assert given(await one.pull()) == [1, 2, 3], "they rested on what failed"

        run(test)

    def test_nothing_is_given_or_taken_while_nothing_can_be_committed(self) -> None:
        async def test() -> None:
            store = FailingStore(memory())
            async with running(store) as one:
                await one.put()
                await one.publish(("t/a", "1"), ("t/b", "1"))
                held = await one.pull()
                store.failures_left = 3
                with pytest.raises(CommitUnknown):
                    await one.publish(("t/c", "1"))
                for saying in (
                    lambda: one.ack(held),
                    lambda: one.nack(held),
                    lambda: one.put(paused=True),
                    lambda: one.subscriptions.delete(S),
                    lambda: one.subscriptions.seek(S, Place(seq=1)),
                    lambda: one.subscriptions.replay(S, None),
                    lambda: one.subscriptions.drop(S, None),
                ):
                    if one.consumer.trouble is None:
                        break  # it recovered
                    with pytest.raises(Unavailable):
                        await saying()
                await eventually(lambda: one.consumer.trouble is None)
                assert await one.ack(held) == [1], "the lease is void"
                assert given(await one.pull()) == [1]

        run(test)

    def test_acknowledgements_of_many_are_committed_together(self) -> None:
        async def test() -> None:
            commits: list[int] = []

            class Recording(WrappedStore):
                def commit(self, prepared: Sequence[Any]) -> list[list[Verdict]]:
                    commits.append(len(prepared))
                    return super().commit(prepared)

            gated = GatedStore(Recording(memory()))
            gated.gate.set()
            async with running(gated) as one:
                await one.put(order=Ordering.NONE)
                await one.publish(*(("t/a", str(number)) for number in range(20)))
                delivered = await one.pull(20)
                gated.gate.clear()
                gated.reached.clear()
                acknowledging = [asyncio.create_task(one.ack(delivered, seq)) for seq in given(delivered)]
                publishing = asyncio.create_task(one.publish(("t/a", "new")))
                await asyncio.to_thread(gated.reached.wait)
                before = len(commits)
                gated.gate.set()
                assert await asyncio.gather(*acknowledging) == [[]] * 20
                await publishing
                assert len(commits) - before <= 3
                assert given(await one.pull()) == [21]

        run(test)

    def test_a_topic_is_free_only_once_it_is_durable_that_its_run_is_settled(self) -> None:
        async def test() -> None:
            gated = GatedStore(memory())
            gated.gate.set()
            async with running(gated) as one:
                await one.put()
                await one.publish(("t/a", "1"), ("t/a", "2"))
                delivered = await one.pull(1)
                gated.gate.clear()
                gated.reached.clear()
                acknowledging = asyncio.create_task(one.ack(delivered))
                await asyncio.to_thread(gated.reached.wait)
                assert given(await one.pull()) == []
                again = asyncio.create_task(one.ack(delivered))  # it is settled, and not durably yet
                await eventually(lambda: bool(one.consumer._changes))
                assert not again.done()
                gated.gate.set()
                assert await acknowledging == await again == []
                assert given(await one.pull()) == [2]

        run(test)

    def test_what_is_on_its_way_to_the_disk_comes_before_the_next_look_at_it(self) -> None:
        """An acknowledgement that was taken before its subscription came to an end is committed all the same."""

        async def test() -> None:
            gated = GatedStore(memory())
            gated.gate.set()
            async with running(gated) as one:
                await one.put()
                await one.publish(("t/a", "1"), ("t/a", "2"))
                delivered = await one.pull(1)
                gated.gate.clear()
                gated.reached.clear()
                acknowledging = asyncio.create_task(one.ack(delivered))
                await asyncio.to_thread(gated.reached.wait)
                one.subscriptions.look_again()
                pulling = asyncio.create_task(one.pull(1))
                await eventually(lambda: bool(one.consumer._changes) or pulling.done())
                gated.gate.set()
                assert await acknowledging == []
                assert given(await pulling) == [2]

        run(test)

    def test_a_change_holds_though_nobody_waited_for_it(self) -> None:
        async def test() -> None:
            gated = GatedStore(memory())
            gated.gate.set()
            async with running(gated) as one:
                await one.put()
                await one.publish(("t/a", "1"), ("t/a", "2"))
                await one.ack(await one.pull(1))
                gated.gate.clear()
                gated.reached.clear()
                pausing = asyncio.create_task(one.put(paused=True))
                await asyncio.to_thread(gated.reached.wait)
                pausing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await pausing
                gated.gate.set()
                await eventually(lambda: one.subscriptions._changes_under_way == 0)
                assert given(await one.pull()) == []

        run(test)

    def test_nobody_builds_on_a_change_that_nobody_waited_for(self) -> None:
        async def test() -> None:
            gated = GatedStore(memory())
            gated.gate.set()
            async with running(gated) as one:
                await one.put()
                await one.publish(("t/a", "1"), ("t/a", "2"))
                await one.ack(await one.pull(1))
                gated.gate.clear()
                gated.reached.clear()
                seeking = asyncio.create_task(one.subscriptions.seek(S, Place(seq=1)))
                await asyncio.to_thread(gated.reached.wait)
                seeking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await seeking
                with pytest.raises(Unavailable, match="under way"):
                    await one.pull()
                gated.gate.set()
                await eventually(lambda: one.subscriptions._changes_under_way == 0)
                assert given(await one.pull()) == [1, 2]

        run(test)


class TestDefinitions:
    def test_the_same_again_changes_nothing_and_another_is_refused(self) -> None:
        async def test() -> None:
            async with running(memory()) as one:
                assert await one.put() is True
                assert await one.put() is False
                assert await one.put(max_attempts=7, lease_seconds=1.0, paused=True) is False
                definition = (await one.subscriptions.get(S)).definition
                assert (definition.max_attempts, definition.lease_seconds, definition.paused) == (7, 1.0, True)
                for fields in ({"topic": "t/*"}, {"order": Ordering.NONE}, {"start": "latest"}):
                    with pytest.raises(SubscriptionDiffers, match=next(iter(fields))):
                        await one.put(**fields)

        run(test)

    def test_there_may_be_only_so_many(self) -> None:
        async def test() -> None:
            async with running(memory(), subscriptions_max=2) as one:
                for name in "ab":
                    await one.subscriptions.put(name, Definition("t"))
                with pytest.raises(TooManySubscriptions, match="SUBSCRIPTIONS_MAX"):
                    await one.put()
                assert await one.subscriptions.put("a", Definition("t", max_attempts=2)) is False
                await one.subscriptions.delete("a")
                assert await one.put()
                assert [subscription.name for subscription in await one.subscriptions.all()] == ["b", S]

        run(test)

    def test_of_one_that_is_not_there_nothing_can_be_had(self) -> None:
        async def test() -> None:
            async with running(memory()) as one:
                delivered = Delivered("lease", 0, [])
                for asking in (
                    one.pull,
                    lambda: one.ack(delivered, 1),
                    lambda: one.nack(delivered, 1),
                    lambda: one.subscriptions.extend(S, "lease", None),
                    lambda: one.subscriptions.seek(S, Place(seq=1)),
                    lambda: one.subscriptions.delete(S),
                    lambda: one.subscriptions.replay(S, None),
                    lambda: one.subscriptions.drop(S, None),
                    lambda: one.subscriptions.get(S),
                ):
                    with pytest.raises(NoSuchSubscription):
                        await asking()

        run(test)

    def test_where_it_begins(self) -> None:
        async def test() -> None:
            clock = FakeClock(1_000_000_000_000_000_000)
            store = MemoryStore(clock, topics_max=10)
            async with running(store, subscriptions_max=9) as one:
                for number in range(4):
                    await one.publish(("t", str(number)))
                    clock.advance(1)
                starts: dict[str, Any] = {
                    "earliest": "earliest",
                    "latest": "latest",
                    "seq": Place(seq=3),
                    "next": Place(seq=5),
                    "time": Place(time="2001-09-09T01:46:41Z"),
                    "between": Place(time="2001-09-09T01:46:41.5Z"),
                    "later": Place(time="2200-01-01T00:00:00Z"),
                }
                for name, start in starts.items():
                    await one.subscriptions.put(name, Definition("t", start))
                await one.publish(("t", "new"))
                found = {name: await one.subscriptions.pull(name, Ask(10)) for name in starts}
                assert {name: given(delivered) for name, delivered in found.items() if delivered} == {
                    "earliest": [1, 2, 3, 4, 5],
                    "latest": [5],
                    "seq": [3, 4, 5],
                    "next": [5],
                    "time": [2, 3, 4, 5],
                    "between": [3, 4, 5],
                    "later": [5],
                }
                with pytest.raises(PositionGone, match="at most 6"):
                    await one.put(start=Place(seq=7))
                with pytest.raises(InvalidQuery):
                    await one.put(start=Place(time="yesterday"))

        run(test)

    def test_seek_voids_leases_and_lets_who_waits_go_on(self) -> None:
        async def test() -> None:
            async with running(memory()) as one:
                await one.put()
                await one.publish(("t/a", "1"), ("t/a", "2"))
                done = await one.pull(1)
                await one.ack(done)
                held = await one.pull()
                waiting = asyncio.create_task(one.pull(1, 30))
                await eventually(lambda: waiters(one) == 1)
                assert await one.subscriptions.seek(S, Place(seq=1)) == 0
                assert attempts(await waiting) == [(1, 1)]
                assert await one.ack(held) == [2]
                await one.subscriptions.seek(S, Place(seq=3))
                assert given(await one.pull()) == []
                with pytest.raises(PositionGone):
                    await one.subscriptions.seek(S, Place(seq=4))

        run(test)

    def test_deleting_ends_the_wait(self) -> None:
        async def test() -> None:
            async with running(memory()) as one:
                await one.put()
                waiting = asyncio.create_task(one.pull(1, 30))
                await eventually(lambda: waiters(one) == 1)
                await one.subscriptions.delete(S)
                with pytest.raises(NoSuchSubscription):
                    await waiting

        run(test)


class TestReading:
    def test_a_store_that_cannot_be_read_gives_the_lanes_back(self) -> None:
        async def test() -> None:
            class Unreadable(WrappedStore):
                fails = False

                def read(self, query: Query) -> Page:
                    if self.fails:
                        raise Unavailable("not now")
                    return super().read(query)

            store = Unreadable(memory())
            async with running(store) as one:
                await one.put()
                await one.publish(("t/a", "1"))
                store.fails = True
                with pytest.raises(Unavailable, match="not now"):
                    await one.pull()
                store.fails = False
                assert given(await one.pull()) == [1]

        run(test)

    def test_an_answer_ends_with_its_bytes_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sekali.subscriptions.reading.LANES_BYTES_MAX", 3)

        async def test() -> None:
            async with running(memory()) as one:
                await one.put(order=Ordering.NONE)
                await one.publish(*((f"t/{number}", "1") for number in range(5)))  # of 2 bytes each
                assert given(await one.pull()) == [1, 2]
                assert given(await one.pull()) == [3, 4]
                assert given(await one.pull()) == [5]

        run(test)
