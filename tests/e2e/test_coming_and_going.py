"""100 followers that leave, come back and stand still at random during a load: each sees every event once, in order.

By hand, with a million events: ``python -m pytest tests/e2e/test_coming_and_going.py --followers-events 1000000``.
"""

import json
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from coming_and_going import MOVES, Crowd, digest_of
from e2e.conftest import Launch
from e2e.server import SEKALI, ServerProcess, clean_environment
from sekali.bench import machine

TEST = "tests/e2e/test_coming_and_going.py::test_each_of_many_followers_sees_every_event_once_and_in_order"
FOLLOWERS = 100
EVENTS, EVENTS_PER_S, STAY_S = 20_000, 5000, 0.5
LONG_EVENTS_PER_S, LONG_STAY_S = 3000, 3.0
DEADLINE_S, LONG_DEADLINE_S = 120, 7200  # only ever reached by a test that fails


@contextmanager
def _load(server: ServerProcess, events: int, rate: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Publish new events at a rate."""
    options = ["--count", events, "--rate", rate, "--batch-size", 100, "--dup-ratio", 0, "--url", server.url]
    with subprocess.Popen(
        [SEKALI, "publish", *map(str, options)],
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _follow(server: ServerProcess, crowd: Crowd, events: int, rate: int, deadline_s: float) -> None:
    with _load(server, events, rate) as load:

        def last_seq() -> int | None:
            if load.poll() is None:
                return None
            assert load.returncode == 0
            return events

        crowd.follow(last_seq, deadline_s)


def test_each_of_many_followers_sees_every_event_once_and_in_order(
    launch: Launch, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    long: int | None = pytestconfig.getoption("--followers-events")
    given_seed: int | None = pytestconfig.getoption("--followers-seed")
    seed = random.randrange(2**32) if given_seed is None else given_seed
    Console().print(f"seed {seed}")
    events, rate, stay_s, deadline_s = (
        (EVENTS, EVENTS_PER_S, STAY_S, DEADLINE_S)
        if long is None
        else (long, LONG_EVENTS_PER_S, LONG_STAY_S, LONG_DEADLINE_S)
    )
    server = launch()
    log_id = str(server.http.stats()["log_id"])
    crowd = Crowd(server.port, log_id, FOLLOWERS, random.Random(seed), stay_s)
    begun_s = time.monotonic()
    _follow(server, crowd, events, rate, deadline_s)
    figures = _figures(crowd, events, time.monotonic() - begun_s) | {
        "server_resident_bytes_peak": server.resident_bytes_peak
    }
    Console().print(figures)
    with server.http.stream() as response:
        count, digest = digest_of(log_id, response.stream(1 << 20))
    assert count == events
    assert [(one.skipped, one.repeated) for one in crowd.travellers] == [(0, 0)] * FOLLOWERS
    assert {one.digest.digest() for one in crowd.travellers} == {digest}, "what they saw is not what /events shows"
    assert crowd.moves.keys() == set(MOVES)
    assert crowd.came_back_behind > FOLLOWERS, "they did not come back in the middle of the load"
    report: str | None = pytestconfig.getoption("--followers-report")
    if report is not None:
        options = f"--followers-events {events} --followers-seed {seed} --followers-report {report}"
        document = {"command": f"python -m pytest {TEST} {options}", "seed": seed, "machine": machine.facts(tmp_path)}
        Path(report).write_text(json.dumps(document | figures, indent=1) + "\n")


def _figures(crowd: Crowd, events: int, seconds: float) -> dict[str, Any]:
    return {
        "events": events,
        "followers": len(crowd.travellers),
        "seconds": round(seconds, 1),
        "events_delivered": sum(one.position for one in crowd.travellers),
        "connections": sum(one.connections for one in crowd.travellers),
        "moves": dict(crowd.moves),
        "came_back_behind": crowd.came_back_behind,
        "cut_by_the_server": crowd.cut,
        "skipped": sum(one.skipped for one in crowd.travellers),
        "repeated": sum(one.repeated for one in crowd.travellers),
    }


@pytest.mark.parametrize("fault", ["skipped", "repeated"])
def test_an_event_that_is_skipped_or_repeated_at_the_seam_is_found_out(launch: Launch, fault: str) -> None:
    """The control: what the test above looks for, it finds where it is."""
    seed = random.randrange(2**32)
    Console().print(f"seed {seed}")
    server = launch(faults=f"resumers-{fault}")
    log_id = str(server.http.stats()["log_id"])
    crowd = Crowd(server.port, log_id, 10, random.Random(seed), stay_s=0.1)
    _follow(server, crowd, 2000, 2000, DEADLINE_S)
    found = _figures(crowd, 2000, 0)
    with server.http.stream() as response:
        _, digest = digest_of(log_id, response.stream(1 << 20))
    assert found[fault] > 0, found
    other = "repeated" if fault == "skipped" else "skipped"
    assert found[other] == 0, found
    assert any(one.digest.digest() != digest for one in crowd.travellers)
