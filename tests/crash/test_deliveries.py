"""Competing consumers that crash and stall, also while the server is killed again and again: order, once, all of it.

By hand, for longer: ``python -m pytest tests/crash/test_deliveries.py --deliveries-seconds 120 --deliveries-kills 200
--deliveries-report bench/results/deliveries.json``.
"""

import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from crash.killing import STARTING, UNDER_LOAD, Killing
from crash.pullers import DONE, HABITS, Ledger, Puller
from e2e.server import Client, ServerProcess, event, verify, wait_until

PULLERS = 8
TOPICS = 50
EVENTS = 2_000
SECONDS = 5.0
LEASE_S = 0.4
PATIENT_LEASE_S = 60.0
KILLS = 8
CONTROL_KILLS = 5
# Where a kill can tear an acknowledgement from its commit.
POINTS = (
    "before a commit",
    "between BEGIN and COMMIT",
    "the write-ahead log half written",
    "the write-ahead log before its sync",
    "the write-ahead log after its sync",
    "between commit and answer",
)


@pytest.fixture
def seed() -> int:
    return random.randrange(2**32)


def put(http: Client, name: str, **definition: Any) -> None:
    body = json.dumps({"start": "earliest", "max_attempts": 1000} | definition).encode()
    assert http.request("PUT", f"/subscriptions/{name}", body=body).status in {200, 201}


