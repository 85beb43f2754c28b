"""What every benchmark is given and gives back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sekali.bench.targets import Target

Notify = Callable[[str, float], None]  # what is being done, and how much of the whole is done, 0 to 1


def part_of(notify: Notify, step: int, steps: int) -> Notify:
    """Return what reports on one of several equal steps as a part of the whole."""
    return lambda what, done: notify(what, (step + done) / steps)


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure. ``events`` is the size of a large store, ``settings`` are the server's that are not default.
    ``only`` is a part of the names of the loads to run, for tuning; the others and the ceiling are left out then.
    ``keys`` is the size of the index by itself. ``warmup_s`` come before each run and do not count.

    Stores are put below ``db_dir``, in a folder that is removed afterwards; only a large one is put into ``keep`` and
    stays there. ``store`` is the folder of one that was kept.
    """

    seconds: float
    rounds: int
    events: int
    db_dir: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    commit_rows: int | None = None
    only: str = ""
    keys: int = 100_000_000
    warmup_s: float = 1.0
    keep: Path | None = None
    store: Path | None = None

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Make a fresh folder for a store, for as long as the body runs."""
        with TemporaryDirectory(prefix="sekali-bench-", dir=self.db_dir, ignore_cleanup_errors=True) as name:
            folder = Path(name) / "store"
            folder.mkdir()
            yield folder

    def document(self) -> dict[str, Any]:
        """Return what is worth keeping beside the figures."""
        return {
            "seconds": self.seconds,
            "rounds": self.rounds,
            "events": self.events,
            "keys": self.keys,
            "server": dict(self.settings) or "defaults",
        }


@dataclass(frozen=True, slots=True)
class Table:
    """A table for people: cells are texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a benchmark found: ``figures`` for programs, tables for people, and what of it was to be reached."""

    figures: dict[str, Any]
    tables: list[Table]
    targets: Sequence[Target] = ()
