"""Ranges of the numbers of sources: what commits make of them in SQLite, beside sets of numbers."""

from collections import Counter
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import apsw
import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from batches import commit
from sekali.errors import StoreBroken
from sekali.event import Batch
from sekali.ports import SourceQuery, no_progress
from sekali.stores import sqlite_schema, sqlite_source_pages
from sekali.stores.sqlite import SqliteStore
from sekali.stores.sqlite_audit import audit
from sekali.stores.sqlite_lookup import Columns
from sekali.stores.sqlite_sources import SourceWrites, plan_sources, write_sources
from sekali.testing import FakeClock

MIN, MAX = -(2**63), 2**63 - 1
Row = tuple[int, str, int | None]  # topic_id, source, source_seq
numbers = st.integers(-4, 12) | st.sampled_from([MIN, MIN + 1, MIN + 2, -1, 0, MAX - 1, MAX])
rows = st.tuples(st.integers(1, 2), st.sampled_from(["", "a", "é"]), st.none() | numbers)
groups = st.lists(st.lists(rows, max_size=8), max_size=8)


class Tables:
    """The two tables, and the topics that have numbers, as the store keeps them."""

    def __init__(self) -> None:
        self.connection = apsw.Connection(":memory:")
        self.connection.execute(resources.files("sekali.stores").joinpath("schema.sql").read_text())
        self.topics: set[int] = set()

    def plan(self, group: list[Row]) -> SourceWrites | None:
        topic_ids, sources, source_seqs = map(list, zip(*group, strict=True)) if group else ([], [], [])
        empty: list[str] = [""] * len(group)
        writes = plan_sources(Columns(topic_ids, empty, [0] * len(group), sources, source_seqs, []), self.topics)
        if writes is not None:
            self.topics |= writes.topics
        return writes

    def write(self, writes: SourceWrites | None) -> None:
        if writes is not None:
            write_sources(self.connection, writes)

    def ranges(self) -> list[tuple[int, str, int, int]]:
        return list(self.connection.execute("SELECT * FROM source_ranges ORDER BY topic_id, source, first"))

    def sources(self) -> list[tuple[int, str, int, int, int, int]]:
        return list(self.connection.execute("SELECT * FROM sources ORDER BY topic_id, source"))


def ranges_of(found: set[int]) -> list[tuple[int, int]]:
    starts = sorted(number for number in found if number - 1 not in found)
    ends = sorted(number for number in found if number + 1 not in found)
    return list(zip(starts, ends, strict=True))


@settings(max_examples=400, deadline=None, print_blob=True)
@given(committed=groups, ahead=st.integers(1, 3))
@example(committed=[[(1, "", MIN), (1, "", MAX)], [(1, "", MIN + 1), (1, "", MAX - 1)]], ahead=1)
@example(committed=[[(1, "", 5)], [(1, "", 1), (1, "", 4), (1, "", 6), (1, "", 3)], [(1, "", 2)]], ahead=1)
def test_tables_hold_what_sets_of_numbers_tell(committed: list[list[Row]], ahead: int) -> None:
    """``ahead`` groups are planned before the first of them is written."""
    tables = Tables()
    for start in range(0, len(committed), ahead):
        for writes in [tables.plan(group) for group in committed[start : start + ahead]]:
            tables.write(writes)
    came: dict[tuple[int, str], list[int]] = {}
    unnumbered: Counter[tuple[int, str]] = Counter()
    for topic_id, source, number in [row for group in committed for row in group]:
        if number is not None:
            came.setdefault((topic_id, source), []).append(number)
        elif (topic_id, source) in came:
            unnumbered[topic_id, source] += 1
    assert tables.ranges() == [(*pair, *one) for pair in sorted(came) for one in ranges_of(set(came[pair]))]
    assert tables.sources() == [
        (*pair, len(came[pair]), unnumbered[pair], len(set(came[pair])), len(ranges_of(set(came[pair]))))
        for pair in sorted(came)
    ]


