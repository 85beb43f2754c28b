"""Which faults are tried where, on all cores; and the figures of it."""

import logging
import multiprocessing
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import structlog
from rich.table import Table

from crash.disk_life import quick_and_in_order
from crash.every_operation import FAULTS, Case, Trial

JOBS_SEED = 4
RECOVERY_FAULTS = ("power cut", "EIO once", "EIO for ever", "ENOSPC once, a part is written")
BEFORE_RECOVERY = ("power cut", "EIO once, then killed")
RECOVERY_OPERATIONS = 150  # about so many take a recovery
LARGE_RUN = 8  # more keys than a table takes from one commit
WHOLE_RECOVERIES = 4  # operations after which every step of the recovery is tried


@dataclass(frozen=True)
class Job:
    """A case, or with ``sweep`` one for every operation of the recovery. ``met`` is what the fault has to meet."""

    case: Case
    met: str | None = None
    sweep: bool = False


Traces = dict[bool, list[str]]  # of the untouched story, by ``late_index``


def every_operation(traces: Traces) -> list[Job]:
    """Return each fault at each operation, and once behind the last one, where there is none left to meet it.

    The first two in both orders of operations, the others in one of them.
    """
    jobs: list[Job] = []
    for number, (name, fault) in enumerate(FAULTS.items()):
        for late_index in (False, True) if number < 2 else (bool(number % 2),):
            trace = traces[late_index]
            jobs += [Job(Case(name, at, late_index), trace[at - 1]) for at in fault.numbers(trace)]
            jobs.append(Job(Case(name, len(trace) + 1, late_index)))
    return jobs


def every_recovery(traces: Traces) -> list[Job]:
    """Return, for each operation, a fault somewhere in the recovery from it; for some of them, everywhere in it."""
    chance = random.Random(JOBS_SEED)
    jobs: list[Job] = []
    for first, (late_index, trace) in zip(BEFORE_RECOVERY, traces.items(), strict=True):
        for at in range(1, len(trace) + 1):
            second = chance.choice(RECOVERY_FAULTS)
            jobs.append(Job(Case(first, at, late_index, second, chance.randint(1, RECOVERY_OPERATIONS))))
    for number in range(WHOLE_RECOVERIES):
        late_index = bool(number % 2)
        at = spread(traces[late_index], WHOLE_RECOVERIES)[number]
        for first in BEFORE_RECOVERY:
            jobs += [Job(Case(first, at, late_index, second), sweep=True) for second in RECOVERY_FAULTS]
    return jobs


def spread(whole: Sequence[object], count: int) -> list[int]:
    """Return the numbers, from 1, of so many elements at equal distances."""
    step = len(whole) / count
    return [int(number * step + step / 2) + 1 for number in range(count)]


def step_kind(step: str) -> str:
    """Return an operation of a trace with the kind of its file in the place of the name."""
    operation, _, name = step.partition(" ")
    if not name.startswith("store.db.index/"):
        return step
    file = name.removeprefix("store.db.index/").removesuffix(".partial")
    if not file:
        return f"{operation} index"
    first, last = (int(seq, 16) for seq in file.removesuffix(".run").split("-"))
    return f"{operation} {'run' if last - first < LARGE_RUN else 'merged run'}"


@dataclass
class Outcome:
    """What came of jobs: by fault what was done, what was met, and what failed."""

    figures: dict[str, Counter[str]] = field(default_factory=dict)
    met: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, fault: str, figures: Counter[str], met: Counter[str], failures: Sequence[str]) -> None:
        """Add what came of one job."""
        self.figures.setdefault(fault, Counter()).update(figures)
        self.met.update(met)
        self.failures += failures

    def total(self) -> Counter[str]:
        """Return the figures of all faults together."""
        return sum(self.figures.values(), Counter())

    def document(self) -> dict[str, Any]:
        """Return what was done as a JSON document."""
        return {
            "total": dict(self.total()),
            "faults": {fault: dict(figures) for fault, figures in self.figures.items()},
            "met": dict(sorted(self.met.items())),
            "failures": self.failures,
        }

    def table(self) -> Table:
        """Return what was done as a table."""
        names = list(self.total())
        table = Table("fault", *names)
        for fault, figures in [*self.figures.items(), ("total", self.total())]:
            table.add_row(fault, *(f"{figures[name]:,}" for name in names))
        return table


def try_all(
    jobs: Sequence[Job], keeps: Sequence[float], on_done: Callable[[Outcome], object] = lambda outcome: None
) -> Outcome:
    """Do jobs, in as many processes as there are cores."""
    outcome = Outcome()
    context = multiprocessing.get_context("spawn")  # a fork would take locks along that threads hold
    with (
        tempfile.TemporaryDirectory(prefix="sekali-disk-") as scratch,
        ProcessPoolExecutor(mp_context=context) as pool,
    ):
        for done in as_completed([pool.submit(_do, job, Path(scratch), tuple(keeps)) for job in jobs]):
            outcome.add(*done.result())
            on_done(outcome)
    return outcome


@cache
def _trial(scratch: Path, keeps: tuple[float, ...]) -> Trial:
    """Get this process ready."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    quick_and_in_order()
    return Trial(scratch / str(os.getpid()), keeps=keeps)


def _do(job: Job, scratch: Path, keeps: tuple[float, ...]) -> tuple[str, Counter[str], Counter[str], list[str]]:
    trial = _trial(scratch, keeps)
    trial.figures = Counter()
    met: Counter[str] = Counter()
    failures: list[str] = []
    cases = [job.case] if not job.sweep else (_at(job.case, number) for number in count(1))
    for case in cases:
        try:
            step = trial.run(case)
        except Exception as error:
            failures.append(f"{case}: {type(error).__name__}: {error}")
            if len(failures) == 10:
                break
            continue
        trial.figures["cases"] += 1
        if step is not None:
            met[step_kind(step)] += 1
        elif job.sweep:
            break
        if case.recovery_fault is None and step != job.met:
            failures.append(f"{case}: met {step} in the place of {job.met}")
    name = job.case.fault
    if job.case.recovery_fault is not None:
        name += f"; while it recovers {job.case.recovery_fault}"
    return name, trial.figures, met, failures


def _at(case: Case, number: int) -> Case:
    return Case(case.fault, case.at, case.late_index, case.recovery_fault, number)
