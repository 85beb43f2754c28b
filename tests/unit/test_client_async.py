"""The same publisher from asyncio: waiting for it never stops the loop, and cancelling is no accident."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_server import FakeServer, fake_server, problem
from sekali.client import AsyncPublisher, BufferFull, Limits, Publisher, PublisherClosed, Refused, Verdict, new_event

DEADLINE_S = 30.0
ROOM_FOR_ONE = Limits(buffer_events_max=1, linger_s=0)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


def _payloads(fake: FakeServer) -> list[int]:
    return [line["payload"] for request in fake.requests for line in request.lines]


def test_publish_and_await_the_verdict(fake: FakeServer) -> None:
    async def main() -> None:
        async with AsyncPublisher(Publisher(fake.url, source="shop")) as publisher:
            delivery = await publisher.publish("t", 1, event_id="a")
            assert await delivery == Verdict("stored", 1)
            assert await delivery == Verdict("stored", 1), "awaited again"
            event = new_event("t", 1, event_id="a", source="shop")
            assert (await (await publisher.publish_event(event))).outcome == "duplicate"
            assert await publisher.flush() and publisher.counts().stored == 1
        with pytest.raises(PublisherClosed):
            await publisher.publish("t", 2)

    asyncio.run(main())


def test_errors_come_out_of_the_await(fake: FakeServer) -> None:
    fake.script.append(problem(401, "No key", "…"))

    async def main() -> None:
        async with AsyncPublisher(Publisher(fake.url, on_drop=lambda event, why: None)) as publisher:
            with pytest.raises(Refused):
                await (await publisher.publish("t", 1))

    asyncio.run(main())


def test_tasks_wait_for_room_in_turn_and_the_loop_goes_on(fake: FakeServer) -> None:
    fake.gate.clear()

    async def main() -> None:
        async with AsyncPublisher(Publisher(fake.url, limits=ROOM_FOR_ONE)) as publisher:
            await publisher.publish("t", 0)
            tasks = [asyncio.create_task(publisher.publish("t", number)) for number in range(1, 20)]
            await asyncio.sleep(0)  # each of them runs until it waits
            await asyncio.sleep(0)
            assert not any(task.done() for task in tasks)
            fake.gate.set()
            for delivery in await asyncio.gather(*tasks):
                assert (await delivery).ok

    asyncio.run(main())
    assert _payloads(fake) == list(range(20))


def test_a_task_that_is_cancelled_while_it_waits_for_room_has_published_nothing(fake: FakeServer) -> None:
    fake.gate.clear()

    async def main() -> None:
        async with AsyncPublisher(Publisher(fake.url, limits=ROOM_FOR_ONE)) as publisher:
            await publisher.publish("t", 0)
            tasks = [asyncio.create_task(publisher.publish("t", number)) for number in (1, 2, 3)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            tasks[1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[1]
            fake.gate.set()
            await tasks[0]
            assert (await (await tasks[2])).ok
            assert publisher.counts().published == 3

    asyncio.run(main())
    assert _payloads(fake) == [0, 1, 3]


def test_a_cancelled_wait_for_a_verdict_takes_nothing_back(fake: FakeServer) -> None:
    fake.gate.clear()

    async def main() -> None:
        async with AsyncPublisher(Publisher(fake.url)) as publisher:
            delivery = await publisher.publish("t", 1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(delivery, 0.01)
            fake.gate.set()
            assert (await delivery).ok

    asyncio.run(main())
    assert len(fake.events) == 1


def test_a_full_buffer_may_raise_instead(fake: FakeServer) -> None:
    fake.gate.clear()

    async def main() -> None:
        async with AsyncPublisher(Publisher(fake.url, limits=ROOM_FOR_ONE, when_full="raise")) as publisher:
            await publisher.publish("t", 0)
            with pytest.raises(BufferFull):
                await publisher.publish("t", 1)
            fake.gate.set()

    asyncio.run(main())


def test_with_an_outbox_publish_returns_when_the_event_is_on_disk(fake: FakeServer, tmp_path: Path) -> None:
    fake.gate.clear()

    async def main() -> None:
        inner = Publisher(fake.url, outbox=tmp_path / "outbox.db")
        async with AsyncPublisher(inner) as publisher:
            deliveries = await asyncio.gather(*(publisher.publish("t", number) for number in range(50)))
            assert inner._file is not None
            connection = inner._file.open()
            assert inner._file.outbox.pending(connection) == 50
            connection.close()
            fake.gate.set()
            assert {(await delivery).outcome for delivery in deliveries} == {"stored"}

    asyncio.run(main())
    assert sorted(_payloads(fake)) == list(range(50))
