"""A store with many events: filled over HTTP, kept for another benchmark, watched while it grows."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from sekali.bench import proc
from sekali.bench.children import BenchFailed, Server
from sekali.bench.events import EVENT_BYTES, IdKind
from sekali.bench.job import Job, LoadResult, Sample
from sekali.bench.loaded import load_checked
from sekali.bench.options import Notify, Options

DUP_RATIO = 0.2
SLOWEST_EVENTS_PER_S = 5000  # below that a benchmark gives up
POINTS = 40  # of the plot against stored events
DISK_BYTES_PER_EVENT = 2 * EVENT_BYTES  # more than a store takes
_FACTS = "bench.json"


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What a large store holds: at least the events 0 to ``events`` of ``seed``."""

    seed: int
    id_kind: IdKind
    events: int

    def write(self, folder: Path) -> None:
        """Leave this beside the store's own folder."""
        (folder.parent / _FACTS).write_bytes(msgspec.json.encode(self) + b"\n")


def read_kept(folder: Path) -> Kept:
    """Return what the store in ``folder`` holds.

    Raises:
        BenchFailed: it was not made by a benchmark.

    """
    try:
        return msgspec.json.decode((folder.parent / _FACTS).read_bytes(), type=Kept)
    except (OSError, msgspec.MsgspecError):
        raise BenchFailed(
            f"{folder.parent} holds no store kept by: sekali bench growth --keep {folder.parent}"
        ) from None


@contextmanager
def kept_folder(options: Options) -> Iterator[Path]:
    """Give a fresh folder for a large store: in ``options.keep``, or one that is removed afterwards.

    Raises:
        BenchFailed: there is something in ``options.keep``, or no room on the disk.

    """
    if options.keep is None:
        with options.folder() as folder:
            require_disk(folder, options.events * DISK_BYTES_PER_EVENT)
            yield folder
        return
    folder = options.keep / "store"
    if folder.exists():
        raise BenchFailed(f"{folder} exists already; --keep needs a folder without a store")
    folder.mkdir(parents=True)
    require_disk(folder, options.events * DISK_BYTES_PER_EVENT)
    yield folder


@contextmanager
def large_store(options: Options, notify: Notify) -> Iterator[tuple[Server, Kept]]:
    """Give a server that is ready on a large store: the one in ``options.store``, or a new one."""
    if options.store is not None:
        folder = options.store / "store"
        kept = read_kept(folder)
        with Server(folder, options.settings) as server:
            notify("starting on the store that was kept", 0.0)
            server.start()
            yield server, kept
        return
    kept = Kept(seed=1, id_kind=IdKind.UUID4, events=options.events)
    with kept_folder(options) as folder, Server(folder, options.settings) as server:
        server.start()
        preload(server, kept, notify)
        kept.write(folder)
        yield server, kept


def require_disk(folder: Path, wanted_bytes: int) -> None:
    """Make sure of room on the disk.

    Raises:
        BenchFailed: there is too little.

    """
    free = shutil.disk_usage(folder).free
    if free < wanted_bytes:
        raise BenchFailed(
            f"the disk of {folder} has {free / 1e9:.1f} GB free and {wanted_bytes / 1e9:.1f} GB may be needed: "
            "take another with --db-dir, or fewer with --events or --seconds"
        )


class Growth:
    """Looks at a server from time to time while its store grows: a point for every so many events stored."""

    def __init__(self, server: Server, every: int) -> None:
        self._server = server
        self._every = every
        self._last = Sample(0.0, 0, 0)
        self.points: list[dict[str, Any]] = []

    def watch(self, sample: Sample) -> None:
        """Take a point where enough has been stored since the last."""
        if sample.unique - self._last.unique < self._every or sample.at_s <= self._last.at_s:
            return
        events, seconds = sample.events - self._last.events, sample.at_s - self._last.at_s
        self._last = sample
        self.points.append({"stored": sample.unique, "events_per_s": events / seconds, **sizes(self._server)})


def sizes(server: Server) -> dict[str, int]:
    """Return a server's private memory and its files, in bytes."""
    wal = server.db_path.with_name(server.db_path.name + "-wal")
    return {
        "private_bytes": proc.private_bytes(server.pid),
        "wal_bytes": wal.stat().st_size if wal.exists() else 0,
        "folder_bytes": proc.folder_bytes(server.folder),
    }


def preload(server: Server, kept: Kept, notify: Notify) -> tuple[LoadResult, list[dict[str, Any]]]:
    """Fill an empty store up to ``kept.events``, in batches of 500 with 20 % duplicates; return the points passed.

    Raises:
        BenchFailed: it took too long, or the server is wrong.

    """
    sent = round(kept.events / (1 - DUP_RATIO)) // 500 * 500 + 1000
    growth = Growth(server, max(kept.events // POINTS, 1))
    job = Job(
        port=0,
        seed=kept.seed,
        id_kind=kept.id_kind,
        dup_ratio=DUP_RATIO,
        events_max=sent,
        warmup_s=0,
        seconds=60 + sent / SLOWEST_EVENTS_PER_S,
    )
    result, _ = load_checked(server, job, notify, f"filling a store with {kept.events:,} events", growth.watch)
    if result.unique < kept.events:
        raise BenchFailed(f"only {result.unique:,} of {kept.events:,} events were stored within {job.seconds:,.0f} s")
    if not growth.points:  # so few that it took less than the time between two samples
        growth.watch(Sample(result.window_s, result.events, result.unique))
    return result, growth.points
