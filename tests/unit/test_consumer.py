"""The consumer over stores that wait and fail."""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from batches import DUPLICATE, STORED, batch
from sekali.consumer import Consumer
from sekali.errors import CommitUnknown, DiskFull, QueueFull, SekaliError, StoreBroken, Unavailable
from sekali.event import Batch, Verdict
from sekali.metrics import Metrics
from sekali.ports import EventStore, Progress, Query, no_progress
from sekali.stores.memory import MemoryStore
from sekali.testing import FailingStore, FakeClock, GatedStore, WrappedStore
from sekali.tickets import ChangeTicket, Group, Ticket
from sekali.writer import Listener, Writer


def memory() -> MemoryStore:
    return MemoryStore(FakeClock(), topics_max=100)


def make(
    store: EventStore, *, workers: int = 0, queue_events_max: int = 1000, commit_events_max: int = 100, **options: Any
) -> Consumer:
    return Consumer(
        store,
        Metrics(time.monotonic),
        time.monotonic,
        workers=workers,
        queue_events_max=queue_events_max,
        commit_events_max=commit_events_max,
        commit_wait_ms_max=0,
        **options,
    )


@asynccontextmanager
async def running(store: EventStore, **options: Any) -> AsyncIterator[Consumer]:
    consumer = make(store, **options)
    consumer.start()
    await consumer.ready.wait()
    try:
        yield consumer
    finally:
        assert await consumer.stop(30)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


async def publish(consumer: Consumer, *events: tuple[str, str]) -> list[Any]:
    future: asyncio.Future[list[Verdict]] = asyncio.get_running_loop().create_future()

    def on_done(verdicts: list[Verdict], failure: SekaliError | None) -> None:
        if future.done():  # the publisher has left
            return
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(verdicts)

    consumer.submit(batch(*events), time.monotonic(), on_done)
    return [verdict.outcome for verdict in await future]


