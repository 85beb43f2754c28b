"""The dedup index is made from a log in which rows are damaged or lost."""

import shutil
from pathlib import Path

import apsw
import pytest

from batches import DUPLICATE, STORED, publish
from indexes import run_ranges
from sekali.errors import StoreBroken, Unavailable
from sekali.ports import Query
from sekali.stores.folder import index_folder
from sekali.stores.sqlite import SqliteStore
from sekali.testing import FakeClock

EVENTS = 30
RUN_KEYS = 4  # so that some of them are in runs, and the last ones in memory


def open_store(path: Path) -> SqliteStore:
    return SqliteStore(path, FakeClock(), topics_max=100, run_keys=RUN_KEYS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed store."""
    path = tmp_path / "store.db"
    store = open_store(path)
    store.recover()
    publish(store, *[("a", str(seq)) for seq in range(1, EVENTS + 1)])
    store.close()
    return path


def tamper(path: Path, statement: str) -> None:
    connection = apsw.Connection(str(path))
    connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("damage", ["event_id = CAST(x'ff' AS TEXT)", "topic_id = 99"])
@pytest.mark.parametrize("damaged", [1, 8, EVENTS])
def test_a_row_whose_identity_is_damaged_equals_nothing(path: Path, damage: str, damaged: int) -> None:
    tamper(path, f"UPDATE events SET {damage} WHERE seq = {damaged}")
    shutil.rmtree(index_folder(path))
    store = open_store(path)
    store.recover()
    others = [seq for seq in range(1, EVENTS + 1) if seq != damaged]
    assert publish(store, *[("a", str(seq)) for seq in others]) == [(DUPLICATE, seq) for seq in others]
    assert publish(store, ("a", str(damaged))) == [(STORED, EVENTS + 1)]
    store.close()


@pytest.mark.parametrize("lost", [1, RUN_KEYS, EVENTS - 1])
def test_a_row_that_was_lost_is_named(path: Path, lost: int) -> None:
    tamper(path, f"DELETE FROM events WHERE seq = {lost}")
    shutil.rmtree(index_folder(path))
    store = open_store(path)
    with pytest.raises(StoreBroken, match=r"has lost an event .* run sekali verify"):
        store.recover()
    with pytest.raises(Unavailable):
        store.missing("a", ["1"])
    assert len(store.read(Query()).events) == EVENTS - 1
    store.close()


def test_so_is_the_last_row_of_a_run(path: Path) -> None:
    """By its time it is told whether a run is of this log."""
    store = open_store(path)
    store.recover()
    publish(store, ("a", "next"), ("a", "next but one"))
    store.close()
    (_, last), *_ = run_ranges(run.name for run in index_folder(path).iterdir())
    tamper(path, f"DELETE FROM events WHERE seq = {last}")
    store = open_store(path)
    with pytest.raises(StoreBroken, match=f"has lost an event between seq {last} and {last};"):
        store.recover()
    store.close()
