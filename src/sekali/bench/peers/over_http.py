"""Sekali itself and the FastAPI service written for comparison, both under the load generator."""

import sys
from pathlib import Path

from sekali.bench.children import BenchFailed, Server, run_load
from sekali.bench.job import Job, LoadResult
from sekali.bench.loaded import load_checked
from sekali.bench.options import Notify, Options
from sekali.bench.peers.blocks import DUP_RATIO, DUP_WINDOW, PeerRun
from sekali.bench.peers.processes import free_port, listens, running


def sekali(folder: Path, options: Options, notify: Notify) -> PeerRun:
    """Measure Sekali with its default answers: batches of 500 over 8 connections."""
    with Server(folder, options.settings) as server:
        server.start()
        result, _ = load_checked(server, _job(options), notify, "Sekali")
        server.stop()
    return _as_run(result)


def fastapi_service(folder: Path, options: Options, notify: Notify, *, queue_of: str) -> PeerRun:
    """Measure the FastAPI service in the same way; ``queue_of`` is "events" or "requests".

    Raises:
        BenchFailed: it did not store each event once.

    """
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "sekali.bench.peers.service:app", "--port", str(port)]
    quiet = ["--no-access-log", "--log-level", "warning", "--timeout-keep-alive", "60"]
    environment = {"BENCH_DB_PATH": str(folder / "peer.db"), "BENCH_QUEUE_OF": queue_of}
    with running([*command, *quiet], folder / "peer.log", lambda: listens(port), environment=environment):
        notify(f"FastAPI, a queue of {queue_of}", 0.0)
        job = _job(options, port)
        result = run_load(job)
    if (result.stored, result.duplicate) != (result.unique, result.events - result.unique):
        raise BenchFailed(f"the FastAPI service stored {result.stored} of {result.unique} events")
    return _as_run(result)


def _job(options: Options, port: int = 0) -> Job:
    return Job(
        port=port,
        seconds=options.seconds,
        warmup_s=options.warmup_s,
        dup_ratio=DUP_RATIO,
        dup_window=DUP_WINDOW,
    )


def _as_run(result: LoadResult) -> PeerRun:
    return PeerRun(result.window_events, result.window_s)