async def eventually(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


class RecordingStore(WrappedStore):
    """Remembers the sizes of the commits."""

    def __init__(self, store: EventStore) -> None:
        super().__init__(store)
        self.commits: list[int] = []

    def commit(self, prepared: Sequence[Any]) -> list[list[Verdict]]:
        self.commits.append(sum(len(batch) for batches in prepared for batch in batches))
        return super().commit(prepared)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_whatever_waits_is_committed_together_in_order(workers: int) -> None:
    async def test() -> None:
        inner = memory()
        recording = RecordingStore(inner)
        gated = GatedStore(recording)
        async with running(gated, workers=workers, commit_events_max=10) as consumer:
            first = asyncio.create_task(publish(consumer, ("a", "first")))
            await asyncio.to_thread(gated.reached.wait)
            tasks = [
                asyncio.create_task(publish(consumer, ("a", str(number)), ("b", str(number)))) for number in range(40)
            ]
            await eventually(lambda: consumer.events_waiting == 81)
            gated.gate.set()
            assert await first == [STORED]
            assert await asyncio.gather(*tasks) == [[STORED, STORED]] * 40
            assert consumer.events_waiting == 0 and consumer.oldest_waiting_s == 0
        ids = [event.event_id for event in inner.read(Query(topic="a")).events]  # type: ignore[union-attr]
        assert ids == ["first", *map(str, range(40))]
        assert recording.commits[0] == 1 and max(recording.commits) <= 10
        assert len(recording.commits) < 40

    run(test)


def test_a_request_larger_than_a_commit_is_one_commit() -> None:
    async def test() -> None:
        recording = RecordingStore(memory())
        async with running(recording, commit_events_max=3) as consumer:
            assert await publish(consumer, *[("a", str(number)) for number in range(20)]) == [STORED] * 20
        assert recording.commits == [20]

    run(test)


def test_a_full_queue_takes_nothing_and_the_room_comes_back() -> None:
    async def test() -> None:
        gated = GatedStore(memory())
        async with running(gated, queue_events_max=5) as consumer:
            waiting = asyncio.create_task(publish(consumer, *[("a", str(number)) for number in range(4)]))
            await eventually(lambda: consumer.events_waiting == 4)
            with pytest.raises(QueueFull, match="QUEUE_EVENTS_MAX"):
                await publish(consumer, ("b", "1"), ("b", "2"))
            assert consumer.events_waiting == 4
            assert consumer.oldest_waiting_s > 0
            gated.gate.set()
            assert await waiting == [STORED] * 4
            assert await publish(consumer, *[("b", str(number)) for number in range(5)]) == [STORED] * 5

    run(test)


@pytest.mark.parametrize("after_commit", [False, True])
def test_a_failed_commit_is_unknown_and_the_retry_settles_it(after_commit: bool) -> None:
    async def test() -> None:
        failing = FailingStore(memory(), failures_left=1, after_commit=after_commit)
        async with running(failing) as consumer:
            with pytest.raises(CommitUnknown):
                await publish(consumer, ("a", "1"))
            await eventually(lambda: consumer.trouble is None)
            assert await publish(consumer, ("a", "1")) == [DUPLICATE if after_commit else STORED]
        assert failing.failed == 1

    run(test)


def test_in_trouble_everything_is_refused_at_once_until_a_probe_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekali.writer.PROBE_INTERVAL_S", 0.001)

    async def test() -> None:
        failing = FailingStore(memory(), failures_left=10**9)
        async with running(failing) as consumer:
            with pytest.raises(CommitUnknown):
                await publish(consumer, ("a", "1"))
            with pytest.raises(Unavailable, match="injected"):
                await publish(consumer, ("a", "1"))
            await eventually(lambda: failing.failed > 5)
            assert consumer.trouble is not None
            failing.failures_left = 0
            await eventually(lambda: consumer.trouble is None)
            assert await publish(consumer, ("a", "1")) == [STORED]

    run(test)


def test_what_is_in_line_when_a_commit_fails_is_answered_and_not_lost_in_silence() -> None:
    async def test() -> None:
        inner = FailingStore(memory(), failures_left=1)
        gated = GatedStore(inner)
        async with running(gated, workers=2, commit_events_max=2) as consumer:
            tasks = [asyncio.create_task(publish(consumer, ("a", str(number)))) for number in range(30)]
            await eventually(lambda: consumer.events_waiting == 30)
            gated.gate.set()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(answer, Unavailable) or answer == [STORED] for answer in answers)
            assert any(isinstance(answer, CommitUnknown) for answer in answers)
            await eventually(lambda: consumer.trouble is None)
            acknowledged = {str(number) for number, answer in enumerate(answers) if answer == [STORED]}
            stored = {event.event_id for event in inner.read(Query()).events}  # type: ignore[union-attr]
            assert stored == acknowledged

    run(test)


@pytest.mark.parametrize("what", ["events", "changes"])
def test_a_group_that_was_left_unprepared_in_trouble_that_is_over_is_given_back(what: str) -> None:
    """It was put together after the recovery had begun, and looked at before the recovery ended."""
    done: queue.SimpleQueue[tuple[list[Ticket], list[ChangeTicket]]] = queue.SimpleQueue()
    ready = threading.Event()
    listener = Listener(
        ready.set, lambda tickets, changes, groups, committed: done.put((tickets, changes)), no_call, no_call
    )
    writer = Writer(memory(), time.monotonic, listener, commit_events_max=10)
    writer.start()
    assert ready.wait(30)
    tickets = [Ticket(batch(("a", "1")), 0.0, no_call, keep=False)] if what == "events" else []
    changes = [ChangeTicket([], no_call)] if what == "changes" else []
    writer.put(Group(tickets, changes, writer.generation))
    found = done.get(timeout=30)
    failures = [one.failure for one in found[0]] + [one.failure for one in found[1]]
    assert [type(failure) for failure in failures] == [Unavailable]
    writer.end()
    assert writer.join(30) and writer.trouble is None


