"""The account of a server that was killed again and again: what was done to it, and what was found."""

from collections import Counter
from dataclasses import asdict, dataclass, fields
from typing import Any

from rich.table import Table

from crash.checker import Findings, Row
from crash.writers import Follower, Writer

COUNTERS = ("requests", "connection_errors", "refusals", "unanswered_items", "settled")


@dataclass(frozen=True, slots=True)
class Account:
    """``kills`` are counted by moment, and nothing is compared yet."""

    seed: int
    seconds: float
    kills: Counter[str]
    writers: list[Writer]
    follower: Follower
    found: Findings  # after the last kill, before anything was sent again
    healed: Findings  # after all that had no answer was sent again
    lifetime: dict[str, int]
    events: int

    @property
    def told(self) -> Counter[str]:
        """The verdicts of all answers."""
        return sum((writer.told for writer in self.writers), Counter[str]())

    def total(self, counter: str) -> int:
        """Return one of the writers' counters, summed up."""
        return sum(getattr(writer, counter) for writer in self.writers)

    @property
    def harm(self) -> dict[str, object]:
        """Whatever should not be, by name; nothing where all is well."""
        healed = self.healed
        harm: dict[str, object] = {name: count for name, count in self.found.harm.items() if count}
        harm |= {f"{name} after all": count for name, count in healed.harm.items() if count}
        if not healed.total("attempted") == healed.total("acknowledged") == healed.total("read") == self.events:
            harm["not there after all"] = healed.total("attempted") - healed.total("read")
        wrong = [message for writer in self.writers for message in writer.wrong] + self.follower.wrong
        if wrong:
            harm["wrong answers"] = wrong[:10]
        if self._counters_do_not_add_up():
            harm["counters"] = (self.lifetime, self.told, self.total("unanswered_items"))
        return harm

    def _counters_do_not_add_up(self) -> bool:
        """The log's own counters lie between what was told and what was sent."""
        lifetime, told = self.lifetime, self.told
        unanswered = self.total("unanswered_items")
        return (
            lifetime["received"] != lifetime["stored"] + lifetime["duplicate"] + lifetime["conflict"]
            or lifetime["stored"] != self.events
            or not told.total() <= lifetime["received"] <= told.total() + unanswered
            or any(not told[name] <= lifetime[name] <= told[name] + unanswered for name in told)
        )

    def document(self, command: str, machine: dict[str, Any]) -> dict[str, Any]:
        """Return all figures as JSON."""
        return {
            "command": command,
            "seed": self.seed,
            "machine": machine,
            "seconds": round(self.seconds, 1),
            "kills": {"total": self.kills.total()} | dict(self.kills.most_common()),
            "writers": {name: self.total(name) for name in COUNTERS} | {"verdicts": dict(self.told)},
            "found": {name: self.found.total(name) for name in ("attempted", "acknowledged", "read", "recovered")}
            | {"lost": self.found.total("lost")}
            | self.found.harm,
            "after all was sent again": {
                name: self.healed.total(name) for name in ("attempted", "acknowledged", "read")
            }
            | self.healed.harm,
            "wrong_verdicts": sum(writer.wrong_count for writer in self.writers),
            "followed_by_a_reader": len(self.follower.seen),
            "lifetime": self.lifetime,
            "by_writer": [asdict(row) | {"lost": row.lost} for row in self.found.rows],
        }

    def table(self) -> Table:
        """Return the figures of each writer for a person."""
        names = [field.name for field in fields(Row)]
        title = f"the server ended {self.kills.total()} times in {self.seconds:.0f} s, seed {self.seed}"
        table = Table(*(name.replace("_", " ") for name in names), title=title)
        for row in self.found.rows:
            table.add_row(*(str(getattr(row, name)) for name in names))
        table.add_row("all", *(str(self.found.total(name)) for name in names[1:]), style="bold")
        return table
