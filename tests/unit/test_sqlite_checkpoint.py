"""Checkpoints that fail cost no commit, and are made up for."""

import errno
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import apsw
import pytest

from batches import publish
from sekali.errors import StoreBroken
from sekali.stores.sqlite import SqliteStore
from sekali.testing import FakeClock, FaultyDisk, FaultyVfs, Operation


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sekali.stores.sqlite_checkpoint.START_PAGES", 1)
    monkeypatch.setattr("sekali.stores.sqlite_checkpoint.RETRY_S", 0.001)


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk()


@pytest.fixture
def store(disk: FaultyDisk, tmp_path: Path) -> Iterator[SqliteStore]:
    with FaultyVfs(disk, tmp_path / "data") as vfs:
        store = SqliteStore(vfs.folder / "store.db", FakeClock(), topics_max=9, vfs=vfs.name)
        store.recover()
        yield store
        store.close()


def settle(store: SqliteStore) -> None:
    assert store._checkpointer is not None
    store._checkpointer.settle()


def test_one_that_fails_is_made_up_for_after_the_next_commit(store: SqliteStore, disk: FaultyDisk) -> None:
    publish(store, ("a", "1", b'"first"'))
    settle(store)
    assert b'"first"' in disk.contents()["store.db"]
    disk.fail(errno.EIO, only={Operation.TRUNCATE})  # which only a checkpoint does
    publish(store, ("a", "2"))
    settle(store)
    assert disk.faults == ["truncate store.db"]
    before = len(disk.trace)
    publish(store, ("a", "3", b'"third"'))
    settle(store)
    assert "sync store.db" in disk.trace[before:] and b'"third"' in disk.contents()["store.db"]


def test_without_a_connection_of_their_own_the_recovery_fails(store: SqliteStore) -> None:
    with (
        patch("sekali.stores.sqlite_checkpoint.open_checkpointer", side_effect=apsw.CantOpenError("no descriptor")),
        pytest.raises(StoreBroken, match="no descriptor"),
    ):
        store.recover()
    store.recover()
    publish(store, ("a", "1"))
    settle(store)