def no_call(*_: object) -> None:
    pass


def test_what_was_accepted_for_later_is_tried_until_it_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekali.writer.PROBE_INTERVAL_S", 0.001)

    async def test() -> None:
        failing = FailingStore(memory(), failures_left=4)
        released: list[str] = []
        async with running(failing) as consumer:
            consumer.submit(batch(("a", "1")), time.monotonic(), lambda *_: released.append("1"), keep=True)
            await eventually(lambda: bool(released))
            assert failing.failed == 4
            assert failing.summary().lifetime.stored == 1
            assert consumer.events_waiting == 0

    run(test)


def test_a_store_that_cannot_recover_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekali.writer.PROBE_INTERVAL_S", 0.001)

    class Broken(FailingStore):
        recoveries = 0  # the first is that of the start

        def recover(self, progress: Progress = no_progress) -> None:
            self.recoveries += 1
            if self.recoveries in {2, 3, 4}:
                raise StoreBroken("cannot open: injected")

    async def test() -> None:
        broken = Broken(memory(), failures_left=1)
        async with running(broken) as consumer:
            with pytest.raises(CommitUnknown):
                await publish(consumer, ("a", "1"))
            await eventually(lambda: consumer.trouble is None)
            assert broken.recoveries == 5
            assert await publish(consumer, ("a", "1")) == [STORED]

    run(test)


@pytest.mark.parametrize("method", ["prepare", "commit"])
def test_a_defect_answers_its_own_request_and_the_next_one_goes_on(method: str) -> None:
    class Defective(WrappedStore):
        armed = True

        def fail(self) -> None:
            if self.armed:
                self.armed = False
                raise ZeroDivisionError("injected")

        def prepare(self, batches: Sequence[Batch]) -> Any:
            if method == "prepare":
                self.fail()
            return super().prepare(batches)

        def commit(self, prepared: Sequence[Any]) -> list[list[Verdict]]:
            if method == "commit":
                self.fail()
            return super().commit(prepared)

    async def test() -> None:
        defective = Defective(memory())
        async with running(defective) as consumer:
            with pytest.raises(Unavailable, match="injected"):
                await publish(consumer, ("a", "1"))
            assert not defective.armed
            await eventually(lambda: consumer.trouble is None)
            assert await publish(consumer, ("a", "1")) == [STORED]

    run(test)


def test_stopping_commits_what_was_accepted_and_refuses_the_rest() -> None:
    async def test() -> None:
        gated = GatedStore(memory())
        async with running(gated, workers=3) as consumer:
            tasks = [asyncio.create_task(publish(consumer, ("a", str(number)))) for number in range(20)]
            await eventually(lambda: consumer.events_waiting == 20)
            stop = asyncio.create_task(consumer.stop(30))
            await asyncio.sleep(0)
            with pytest.raises(Unavailable, match="stopping"):
                await publish(consumer, ("a", "late"))
            gated.gate.set()
            assert await asyncio.gather(*tasks) == [[STORED]] * 20
            assert await stop

    run(test)


def test_stopping_has_a_deadline() -> None:
    async def test() -> None:
        gated = GatedStore(memory())
        async with running(gated) as consumer:
            task = asyncio.create_task(publish(consumer, ("a", "1")))
            await asyncio.to_thread(gated.reached.wait)
            assert not await consumer.stop(0.01)
            gated.gate.set()
            assert await task == [STORED]

    run(test)


def test_a_publisher_that_left_disturbs_nobody() -> None:
    async def test() -> None:
        gated = GatedStore(memory())
        async with running(gated) as consumer:
            gone = asyncio.create_task(publish(consumer, ("a", "1")))
            await asyncio.to_thread(gated.reached.wait)
            stays = asyncio.create_task(publish(consumer, ("a", "2")))
            await eventually(lambda: consumer.events_waiting == 2)
            gone.cancel()
            gated.gate.set()
            assert await stays == [STORED]
            assert await publish(consumer, ("a", "1")) == [DUPLICATE]
            assert consumer.events_waiting == 0

    run(test)


