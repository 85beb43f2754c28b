"""Sekali and its peers in the same run: the same events, 20 % duplicates, ids in time order, on the same disk."""

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sekali.bench.children import BenchFailed
from sekali.bench.options import Notify, Options, Report, Table, part_of
from sekali.bench.peers import jetstream, over_http, postgres, redis_stream
from sekali.bench.peers.blocks import PeerRun, Send, timed
from sekali.bench.targets import Target

Connected = Callable[[Path], AbstractContextManager[Send]]
Measure = Callable[[Path, Options, Notify], PeerRun]
SEKALI = "Sekali"


@dataclass(frozen=True, slots=True)
class Peer:
    """A system, how it is used, and how many times as fast Sekali is to be."""

    name: str
    how: str
    measure: Measure
    times: float | None = None


def _in_blocks(connected: Connected, name: str, chunks: int) -> Measure:
    def measure(folder: Path, options: Options, notify: Notify) -> PeerRun:
        notify(name, 0.0)
        with connected(folder) as send:
            return timed(send, seconds=options.seconds, chunks=chunks, notify=lambda done: notify(name, done))

    return measure


PEERS = (
    Peer(SEKALI, "batches of 500 over 8 connections, HTTP, fsync", over_http.sekali),
    Peer(
        "FastAPI service",
        "a pydantic model an event, asyncio.Queue of events, one INSERT an event on a thread, fsync a request",
        partial(over_http.fastapi_service, queue_of="events"),
        times=40,
    ),
    Peer(
        "FastAPI service, tuned",
        "the same with a queue of requests, and statements run on the event loop",
        partial(over_http.fastapi_service, queue_of="requests"),
    ),
    Peer(
        "JetStream, fsync",
        f"Nats-Msg-Id, sync_interval: always, {jetstream.IN_FLIGHT_MAX} in flight from Python",
        _in_blocks(partial(jetstream.connected, sync_always=True), "JetStream, fsync", 4),
        times=40,
    ),
    Peer(
        "JetStream, default",
        "the same, but fsync only every two minutes: not durable",
        _in_blocks(partial(jetstream.connected, sync_always=False), "JetStream, default", 10),
    ),
    Peer(
        "PostgreSQL",
        f"ON CONFLICT DO NOTHING, unnest of {postgres.BATCH:,} events, synchronous_commit",
        _in_blocks(partial(postgres.connected, connections=1), "PostgreSQL", 20),
        times=6,
    ),
    Peer(
        "PostgreSQL, 2 connections",
        "the same over two connections at once",
        _in_blocks(partial(postgres.connected, connections=2), "PostgreSQL, 2 connections", 20),
    ),
    Peer(
        "Redis",
        f"Lua with a set and a stream, pipelines of {redis_stream.PIPELINE}, appendfsync always",
        _in_blocks(redis_stream.connected, "Redis", 20),
        times=4,
    ),
)


def run(options: Options, notify: Notify) -> Report:
    """Measure each ``rounds`` times, one after the other in each round; what is missing or wrong is left out."""
    wanted = [peer for peer in PEERS if peer.name == SEKALI or options.only.lower() in peer.name.lower()]
    runs: dict[str, list[float]] = {peer.name: [] for peer in wanted}
    missing: dict[str, str] = {}
    steps = options.rounds * len(wanted)
    for number in range(options.rounds):
        for place, peer in enumerate(wanted):
            if peer.name in missing:
                continue
            try:
                with options.folder() as folder:
                    one = peer.measure(folder, options, part_of(notify, number * len(wanted) + place, steps))
            except BenchFailed as reason:
                if peer.name == SEKALI:
                    raise
                missing[peer.name] = str(reason)  # not there, or not right: the others go on
            else:
                runs[peer.name].append(one.rate)
    rates = {name: statistics.median(some) for name, some in runs.items() if name not in missing}
    figures: dict[str, Any] = {"rates": rates, "runs": runs, "missing": missing}
    return Report(figures, [_table(wanted, figures)], _targets(wanted, rates))


def _table(wanted: list[Peer], figures: dict[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = []
    rates = figures["rates"]
    for peer in wanted:
        if (rate := rates.get(peer.name)) is None:
            rows.append((peer.name, peer.how, "not measured", "", ""))
            continue
        some = figures["runs"][peer.name]
        ends = f"{min(some):,.0f} to {max(some):,.0f}"
        times = "" if peer.name == SEKALI else f"{rates[SEKALI] / rate:.1f}"
        rows.append((peer.name, peer.how, f"{rate:,.0f}", ends, times))
    notes = [f"{name}: {reason}" for name, reason in figures["missing"].items()]
    columns = ("system", "how", "events/s", "from, to", "Sekali is times as fast")
    return Table("peers: the same events, 20 % duplicates, UUIDv7, medians", columns, rows, notes)


def _targets(wanted: list[Peer], rates: dict[str, float]) -> list[Target]:
    return [
        Target(
            group=6,
            what=f"beside {peer.name}",
            measured=rates[SEKALI] / rates[peer.name] if peer.name in rates else None,
            bound=peer.times,
            text="{:.1f} times its rate",
        )
        for peer in wanted
        if peer.times is not None
    ]
