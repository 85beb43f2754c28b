"""A fault at operation 1, 2, 3, … of a store's life, until it passes untouched; after each the store must be whole."""

import errno
import random
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from crash.disk_life import Life, Stopped, audited, live
from crash.disk_story import Ledger, tell
from sekali.event import Outcome
from sekali.testing import ALL, WRITING, FakeClock, FaultyDisk, Operation

# Of what was not synced a power cut leaves nothing, all, or any part of it: so likely is each page and name to be kept.
KEEPS = (0, 1, 0.5)
KEEPS_MANY = (0, 1, 0.3, 0.7)
CUT_AFTER_MAX = 120  # operations from an error to a power cut


@dataclass(frozen=True)
class Fault:
    """What happens at an operation, and then.

    ``then``: "go on" to the end of the story in the same process; "kill" it at its next failure, and go on with
    another; or "cut" the power a few operations later. ``error`` is None where the power is cut at once.
    """

    error: int | None = None
    only: Collection[Operation] = ALL
    lasting: bool = False
    partly: bool = False
    then: str = "go on"

    def plan(self, disk: FaultyDisk, at: int) -> None:
        """Let it happen at this operation."""
        if self.error is None:
            disk.cut_power(at=at)
        else:
            disk.fail(self.error, at=at, only=self.only, lasting=self.lasting, partly=self.partly)

    def numbers(self, trace: Sequence[str]) -> list[int]:
        """Return the numbers of the operations that can meet it."""
        return [number for number, step in enumerate(trace, 1) if step.split(" ")[0] in self.only]


SYNCING = {Operation.SYNC, Operation.RENAME}
FAULTS = {
    "power cut": Fault(),
    "EIO once": Fault(errno.EIO),
    "EIO for ever": Fault(errno.EIO, lasting=True),
    "ENOSPC once, a part is written": Fault(errno.ENOSPC, WRITING, partly=True),
    "ENOSPC for ever, a part is written": Fault(errno.ENOSPC, WRITING, lasting=True, partly=True),
    "syncs fail for ever": Fault(errno.EIO, SYNCING, lasting=True),
    "reads give a part once": Fault(errno.EIO, {Operation.READ}, partly=True),
    "EIO once, then killed": Fault(errno.EIO, then="kill"),
    "EIO for ever, then killed": Fault(errno.EIO, lasting=True, then="kill"),
    "EIO once, then a power cut": Fault(errno.EIO, then="cut"),
    "EIO for ever, then a power cut": Fault(errno.EIO, lasting=True, then="cut"),
    "syncs fail for ever, then a power cut": Fault(errno.EIO, SYNCING, lasting=True, then="cut"),
}


@dataclass(frozen=True)
class Case:
    """One thing to try: a fault at an operation, and maybe another at an operation of the recovery that follows."""

    fault: str
    at: int
    late_index: bool
    recovery_fault: str | None = None
    recovery_at: int = 0