def test_no_thread_stays_behind() -> None:
    async def test() -> None:
        async with running(memory(), workers=5) as consumer:
            await publish(consumer, ("a", "1"))

    run(test)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("sekali-w")]


class FullDisk(WrappedStore):
    """Has no room while ``full``; counts recoveries."""

    def __init__(self, store: EventStore) -> None:
        super().__init__(store)
        self.full = False
        self.refused = 0
        self.recoveries = 0

    def prepare(self, batches: Sequence[Batch]) -> Any:
        if self.full:
            self.refused += 1
            raise DiskFull("no room")
        return super().prepare(batches)

    def recover(self, progress: Progress = no_progress) -> None:
        self.recoveries += 1
        super().recover(progress)


def test_a_full_disk_is_waited_for_without_a_recovery_and_for_as_long_as_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sekali.writer.PROBES_MAX", 3)
    monkeypatch.setattr("sekali.writer.PROBE_INTERVAL_S", 0.0001)

    async def test() -> None:
        store = FullDisk(memory())
        gave_up: list[str] = []
        async with running(store, on_give_up=gave_up.append) as consumer:
            assert await publish(consumer, ("a", "1")) == [STORED]
            store.full = True
            with pytest.raises(DiskFull):
                await publish(consumer, ("a", "2"))
            with pytest.raises(Unavailable, match="no room"):
                await publish(consumer, ("a", "3"))
            assert consumer.trouble == "no room"
            await eventually(lambda: store.refused > 20)
            store.full = False
            await eventually(lambda: consumer.trouble is None)
            assert await publish(consumer, ("a", "1"), ("a", "2"), ("a", "3")) == [DUPLICATE, STORED, STORED]
        assert (store.recoveries, gave_up) == (1, [])

    run(test)


