"""Files of every released schema: opened, brought up to date in one transaction, or refused."""

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import apsw
import pytest

from batches import CONFLICT, DUPLICATE, STORED, publish
from sekali.errors import StartupError, StoreBroken
from sekali.ports import Query, Unreadable, no_progress
from sekali.stores import sqlite_schema
from sekali.stores.sqlite import SqliteStore
from sekali.stores.sqlite_audit import audit
from sekali.stores.sqlite_backup import backup, restore
from sekali.stores.sqlite_schema import SCHEMA_VERSION
from sekali.testing import FakeClock
from stored import contents

FIXTURES = Path(__file__).parents[1] / "fixtures" / "stores"
VERSIONS = range(1, SCHEMA_VERSION)  # of which there is a fixture; the newest gets one when it is released


def fixture(version: int, tmp_path: Path) -> Path:
    return Path(shutil.copy(FIXTURES / f"schema-{version}.db", tmp_path / "store.db"))


def expected(version: int) -> Any:
    """Return what a fixture holds. Before schema 3 nobody knew of sources, and no event had a number."""
    return {"sources": []} | json.loads((FIXTURES / f"schema-{version}.json").read_bytes())


def open_store(path: Path) -> SqliteStore:
    store = SqliteStore(path, FakeClock(), topics_max=100)
    store.recover()
    return store


def seen(store: SqliteStore) -> Any:
    return json.loads(json.dumps(contents(store)))


def columns(path: Path) -> dict[str, Any]:
    """Return every column of every table, and the indexes, of a file."""
    connection = apsw.Connection(str(path))
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema ORDER BY name")]
    found = {name: connection.execute(f"SELECT * FROM pragma_table_info('{name}')").fetchall() for name in names}
    connection.close()
    return found


def version_of(path: Path) -> int:
    connection = apsw.Connection(str(path))
    try:
        return int(connection.pragma("user_version"))
    finally:
        connection.close()


def test_there_is_a_fixture_of_every_schema() -> None:
    assert sorted(path.name for path in FIXTURES.iterdir()) == sorted(
        f"schema-{version}.{ending}" for version in VERSIONS for ending in ("db", "json")
    )
    for version in VERSIONS:
        assert version_of(FIXTURES / f"schema-{version}.db") == version


@pytest.mark.parametrize("version", VERSIONS)
def test_an_older_file_is_brought_up_to_date_and_goes_on(version: int, tmp_path: Path) -> None:
    path = fixture(version, tmp_path)
    store = open_store(path)
    assert seen(store) == expected(version)
    assert publish(
        store, ("app/a", "1", b'{"n":1.0}', "host-1"), ("app/b", "1", b"9"), ("app/a", "new"), ("sensor", "\u00e9")
    ) == [(DUPLICATE, 1), (CONFLICT, 3), (STORED, 8), (CONFLICT, 5)]
    store.close()
    assert version_of(path) == SCHEMA_VERSION
    report = audit(path, no_progress)
    assert [check.failures for check in report.checks if not check.ok] == []
    new = tmp_path / "new" / "store.db"
    open_store(new).close()
    assert columns(path) == columns(new)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_step_that_fails_leaves_the_file_as_it_was(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fixture(version, tmp_path)

    def fail(_: apsw.Connection) -> None:
        raise apsw.FullError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite_schema, "_STEPS", [*sqlite_schema._STEPS[:-1], sqlite_schema._STEPS[-1], fail])
        with pytest.raises(StoreBroken, match="full"):
            open_store(path)
    assert version_of(path) == version
    store = open_store(path)
    assert seen(store) == expected(version)
    store.close()


def test_what_was_damaged_before_checksums_is_not_called_whole(tmp_path: Path) -> None:
    path = fixture(1, tmp_path)
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE events SET payload = x'22ff22' WHERE seq = 1")
    connection.execute("UPDATE events SET source = CAST(x'ff' AS TEXT) WHERE seq = 2")
    connection.close()
    store = open_store(path)
    damaged = [event.seq for event in store.read(Query()).events if isinstance(event, Unreadable)]
    assert damaged == [1, 2]
    store.close()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = fixture(VERSIONS[-1], tmp_path)
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", SCHEMA_VERSION + 1)
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StartupError, match=f"schema {SCHEMA_VERSION + 1} .* run a newer sekali"):
        open_store(path)
    assert path.read_bytes() == before


def test_who_only_reads_changes_no_older_file(tmp_path: Path) -> None:
    path = fixture(1, tmp_path)
    before = path.read_bytes()
    with pytest.raises(StoreBroken, match="run sekali serve on it"):
        audit(path, no_progress)
    with pytest.raises(StoreBroken, match="run sekali serve on it"):
        backup(path, tmp_path / "copy.db", no_progress)
    assert path.read_bytes() == before


def test_a_backup_of_an_older_schema_can_be_restored(tmp_path: Path) -> None:
    copy = Path(shutil.copy(FIXTURES / "schema-1.db", tmp_path / "copy.db"))
    connection = apsw.Connection(str(copy))
    connection.execute("UPDATE log SET log_id = ''")  # as sekali backup leaves it
    connection.close()
    restore(copy, tmp_path / "store.db", no_progress)
    store = open_store(tmp_path / "store.db")
    assert seen(store)["events"] == expected(1)["events"]
    assert re.fullmatch("[0-9a-f]{32}", store.summary().log_id)
    store.close()


def test_the_fixtures_hold_odd_things() -> None:
    payloads = {base64.b64decode(event["payload"]) for event in expected(1)["events"]}
    assert {b"1e0", b"null", b'"caf\xc3\xa9"', b"[1, 2.50]"} <= payloads
    assert expected(1)["conflicts"] and any(event["duplicates"] for event in expected(1)["events"])
