"""kill -9, again and again: nothing acknowledged is lost, nothing is there twice, and retries learn what happened.

By hand, with more kills and a table: ``python -m pytest tests/crash/test_kills.py --kills 1000``.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from crash.account import Account
from crash.killing import MOMENTS, STOPPED, UNDER_LOAD, kill_again_and_again, schedule
from sekali.bench import machine

TEST = "tests/crash/test_kills.py::test_nothing_acknowledged_is_lost_by_kills"
KILLS = 50
CONTROL_KILLS = 10
RESTARTS = 5


def test_nothing_acknowledged_is_lost_by_kills(
    tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    kills: int | None = pytestconfig.getoption("--kills")
    given_seed: int | None = pytestconfig.getoption("--kills-seed")
    seed = random.randrange(2**32) if given_seed is None else given_seed
    moments = schedule(kills or KILLS, random.Random(seed))
    if kills is None:
        account = kill_again_and_again(tmp_path / "store.db", "points", moments, seed)
        Console().print(account.table())
    else:
        with capsys.disabled():
            with _bar(kills) as advance:
                account = kill_again_and_again(tmp_path / "store.db", "points", moments, seed, advance)
            Console().print(account.table())
        report: str | None = pytestconfig.getoption("--kills-report")
        if report is not None:
            options = f"--kills {kills} --kills-seed {seed} --kills-report {report}"
            document = account.document(f"python -m pytest {TEST} {options}", machine.facts(tmp_path))
            Path(report).write_text(json.dumps(document, indent=1) + "\n")
    assert account.harm == {}
    _assert_it_happened(account, moments)


@contextmanager
def _bar(kills: int) -> Iterator[Callable[[], None]]:
    with Progress("kills", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=kills)
        yield lambda: bar.advance(task)


def _assert_it_happened(account: Account, moments: list[str]) -> None:
    """A run that met no trouble shows nothing."""
    assert account.kills.total() == len(moments)
    assert account.kills.keys() == set(MOMENTS), "some moment was never hit"
    told = account.told
    assert told["stored"] and told["duplicate"] and told["conflict"] and told["invalid"] == 0
    assert account.total("connection_errors") > len(moments), "kills were not noticed"
    assert account.total("settled"), "no retry learned that its event had been stored"
    assert account.follower.seen, "nobody read meanwhile"


def test_a_server_that_acknowledges_before_it_commits_is_found_out(tmp_path: Path) -> None:
    """The control: what the test above looks for, it finds where it is."""
    moments = [UNDER_LOAD] * CONTROL_KILLS
    seed = random.randrange(2**32)
    account = kill_again_and_again(tmp_path / "store.db", "acknowledges-before-commit", moments, seed)
    Console().print(account.table())
    assert account.found.total("lost") > 0
    assert account.found.total("lost_middle") > 0, "what is lost in the middle is the proof"


def test_clients_that_keep_their_connections_ride_over_restarts(tmp_path: Path) -> None:
    """A rolling restart costs them connections and answers of 503, which retries cure, and no answer of a commit."""
    account = kill_again_and_again(tmp_path / "store.db", "points", [STOPPED] * RESTARTS, random.randrange(2**32))
    Console().print(account.table())
    assert account.harm == {}
    assert account.kills == {STOPPED: RESTARTS}
    assert account.total("connection_errors") > RESTARTS, "the restarts were not noticed"
    assert account.told["stored"] > RESTARTS and account.told["duplicate"]
    assert account.total("settled") == account.found.total("recovered") == 0, "a commit was not answered"