def test_what_was_prepared_while_the_disk_was_full_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group behind one that had no room was judged; it is refused, so the store has to start over."""
    monkeypatch.setattr("sekali.writer.PROBE_INTERVAL_S", 0.0001)
    monkeypatch.setattr("sekali.consumer.GROUPS_AHEAD_MAX", 3)

    async def test() -> None:
        store = FullDisk(memory())
        gated = GatedStore(store)
        async with running(gated, commit_events_max=1) as consumer:
            first = asyncio.create_task(publish(consumer, ("a", "1")))
            await asyncio.to_thread(gated.reached.wait)
            store.full = True
            second = asyncio.create_task(publish(consumer, ("a", "2")))
            await eventually(lambda: store.refused == 1)
            store.full = False
            third = asyncio.create_task(publish(consumer, ("a", "3")))
            await eventually(lambda: consumer.events_waiting == 3)
            await asyncio.sleep(0)
            gated.gate.set()
            assert await first == [STORED]
            for task in (second, third):
                with pytest.raises(Unavailable):
                    await task
            await eventually(lambda: consumer.trouble is None)
            assert await publish(consumer, ("a", "3")) == [STORED]
        assert store.recoveries == 2

    run(test)


@pytest.mark.parametrize("failing", ["commit", "recover"])
def test_after_a_number_of_failures_it_gives_up_once_and_says_why(
    failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sekali.writer.PROBES_MAX", 5)
    monkeypatch.setattr("sekali.writer.PROBE_INTERVAL_S", 0.0001)

    class Fails(WrappedStore):
        broken = False
        failed = 0

        def commit(self, prepared: Sequence[Any]) -> list[list[Verdict]]:
            if self.broken:
                self.failed += failing == "commit"
                raise CommitUnknown("the disk fails")
            return super().commit(prepared)

        def recover(self, progress: Progress = no_progress) -> None:
            if self.broken and failing == "recover":
                self.failed += 1
                raise StoreBroken("the disk fails")
            super().recover(progress)

    async def test() -> None:
        store = Fails(memory())
        gave_up: list[str] = []
        later: list[SekaliError | None] = []
        async with running(store, on_give_up=gave_up.append) as consumer:
            assert await publish(consumer, ("a", "1")) == [STORED]
            store.broken = True
            consumer.submit(batch(("a", "kept")), 0, lambda verdicts, failure: later.append(failure), keep=True)
            with pytest.raises(CommitUnknown, match="the disk fails"):
                await publish(consumer, ("a", "2"))
            await eventually(lambda: bool(gave_up))
            with pytest.raises(Unavailable, match="the disk fails"):
                await publish(consumer, ("a", "3"))
            assert consumer.trouble == "the disk fails"
            failed = store.failed
        assert gave_up == ["the disk fails"]
        # The first failure is no probe.
        assert store.failed == failed == (6 if failing == "commit" else 5)
        assert [type(failure) for failure in later] == [Unavailable]
        assert consumer.events_waiting == 0

    run(test)


def test_now_and_then_a_failure_is_no_reason_to_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekali.writer.PROBES_MAX", 3)
    monkeypatch.setattr("sekali.writer.PROBE_INTERVAL_S", 0.0001)

    async def test() -> None:
        store = FailingStore(memory())
        gave_up: list[str] = []
        async with running(store, on_give_up=gave_up.append) as consumer:
            for number in range(10):
                store.failures_left = 3
                with pytest.raises(CommitUnknown):
                    await publish(consumer, ("a", str(number)))
                await eventually(lambda: consumer.trouble is None)
        assert (store.failed, gave_up) == (30, [])

    run(test)


def test_a_commit_that_hangs_keeps_nobody_waiting_and_its_end_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekali.consumer.LOOK_INTERVAL_S", 0.001)
    monkeypatch.setattr("sekali.consumer.COMMIT_TIMEOUT_S", 0.01)

    async def test() -> None:
        gated = GatedStore(memory())
        later: list[SekaliError | None] = []
        async with running(gated) as consumer:
            with pytest.raises(CommitUnknown, match="the disk of the store does not answer"):
                await publish(consumer, ("a", "1"))
            assert consumer.trouble is not None and "does not answer" in consumer.trouble
            with pytest.raises(Unavailable, match="does not answer"):
                await publish(consumer, ("a", "2"))
            assert consumer.events_waiting == 1  # until the commit ends, it takes its room
            gated.gate.set()
            await eventually(lambda: consumer.trouble is None)
            monkeypatch.setattr("sekali.consumer.COMMIT_TIMEOUT_S", 30)  # a commit that is only slow does not hang
            assert await publish(consumer, ("a", "1"), ("a", "2")) == [DUPLICATE, STORED]
            assert consumer.events_waiting == 0 and consumer.oldest_waiting_s == 0
            monkeypatch.setattr("sekali.consumer.COMMIT_TIMEOUT_S", 0.01)
            # What is kept is told once it is committed, however long that took.
            gated.gate.clear()
            consumer.submit(batch(("a", "kept")), 0, lambda verdicts, failure: later.append(failure), keep=True)
            await eventually(lambda: consumer.trouble is not None)
            assert later == []
            gated.gate.set()
            await eventually(lambda: later == [None])

    run(test)


def test_without_its_writer_the_consumer_says_so_and_gives_up() -> None:
    async def test() -> None:
        class Breaks(WrappedStore):
            def recover(self, progress: Progress = no_progress) -> None:
                raise ZeroDivisionError

        gave_up: list[str] = []
        consumer = make(Breaks(memory()), on_give_up=gave_up.append)
        consumer.start()
        await eventually(lambda: bool(gave_up))
        assert "ZeroDivisionError" in gave_up[0]
        with pytest.raises(Unavailable, match="ZeroDivisionError"):
            await publish(consumer, ("a", "1"))
        assert await consumer.stop(30)

    run(test)