def test_events_without_numbers_are_not_even_planned() -> None:
    tables = Tables()
    assert tables.plan([(1, "a", None), (2, "b", None)]) is None
    assert tables.plan([]) is None
    tables.write(tables.plan([(1, "a", 1)]))
    assert tables.plan([(2, "a", None), (3, "b", None)]) is None, "in their topics nobody numbers"
    assert tables.plan([(1, "b", None)]) is not None


def test_a_source_that_counts_on_stays_one_row_that_one_statement_moves() -> None:
    tables = Tables()
    statements: list[str] = []
    tables.connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, lambda found: statements.append(found["sql"]))
    for start in range(0, 5000, 500):
        tables.write(tables.plan([(1, "a", start + number) for number in range(500)]))
    assert [statement.split()[0] for statement in statements] == ["WITH", "INSERT", "INSERT"] * 10
    assert tables.ranges() == [(1, "a", 0, 4999)]


def test_huge_numbers_of_gaps_are_joined_by_what_comes_late() -> None:
    tables = Tables()
    tables.write(tables.plan([(1, "a", number) for number in range(0, 20_000, 2)]))
    assert len(tables.ranges()) == 10_000 and tables.sources()[0][2:] == (10_000, 0, 10_000, 10_000)
    tables.write(tables.plan([(1, "a", number) for number in range(19_999, 0, -2)]))
    assert tables.ranges() == [(1, "a", 0, 19_999)] and tables.sources()[0][2:] == (20_000, 0, 20_000, 1)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteStore]:
    """100,000 sources in one topic, and as many topics without any as it takes to see that they do no harm."""
    store = SqliteStore(tmp_path_factory.mktemp("many") / "store.db", FakeClock(), topics_max=100_000)
    store.recover()
    for start in range(0, 100_000, 10_000):
        made = Batch()
        for number in range(start, start + 10_000):
            made.topics.append("fleet")
            made.event_ids.append(str(number))
            made.timestamps_ns.append(0)
            made.sources.append(f"device-{number:06}")
            made.source_seqs.append(number)
            made.payloads.append(b"0")
        commit(store, made)
    yield store
    store.close()


@pytest.mark.parametrize("topic", [None, "fleet", "*"])
def test_a_hundred_thousand_sources_are_paged_and_a_page_costs_no_more_than_itself(
    many: SqliteStore, topic: str | None
) -> None:
    names: list[str] = []
    query = SourceQuery(topic=topic, limit=10_000)
    while page := many.sources(query):
        names += [info.source for info in page]
        assert len(page) == 10_000
        query = SourceQuery(topic=topic, limit=10_000, after=(page[-1].topic, page[-1].source))
    assert names == [f"device-{number:06}" for number in range(100_000)]
    assert steps_of(many, SourceQuery(topic=topic, limit=10)) < 20 * 10
    assert steps_of(many, SourceQuery(topic=topic, limit=10, after=("fleet", "device-050000"))) < 20 * 10
    assert steps_of(many, SourceQuery(topic=topic, limit=10, source="device-050000")) < 20 * 10


def steps_of(store: SqliteStore, query: SourceQuery) -> int:
    """Count looks at rows: what SQLite's progress handler tells at each step of its virtual machine, in hundreds."""
    steps = 0

    def step() -> bool:
        nonlocal steps
        steps += 1
        return False

    with store._readers.snapshot() as connection:
        connection.set_progress_handler(step, 10)
        assert len(sqlite_source_pages.read_sources(connection, query)) == (1 if query.source else query.limit)
        connection.set_progress_handler(None)
    return steps