class Trial:
    """Tries cases, one after the other, in a folder of its own. ``figures`` counts what was done."""

    def __init__(
        self, scratch: Path, *, keeps: Sequence[float] = KEEPS, make_disk: Callable[[], FaultyDisk] = FaultyDisk
    ) -> None:
        self._scratch = scratch
        self._keeps = keeps
        self._make_disk = make_disk
        self._story = tell()
        self.told: Counter[Outcome] = Counter()  # how often each, in the untouched story
        self._folders = 0
        self.figures: Counter[str] = Counter()

    def untouched(self, *, late_index: bool) -> tuple[list[str], dict[str, bytes]]:
        """Live the story with no fault; return the operations of the disk and what is on it before the end."""
        disk = self._make_disk()
        ledger = Ledger()
        life = self._life(disk, ledger, late_index=late_index)
        live(life, self._story)
        self.told = ledger.answers
        trace, contents = disk.trace.copy(), disk.contents()
        life.end()
        audited(life.db_path)
        return trace, contents

    def _life(self, disk: FaultyDisk, ledger: Ledger, *, late_index: bool, clock: FakeClock | None = None) -> Life:
        self._folders += 1
        return Life(disk, self._scratch / str(self._folders), ledger, clock or FakeClock(), late_index=late_index)

    def run(self, case: Case) -> str | None:
        """Try a case, and return the operation that met the fault, None where none did.

        Raises:
            Lost: the store is not what it should be.

        """
        try:
            return self._run(case)
        except BaseException as error:
            error.add_note(f"in {case}")
            raise
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _run(self, case: Case) -> str | None:
        fault = FAULTS[case.fault]
        disk, ledger, clock = self._make_disk(), Ledger(), FakeClock()
        chance = random.Random(repr(case))
        fault.plan(disk, case.at)
        life = self._life(disk, ledger, late_index=case.late_index, clock=clock)
        life.dies_of_failure = fault.then == "kill"
        if fault.then == "cut":
            life.cut_power_after(chance.randint(1, CUT_AFTER_MAX))
        self.figures["lives"] += 1
        with suppress(Stopped):
            live(life, self._story)
        if not disk.faults:
            life.end()
            return None
        self.figures["power cuts" if disk.power_is_cut else "errors"] += 1
        if case.recovery_fault is not None:
            images = self._found(disk, chance)
            life.end()
            return self._recover(chance.choice(images), ledger, clock, chance, case)
        if life.published < len(self._story) and not disk.power_is_cut:
            life = self._another_life(life, ledger, clock, case)
        images = self._found(life.disk, chance)
        life.end()
        self._check_all(images, ledger, clock, chance, case)
        return disk.faults[0]

    def _found(self, disk: FaultyDisk, chance: random.Random) -> list[FaultyDisk]:
        """Return what may be found after this moment: after power cuts, and by another process."""
        images = [disk.after_power_cut(seed=chance.getrandbits(32), keep=keep) for keep in self._keeps]
        return images if disk.power_is_cut else [disk.after_kill(), images[0], images[-1]]

    def _another_life(self, killed: Life, ledger: Ledger, clock: FakeClock, case: Case) -> Life:
        """Go on in another process, with what is on the disk now; the cause is gone."""
        self.figures["kills"] += 1
        life = self._life(killed.disk.after_kill(), ledger, late_index=case.late_index, clock=clock)
        life.published = killed.published
        killed.disk.cut_power()
        killed.end()
        live(life, self._story)
        return life

    def _recover(
        self, image: FaultyDisk, ledger: Ledger, clock: FakeClock, chance: random.Random, case: Case
    ) -> str | None:
        """Recover with another fault on the way; whatever is found then is whole."""
        assert case.recovery_fault is not None
        FAULTS[case.recovery_fault].plan(image, case.recovery_at)
        life = self._life(image, ledger, late_index=case.late_index, clock=clock)
        with suppress(Stopped):
            life.start()
        self.figures["recoveries"] += 1
        met = image.faults[0] if image.faults else None
        if met is not None:
            self.figures["recoveries that met a fault"] += 1
            images = self._found(image, chance)
        life.end()
        if met is not None:
            self._check_all(images, ledger, clock, chance, case)
        return met

    def _check_all(
        self, images: Sequence[FaultyDisk], ledger: Ledger, clock: FakeClock, chance: random.Random, case: Case
    ) -> None:
        """What is found is whole; so it is after everything is sent again, and, for one of them, after a power cut."""
        again = chance.randrange(len(images))
        for number, image in enumerate(images):
            answered = deepcopy(ledger)
            after = self._check(image, answered, clock, case, resend=True)
            if number == again:
                self._check(after, answered, clock, case, resend=False)

    def _check(self, image: FaultyDisk, ledger: Ledger, clock: FakeClock, case: Case, *, resend: bool) -> FaultyDisk:
        """Return what a power cut right after the last answer leaves."""
        life = self._life(image, ledger, late_index=case.late_index, clock=clock)
        if resend:
            ledger.resend(life.start(), self._story)
        else:
            ledger.check(life.start())
        after = image.after_power_cut(seed=0, keep=0)
        life.end()
        audited(life.db_path)
        self.figures["stores found and checked"] += 1
        return after
