"""Redis: a Lua script with a set and a stream, in pipelines of 500, with ``appendfsync always``."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sekali.bench.children import BenchFailed
from sekali.bench.peers.blocks import Block, Send
from sekali.bench.peers.processes import Missing, free_port, listens, require_modules, running

PIPELINE = 500
_SCRIPT = """
if redis.call('SADD', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('XADD', KEYS[2], '*', 'event', ARGV[2])
return 1
"""


@contextlib.contextmanager
def connected(folder: Path) -> Iterator[Send]:
    """Run a server in ``folder`` and give what adds to it.

    Raises:
        Missing: it is not installed.
        BenchFailed: it does not start, or does not sync.

    """
    require_modules("redis")
    program = shutil.which("redis-server")
    if program is None:
        raise Missing("redis-server is missing: apt-get install redis-server")
    import redis  # noqa: PLC0415 - an extra

    port = free_port()
    settings = {"port": port, "bind": "127.0.0.1", "dir": folder, "appendonly": "yes", "appendfsync": "always"}
    command = [program, *(text for name, value in settings.items() for text in (f"--{name}", str(value)))]
    with running([*command, "--save", ""], folder / "redis.log", lambda: listens(port)):
        client = redis.Redis(host="127.0.0.1", port=port)
        if client.config_get("append*")["appendfsync"] != "always":
            raise BenchFailed("Redis does not sync before it answers")
        script = client.script_load(_SCRIPT)
        try:
            yield lambda block: _add(client, script, block)
        finally:
            client.close()


def _add(client: Any, script: str, block: Block) -> int:
    """Add a block, and return how many events were new."""
    new = 0
    for start in range(0, len(block), PIPELINE):
        part = block.part(start, start + PIPELINE)
        pipeline = client.pipeline(transaction=False)
        for topic, event_id, document in zip(part.topics, part.event_ids, part.documents, strict=True):
            pipeline.evalsha(script, 2, f"seen:{topic}", f"events:{topic}", event_id, document)
        new += sum(pipeline.execute())
    return new