class Store:
    """A store in a file that a test may change behind its back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = self.open()

    def open(self) -> SqliteStore:
        self.store = SqliteStore(self.path, FakeClock(), topics_max=10)
        self.store.recover()
        return self.store

    def add(self, *rows: tuple[str, str, int | None]) -> None:
        made = Batch()
        head = self.store.summary().head
        for place, (topic, source, number) in enumerate(rows):
            made.topics.append(topic)
            made.event_ids.append(str(head + place))
            made.timestamps_ns.append(0)
            made.sources.append(source)
            made.source_seqs.append(number)
            made.payloads.append(b"0")
        commit(self.store, made)

    def change(self, *statements: str) -> None:
        """Change the closed file."""
        self.store.close()
        connection = apsw.Connection(str(self.path))
        for statement in statements:
            connection.execute(statement)
        connection.close()

    def failures(self) -> list[str]:
        """Return what the audit says of the sources of the closed file."""
        self.store.close()
        report = audit(self.path, no_progress)
        (check,) = [check for check in report.checks if "source" in check.name]
        return check.failures


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store.db")
    store.add(("a", "", 1), ("a", "", 2), ("a", "", 5), ("a", "x", None), ("a", "\u00e9", MIN), ("b", "\u00e9", MAX))
    store.add(("a", "", 5), ("a", "", None), ("a", "x", 7), ("a", "x", None), ("b", "\u00e9", MIN), ("b", "y", None))
    yield store
    store.store.close()


DAMAGE = {
    "a range too long": "UPDATE source_ranges SET last = 3 WHERE first = 1",
    "a range too short": "UPDATE source_ranges SET last = 1 WHERE first = 1",
    "a range is gone": "DELETE FROM source_ranges WHERE first = 5",
    "a range too many": "INSERT INTO source_ranges VALUES (1, '', 9, 9)",
    "ranges of a source that is none": "INSERT INTO source_ranges VALUES (2, 'y', 1, 1)",
    "a source is gone": "DELETE FROM sources WHERE source = 'x'",
    "a source too many": "INSERT INTO sources VALUES (2, 'y', 0, 0, 0, 0)",
    "its name is damaged": "UPDATE source_ranges SET source = CAST(x'78ff' AS TEXT) WHERE source = 'x'",
    "numbered": "UPDATE sources SET numbered = numbered + 1 WHERE source = ''",
    "unnumbered": "UPDATE sources SET unnumbered = unnumbered - 1 WHERE source = 'x'",
    "received": "UPDATE sources SET received = 4 WHERE source = ''",
    "ranges": "UPDATE sources SET ranges = 1 WHERE topic_id = 2",
    "the number of an event": "UPDATE events SET source_seq = 6 WHERE seq = 3",
    "an event lost its number": "UPDATE events SET source_seq = NULL WHERE seq = 7",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_the_audit_finds_figures_that_are_not_those_of_the_rows(filled: Store, name: str) -> None:
    assert filled.failures() == []
    filled.change(DAMAGE[name])
    failures = filled.failures()
    assert failures and all(failure.startswith(("a, source", "b, source")) for failure in failures), failures


def test_the_figures_of_an_older_file_are_those_that_commits_would_have_made(filled: Store) -> None:
    before = filled.store.sources(SourceQuery()), filled.store.sources(SourceQuery(first=MIN, last=MAX))
    assert len(before[0]) == 4
    filled.store.close()
    connection = apsw.Connection(str(filled.path))
    connection.execute("DROP TABLE sources; DROP TABLE source_ranges")
    sqlite_schema._add_sources(connection)
    connection.close()
    filled.open()
    assert (filled.store.sources(SourceQuery()), filled.store.sources(SourceQuery(first=MIN, last=MAX))) == before
    filled.add(("a", "", 4), ("a", "", 3))
    assert filled.store.sources(SourceQuery(topic="a"))[0].missing == 0
    assert filled.failures() == []


def test_an_event_of_an_older_file_whose_source_was_damaged_is_left_out(filled: Store) -> None:
    filled.change(
        "UPDATE events SET source = CAST(x'ff' AS TEXT) WHERE seq = 3", "DROP TABLE sources; DROP TABLE source_ranges"
    )
    connection = apsw.Connection(str(filled.path))
    sqlite_schema._add_sources(connection)
    connection.close()
    filled.open()
    (first, *_) = filled.store.sources(SourceQuery())
    assert (first.source, first.highest, first.missing, first.repeated) == ("", 5, 2, 0)


def test_what_cannot_be_read_is_no_figure(filled: Store) -> None:
    filled.change("UPDATE sources SET source = CAST(x'ff' AS TEXT) WHERE source = 'x'")
    filled.open()
    with pytest.raises(StoreBroken, match="run sekali verify"):
        filled.store.sources(SourceQuery())
    assert filled.store.sources(SourceQuery(source=""))[0].topic == "a", "and others can be"
