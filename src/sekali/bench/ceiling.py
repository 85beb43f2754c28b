"""The ceiling: one thread, no HTTP, appends the same rows to the same tables and indexes through apsw.

Rows are made outside the time measured. Rows a statement and pages a checkpoint are the best of a few tried.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

import apsw
import numpy as np

from sekali.bench.children import BenchFailed
from sekali.bench.events import SOURCE, EventMaker, IdKind
from sekali.bench.options import Notify, Options, Report, Table
from sekali.bench.pauses import WATCH

COMMIT_ROWS_DEFAULT = 4000
DUP_RATIO = 0.2
TRIAL_S = 0.7
STATEMENT_ROWS = (100, 250, 500)
CHECKPOINT_PAGES = (1000, 4000, 16_000)
_ROWS_MADE_AHEAD = 100_000
_PROCESSED_AT_NS = 1_795_430_000_000_000_000
_CHECKSUM = -(2**30)  # any of 32 bits; computing them is the server's work


@dataclass(frozen=True, slots=True)
class Tuning:
    """How rows are written: in statements of how many, with a checkpoint after how many pages of log."""

    statement_rows: int
    checkpoint_pages: int


@dataclass(frozen=True, slots=True)
class CeilingRun:
    """One run: rows appended in ``busy_s``, the time from BEGIN to the end of COMMIT over all commits."""

    rows: int
    commits: int
    busy_s: float

    @property
    def rows_per_s(self) -> float:
        """Rows appended a second."""
        return self.rows / self.busy_s


def measure(
    folder: Path, tuning: Tuning, *, id_kind: IdKind = IdKind.UUID7, commit_rows: int, seconds: float
) -> CeilingRun:
    """Append rows to a new store in ``folder`` for ``seconds`` of busy time."""
    connection = new_store(folder / "ceiling.db", tuning)
    columns = columns_of(connection)
    maker = EventMaker(1, id_kind)
    rows, commits, busy_s = 0, 0, 0.0
    try:
        while busy_s < seconds:
            count = max(_ROWS_MADE_AHEAD // commit_rows, 1) * commit_rows
            flat = make_rows(maker, rows, count, columns)
            for start in range(0, count, commit_rows):
                statements = list(statements_of(flat[start : start + commit_rows], tuning, columns))
                begun_s = time.perf_counter()
                connection.execute("BEGIN IMMEDIATE")
                for sql, values in statements:
                    connection.execute(sql, values)
                connection.execute("COMMIT")
                busy_s += WATCH.since_s(begun_s)
                rows += commit_rows
                commits += 1
                if busy_s >= seconds:
                    break
    finally:
        connection.close()
    return CeilingRun(rows, commits, busy_s)


def tune(options: Options, commit_rows: int, notify: Notify = lambda what, done: None) -> Tuning:
    """Find the best way to append, by short trials."""
    best = Tuning(STATEMENT_ROWS[1], CHECKPOINT_PAGES[1])
    candidates = [Tuning(rows, best.checkpoint_pages) for rows in STATEMENT_ROWS]
    for attempt in range(2):
        rates = {}
        for number, tuning in enumerate(candidates):
            notify("ceiling: tuning", (attempt * 3 + number) / 6)
            with options.folder() as folder:
                rates[tuning] = measure(folder, tuning, commit_rows=commit_rows, seconds=TRIAL_S).rows_per_s
        best = max(candidates, key=lambda tuning: rates[tuning])
        candidates = [Tuning(best.statement_rows, pages) for pages in CHECKPOINT_PAGES]
    return best


def run(options: Options, notify: Notify) -> Report:
    """Measure the ceiling by itself."""
    commit_rows = options.commit_rows or COMMIT_ROWS_DEFAULT
    tuning = tune(options, commit_rows, lambda what, done: notify(what, done * 0.2))
    figures: dict[str, Any] = {"commit_rows": commit_rows, "tuning": asdict(tuning), "runs": []}
    for number in range(options.rounds):
        for place, id_kind in enumerate(IdKind):
            notify(f"ceiling, {id_kind}", 0.2 + 0.8 * (2 * number + place) / (2 * options.rounds))
            with options.folder() as folder:
                one = measure(folder, tuning, id_kind=id_kind, commit_rows=commit_rows, seconds=options.seconds)
            figures["runs"].append({"id_kind": id_kind, **asdict(one), "rows_per_s": one.rows_per_s})
    rows = []
    for id_kind in IdKind:
        rates = [one["rows_per_s"] for one in figures["runs"] if one["id_kind"] == id_kind]
        median = statistics.median(rates)
        figures[id_kind] = {"rows_per_s": median, "events_per_s": median / (1 - DUP_RATIO)}
        rows.append(
            (id_kind, f"{median:,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}", f"{median / (1 - DUP_RATIO):,.0f}")
        )
    return Report(
        figures,
        [
            Table(
                f"ceiling: one thread, commits of {commit_rows} rows, {tuning.statement_rows} rows a statement, "
                f"checkpoint after {tuning.checkpoint_pages} pages",
                ("ids", "rows/s", "from, to", "as events/s with 20 % duplicates"),
                rows,
            )
        ],
    )


def new_store(path: Path, tuning: Tuning) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "full")
    connection.wal_autocheckpoint(tuning.checkpoint_pages)
    connection.execute((resources.files("sekali.stores") / "schema.sql").read_text())
    return connection


def columns_of(connection: apsw.Connection) -> list[str]:
    """Return the columns of events in the table's order."""
    return [name for (name,) in connection.execute("SELECT name FROM pragma_table_info('events') ORDER BY cid")]


def make_rows(maker: EventMaker, start: int, count: int, columns: list[str]) -> list[tuple[Any, ...]]:
    """Return ``count`` rows, the first with seq ``start + 1``."""
    made = maker.columns(np.arange(start, start + count))
    values: dict[str, Any] = {
        "seq": range(start + 1, start + count + 1),
        "topic_id": [number + 1 for number in made.topic_numbers],
        "event_id": made.event_ids,
        "timestamp_ns": made.timestamps_ns,
        "processed_at_ns": [_PROCESSED_AT_NS] * count,
        "source": [SOURCE] * count,
        "source_seq": [None] * count,
        "payload": made.payloads,
        "checksum": [_CHECKSUM] * count,
    }
    unknown = set(columns) - set(values)
    if unknown:
        raise BenchFailed(f"the table events has columns that {__name__} does not know: {', '.join(sorted(unknown))}")
    return list(zip(*(values[name] for name in columns), strict=True))


def statements_of(rows: list[tuple[Any, ...]], tuning: Tuning, columns: list[str]) -> Iterator[tuple[str, list[Any]]]:
    marks = f"({','.join('?' * len(columns))})"
    for start in range(0, len(rows), tuning.statement_rows):
        some = rows[start : start + tuning.statement_rows]
        sql = "INSERT INTO events VALUES " + ",".join([marks] * len(some))  # noqa: S608 - only marks are put in
        yield sql, list(chain.from_iterable(some))
