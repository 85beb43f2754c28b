"""A fault at every operation of the disk, on the log, its mark and its index: nothing acknowledged is ever lost.

Here a part of it is tried; all of it, in half an hour, with ``python -m pytest tests/crash/test_every_operation.py
--every-operation``.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import apsw
import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from batches import CONFLICT, DUPLICATE, STORED
from crash.disk_jobs import (
    JOBS_SEED,
    Job,
    Outcome,
    Traces,
    every_operation,
    every_recovery,
    spread,
    step_kind,
    try_all,
)
from crash.disk_life import quick_and_in_order
from crash.disk_story import COMMITS, STORY_SEED, Lost, tell
from crash.every_operation import FAULTS, KEEPS, KEEPS_MANY, Case, Trial
from sekali import delivery
from sekali.bench import machine
from sekali.errors import CommitUnknown
from sekali.stores import sqlite_subscriptions
from sekali.testing import FaultyDisk

OPERATIONS, RECOVERIES = 14, 40  # of the part: operations for each fault, and recoveries with a fault
CONTROL_OPERATIONS = 8
LINE_EVERY = 500

# What a story has to bring about on the disk. The first sync of a journal or log makes names durable, too.
KINDS = {
    *(f"{operation} store.db" for operation in ("create", "open", "read", "write", "truncate", "sync", "size")),
    *(f"{operation} store.db-wal" for operation in ("create", "open", "read", "write", "sync", "size", "remove")),
    *(f"{operation} store.db-journal" for operation in ("create", "write", "sync", "remove")),
    *(f"{operation} store.db.mark.new" for operation in ("create", "append", "sync")),
    *(f"{operation} store.db.mark" for operation in ("open", "size", "read", "rename")),
    *(
        f"{operation} {run}"
        for operation in ("create", "append", "sync", "rename", "open", "size", "read", "remove")
        for run in ("run", "merged run")
    ),
    "names index",
}


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    with quick_and_in_order():
        yield Trial(tmp_path / "trial")


@pytest.fixture
def traces(trial: Trial) -> Traces:
    return {late_index: trial.untouched(late_index=late_index)[0] for late_index in (False, True)}


def test_the_story_has_all_in_it_and_is_always_the_same(trial: Trial) -> None:
    for late_index in (False, True):
        trace, contents = trial.untouched(late_index=late_index)
        assert trial.untouched(late_index=late_index)[0] == trace
        assert set(map(step_kind, trace)) >= KINDS
        assert int.from_bytes(contents["store.db-wal"][12:16]) >= 1, "the write-ahead log never started over"
    assert trial.told.keys() == {STORED, DUPLICATE, CONFLICT}


def test_nothing_is_lost_whatever_fails(
    traces: Traces, tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    if not pytestconfig.getoption("--every-operation"):
        jobs = _some(traces)
        outcome = try_all(jobs, KEEPS)
        Console().print(outcome.table())
    else:
        jobs = every_operation(traces) + every_recovery(traces)
        with capsys.disabled():
            with _bar(len(jobs)) as advance:
                outcome = try_all(jobs, KEEPS_MANY, advance)
            Console().print(outcome.table())
        report: str | None = pytestconfig.getoption("--every-operation-report")
        if report is not None:
            Path(report).write_text(json.dumps(_document(outcome, traces, tmp_path), indent=1) + "\n")
    assert outcome.failures == []
    total = outcome.total()
    assert total["cases"] >= len(jobs) and total["power cuts"] and total["errors"] and total["kills"]
    assert total["recoveries that met a fault"]
    assert outcome.met.keys() >= KINDS, f"never met: {KINDS - outcome.met.keys()}"


def _some(traces: Traces) -> list[Job]:
    """Choose operations at equal distances for each fault, others for each, and the first one of each kind."""
    jobs: list[Job] = []
    for number, (name, fault) in enumerate(FAULTS.items()):
        late_index = bool(number % 2)
        trace = traces[late_index]
        places = fault.numbers(trace)
        chosen = {places[at - 1] for at in spread(places, min(OPERATIONS, len(places)))}
        if number < 2:
            chosen |= {next(at for at, step in enumerate(trace, 1) if step_kind(step) == kind) for kind in KINDS}
        jobs += [Job(Case(name, at, late_index), trace[at - 1]) for at in sorted(chosen)]
        jobs.append(Job(Case(name, len(trace) + 1, late_index)))
    recoveries = [job for job in every_recovery(traces) if not job.sweep]
    return jobs + [recoveries[at - 1] for at in spread(recoveries, RECOVERIES)]


def _document(outcome: Outcome, traces: Traces, folder: Path) -> dict[str, object]:
    story = tell()
    return {
        "command": "python -m pytest tests/crash/test_every_operation.py --every-operation "
        "--every-operation-report bench/results/disk_faults.json",
        "machine": machine.facts(folder),
        "seeds": {"story": STORY_SEED, "jobs": JOBS_SEED, "power cuts": "the text of the case"},
        "story": {
            "commits": COMMITS,
            "requests": sum(len(group) for commit in story for group in commit),
            "events": sum(len(request) for commit in story for group in commit for request in group),
            "operations": {"index first": len(traces[False]), "index last": len(traces[True])},
        },
        **outcome.document(),
    }


@contextmanager
def _bar(jobs: int) -> Iterator[Callable[[Outcome], None]]:
    """Show how far it is, and failures at once; a line now and then where there is no terminal."""
    console = Console()
    done = shown = 0
    with Progress("faults", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=jobs)

        def advance(outcome: Outcome) -> None:
            nonlocal done, shown
            done += 1
            bar.advance(task)
            for failure in outcome.failures[shown:]:
                console.print(failure)
            shown = len(outcome.failures)
            if not console.is_terminal and done % LINE_EVERY == 0:
                console.print(f"{done:,} of {jobs:,}, {shown} failed")

        yield advance


class TestTheSuiteCanSee:
    """Stores that acknowledge too early: what the test above looks for, it finds where it is."""

    def lost(self, trial: Trial, traces: Traces) -> int:
        """Return after how many of some power cuts something is lost."""
        lost = 0
        for at in spread(traces[False], CONTROL_OPERATIONS):
            try:
                trial.run(Case("power cut", at, late_index=False))
            except Lost:
                lost += 1
        return lost

    def test_a_disk_that_says_that_it_synced_and_did_not(self, tmp_path: Path, traces: Traces) -> None:
        trial = Trial(tmp_path / "lying", make_disk=lambda: FaultyDisk(lies=True))
        assert self.lost(trial, traces) >= CONTROL_OPERATIONS - 1

    @pytest.mark.parametrize("synchronous", ["off", "normal"])
    def test_a_store_that_acknowledges_before_the_sync(self, trial: Trial, traces: Traces, synchronous: str) -> None:
        def make_less_durable(connection: apsw.Connection) -> None:
            connection.pragma("journal_mode", "wal")
            connection.pragma("synchronous", synchronous)

        assert self.lost(trial, traces) == 0
        with patch("sekali.stores.sqlite_file._make_durable", make_less_durable):
            assert self.lost(trial, traces) >= CONTROL_OPERATIONS / 2

    def test_a_store_that_trusts_what_it_finds_after_a_failed_sync(self, trial: Trial) -> None:
        lost = 0
        with patch("sekali.stores.sqlite_file._write_log_again"):
            trace, _ = trial.untouched(late_index=False)
            for at in [at for at, step in enumerate(trace, 1) if step == "sync store.db-wal"][-3:]:
                try:
                    trial.run(Case("EIO once, then killed", at, late_index=False))
                except Lost:
                    lost += 1
        assert lost, "the power was never cut when that mattered"

    @pytest.mark.parametrize("kind", [delivery.Create, delivery.Delete, delivery.Seek, delivery.Progress])
    def test_a_store_that_forgets_what_was_said_of_a_subscription(
        self, trial: Trial, kind: type, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        apply = sqlite_subscriptions.apply

        def forget(connection: apsw.Connection, changes: Sequence[delivery.Change]) -> None:
            apply(connection, [change for change in changes if not isinstance(change, kind)])

        monkeypatch.setattr(sqlite_subscriptions, "apply", forget)
        with pytest.raises((Lost, CommitUnknown)):  # of a name that was not deleted no other can be made
            trial.untouched(late_index=False)
