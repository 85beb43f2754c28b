"""The figures that Sekali is to reach, each beside what was measured."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

BESIDE = 8  # the group of what stands beside the list
GROUPS = {
    1: "batches",
    2: "however much is stored",
    3: "single events",
    4: "large store",
    5: "disk",
    6: "peers",
    7: "no stall",
    9: "followers",
    10: "consumers",
    BESIDE: "index",
}


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One figure to reach. ``group`` is its number, or ``BESIDE``.

    ``bound`` is the least that ``measured`` may be, or with ``at_most`` the most. ``measured`` is None where it could
    not be measured; ``text`` formats either, such as ``"{:,.0f} events/s"``.
    """

    group: int
    what: str
    measured: float | None
    bound: float
    text: str
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        if self.measured is None:
            return False
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound

    def cells(self) -> tuple[str, str, str, str]:
        """Return what is measured, the bound, the figure, and the verdict, for people."""
        bound = ("at most " if self.at_most else "at least ") + self.text.format(self.bound)
        measured = "not measured" if self.measured is None else self.text.format(self.measured)
        return self.what, bound, measured, "met" if self.met else "missed"


def to_documents(targets: Iterable[Target]) -> list[dict[str, Any]]:
    """Return targets as they are kept in JSON, with the verdict."""
    return [msgspec.to_builtins(target) | {"met": target.met} for target in targets]


def from_document(document: Mapping[str, Any]) -> list[Target]:
    """Return the targets that a benchmark's document holds."""
    return msgspec.convert(document.get("targets", []), list[Target])


COLUMNS = ("group", "figure", "target", "measured", "verdict")


def rows(targets: Iterable[Target]) -> list[tuple[str, ...]]:
    """Return targets as the rows of a table with ``COLUMNS``, by group."""
    return [(GROUPS[one.group], *one.cells()) for one in sorted(targets, key=lambda one: one.group)]