def figures(http: Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get_json(f"/subscriptions/{name}")
    return found


def one_that_does_everything_right(url: str, name: str, ledger: Ledger, seed: int) -> Puller:
    return Puller(
        "last",
        url,
        name,
        ledger,
        f"{seed}/last",
        threading.Event(),
        lease_s=PATIENT_LEASE_S,
        habits={DONE: 1},
        events_max=[1000],
        topics_max=[100],
    )


def drain(url: str, http: Client, name: str, ledger: Ledger, seed: int) -> None:
    """Consume all that is left."""
    puller = one_that_does_everything_right(url, name, ledger, seed)

    def nothing_is_left() -> bool:
        while puller.take():
            pass
        return bool(figures(http, name)["lag"] == 0)

    wait_until(nothing_is_left, "everything is acknowledged")
    puller.close()


def report(config: pytest.Config, capsys: pytest.CaptureFixture[str], title: str, figures: dict[str, int]) -> None:
    """Show the figures of a run, and keep them in the report where one is asked for."""
    shown = Table("figure", "count", title=title)
    for name, count in figures.items():
        shown.add_row(name, f"{count:,}")
    with capsys.disabled() if is_long(config) else nullcontext():
        Console().print(shown)
    if (path := config.getoption("--deliveries-report")) is not None:
        file = Path(path)
        kept = json.loads(file.read_text()) if file.exists() else {}
        kept["command"] = "python -m pytest " + " ".join(config.invocation_params.args)
        kept.setdefault("runs", {})[title] = figures
        file.write_text(json.dumps(kept, indent=1) + "\n")


def is_long(config: pytest.Config) -> bool:
    return config.getoption("--deliveries-seconds") is not None or config.getoption("--deliveries-kills") is not None


def test_competing_pullers_that_crash_and_stall(
    tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    """Order holds for each topic, nothing is skipped, nothing is given to two, and a stalled topic delays no other."""
    seconds: float | None = pytestconfig.getoption("--deliveries-seconds")
    stop = threading.Event()
    ledger = Ledger()
    with ServerProcess(tmp_path / "store.db") as server:
        put(server.http, "work", topic="work/*")
        chance = random.Random(seed)

        def publish() -> None:
            number = 0
            while not stop.is_set() and (seconds is not None or number < EVENTS):
                batch = [
                    event(f"work/{chance.randrange(TOPICS)}", str(number + place))
                    for place in range(chance.randint(1, 40))
                ]
                number += len(batch)
                assert server.http.publish(batch).status == 200

        # One consumer has a topic to itself for the whole of the test, and says nothing.
        assert server.http.publish([event("work/0", "first"), event("work/0", "second")]).status == 200
        stalled = _pull(server.http, {"lease_seconds": 4 * (seconds or PATIENT_LEASE_S)})
        assert [one["topic"] for one in stalled["events"]] == ["work/0"] * 2
        pullers = [
            Puller(f"p{number}", server.url, "work", ledger, f"{seed}/{number}", stop, lease_s=LEASE_S)
            for number in range(PULLERS)
        ]
        with ThreadPoolExecutor(PULLERS + 1) as pool:
            working = [pool.submit(publish), *(pool.submit(puller.run) for puller in pullers)]
            stop.wait(seconds or SECONDS)
            stop.set()
            for one in working:
                one.result()
        drain_others(server, ledger, seed)
        # All others are done, and it still holds what it held.
        log = _export(server.http)
        held = [one["seq"] for one in log if one["topic"] == "work/0"]
        assert figures(server.http, "work")["lag"] == len(held) >= 2
        body = json.dumps({"lease": stalled["lease"]}).encode()
        answer = server.http.request("POST", "/subscriptions/work/extend", body=body)
        assert answer.status == 200 and answer.json()["held"] == held[:2]
        assert not set(held) & set(ledger.given)
        body = json.dumps({"lease": stalled["lease"], "seqs": held[:2]}).encode()
        ledger.says(held[:2])
        ledger.told(held[:2], server.http.request("POST", "/subscriptions/work/ack", body=body))
        drain(server.url, server.http, "work", ledger, seed)
        title = f"{PULLERS} pullers over {TOPICS} topics that crash and stall"
        report(pytestconfig, capsys, title, {"seed": seed, **ledger.figures()})
        assert server.terminate() == 0
    for puller in pullers:
        puller.close()
    assert ledger.wrong == [] and ledger.out_of_order(log) == []
    assert set(ledger.given) | set(held[:2]) == set(ledger.acknowledged) == {one["seq"] for one in log}
    assert all(ledger.habits[habit] for habit in HABITS), "somebody did not do what it is about"
    assert ledger.lost and ledger.attempts[1] and ledger.attempts[2], "no lease ran out"
    assert len({one["topic"] for one in log}) == TOPICS
    assert verify(tmp_path / "store.db")["events"] == len(log)


def drain_others(server: ServerProcess, ledger: Ledger, seed: int) -> None:
    """Consume all but the topic that is held."""
    puller = one_that_does_everything_right(server.url, "work", ledger, seed)

    def only_that_is_left() -> bool:
        while puller.take():
            pass
        counted = figures(server.http, "work")
        left = [one for one in _export(server.http) if one["topic"] == "work/0"]
        return bool(counted["lag"] == len(left))

    wait_until(only_that_is_left, "the other topics go on")
    puller.close()


def _pull(http: Client, document: dict[str, Any], name: str = "work") -> dict[str, Any]:
    answer = http.request("POST", f"/subscriptions/{name}/pull", body=json.dumps(document).encode())
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.json()
    return found


def _export(http: Client) -> list[dict[str, Any]]:
    return [json.loads(line) for line in http.export().splitlines()]


@pytest.mark.parametrize("order", ["topic", "none"])
def test_what_is_acknowledged_is_never_given_again_whenever_the_server_dies(
    tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str], seed: int, order: str
) -> None:
    """And what is not is never left out."""
    kills = pytestconfig.getoption("--deliveries-kills") or KILLS
    ledger, log, died = _kill_under_pullers(tmp_path / "store.db", "points", order, seed, kills)
    title = f"the server killed under {PULLERS // 2} pullers, order {order}"
    report(pytestconfig, capsys, title, {"seed": seed, "kills of the server": died, **ledger.figures()})
    assert ledger.wrong == [], f"seed {seed}"
    if order == "topic":
        assert ledger.out_of_order(log) == [], f"seed {seed}"
    assert ledger.left_out(log) == [], f"seed {seed}"
    assert set(ledger.given) == {one["seq"] for one in log}
    assert died == kills and len(log) > kills
    assert ledger.given.total() > len(log), "no lease was voided"


def test_a_server_that_acknowledges_before_it_commits_is_found_out(tmp_path: Path, seed: int) -> None:
    """The control: what the test above looks for, it finds where it is."""
    ledger, _, _ = _kill_under_pullers(tmp_path / "store.db", "settles-later", "topic", seed, CONTROL_KILLS)
    assert any("acknowledged at" in wrong for wrong in ledger.wrong), (seed, ledger.figures())


def _given(ledger: Ledger, *seqs: int) -> None:
    now_s = time.monotonic()
    events = [{"topic": "t", "seq": seq, "attempt": 1} for seq in seqs]
    ledger.got("p", ledger.moment(), now_s, PATIENT_LEASE_S, events)


def _acknowledged(ledger: Ledger, *seqs: int) -> None:
    ledger.says(seqs)
    for seq in seqs:
        ledger.acknowledged[seq] = ledger.moment()


def test_the_ledger_sees_a_repeat_a_gap_a_wrong_order_and_what_two_hold() -> None:
    """The control of the checker itself, on a log of four events."""
    log = [{"topic": "t", "seq": seq} for seq in (1, 3, 4, 7)]
    good = Ledger()
    for run in ((1, 3), (4,), (7,)):
        _given(good, *run)
        _acknowledged(good, *run)
    assert good.wrong == [] and good.out_of_order(log) == [] and good.left_out(log) == []

    again = Ledger()
    _given(again, 1)
    _acknowledged(again, 1)
    _given(again, 1)
    assert "1 given to p" in again.wrong[0]

    gap, early, backwards = Ledger(), Ledger(), Ledger()
    _given(gap, 1, 4)
    _given(early, 3)
    _given(backwards, 3, 1)
    for ledger in (gap, early, backwards):
        assert ledger.out_of_order(log), ledger.steps

    short = Ledger()
    _given(short, 1, 3, 4)
    _acknowledged(short, 1, 3)
    assert short.left_out(log) == [4, 7]

    two = Ledger()
    _given(two, 1)
    _given(two, 3)
    assert "while p holds [1]" in two.wrong[0]


def _kill_under_pullers(
    db_path: Path, faults: str, order: str, seed: int, kills: int
) -> tuple[Ledger, list[dict[str, Any]], int]:
    """Kill a server again and again under writers and pullers; return what these did, the whole log, and how often."""
    ledger, stop = Ledger(order == "topic"), threading.Event()
    killing = Killing(db_path, faults, seed, progress=lambda: len(ledger.acknowledged))
    server = killing.server
    chance = random.Random(seed)
    points = POINTS if faults == "points" else ()
    moments = [UNDER_LOAD, *chance.choices([UNDER_LOAD, UNDER_LOAD, STARTING, *points], k=kills - 1)]
    killing.unmodified.start()
    put(killing.unmodified.http, "s", topic="kill/*", order=order)
    # What somebody holds when a server ends comes again: this once for certain, without waiting for its lease.
    assert killing.unmodified.http.publish(event("kill/held", "1")).status == 200
    asked_s = time.monotonic()
    held = _pull(killing.unmodified.http, {"lease_seconds": PATIENT_LEASE_S}, "s")
    ledger.got("who holds", ledger.moment(), asked_s, PATIENT_LEASE_S, held["events"])
    ledger.void_leases()
    assert killing.unmodified.terminate() == 0
    pullers = [
        Puller(f"p{number}", killing.url, "s", ledger, f"{seed}/{number}", stop, lease_s=LEASE_S)
        for number in range(PULLERS // 2)
    ]
    died = 0
    try:
        with ThreadPoolExecutor(len(pullers)) as pool, killing.load():
            working = [pool.submit(puller.run) for puller in pullers]
            try:
                for moment in moments:
                    killing.live_and_die(moment)
                    ledger.void_leases()
                    died += 1
            finally:
                stop.set()
            for one in working:
                one.result()
        server = killing.unmodified  # one that lies would never be done
        server.start()
        log = _export(server.http)
        drain(server.url, server.http, "s", ledger, seed)
        assert server.terminate() == 0
        assert verify(db_path)["events"] == len(log)
    except BaseException as error:
        error.add_note(f"seed {seed}, after {died} kills, the server's log: {server.log[-10:]}")
        raise
    finally:
        killing.close()
        for puller in pullers:
            puller.close()
    return ledger, log, died
