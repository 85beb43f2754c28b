"""What can be wrong with the file: opening, auditing, reading damaged rows, backing up."""

from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from batches import publish, read_all
from sekali.errors import StartupError, StoreBroken, TookTooLong
from sekali.ports import Order, Query, Unreadable
from sekali.stores import sqlite_read
from sekali.stores.sqlite import SqliteStore
from sekali.stores.sqlite_audit import Report, audit
from sekali.testing import FakeClock

READ_BACK = "every event can be read back as it was stored"


def open_store(path: Path) -> SqliteStore:
    store = SqliteStore(path, FakeClock(), topics_max=100)
    store.recover()
    return store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed store with three events, one duplicate and one conflict."""
    path = tmp_path / "folder" / "store.db"
    store = open_store(path)
    publish(store, ("a", "1", b'{"n":1}', "host"), ("a", "2", b"2"), ("b", "1", b"3"))
    publish(store, ("a", "1", b'{"n":1}', "host"), ("a", "2", b"other"[:0] + b"9"))
    store.close()
    return path


def tamper(path: Path, *statements: str) -> None:
    connection = apsw.Connection(str(path))
    for statement in statements:
        connection.execute(statement)
    connection.close()


def verify(path: Path) -> Report:
    return audit(path, lambda done, total: None)


def failed(path: Path) -> list[str]:
    return [check.name for check in verify(path).checks if not check.ok]


def test_a_whole_store_is_clean(path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = audit(path, lambda done, total: seen.append((done, total)))
    assert report.ok and report.document()["ok"] is True
    assert (report.events, seen) == (3, [(3, 3)])
    assert len(report.log_id) == 32


def test_an_empty_store_is_clean(tmp_path: Path) -> None:
    open_store(tmp_path / "store.db").close()
    assert verify(tmp_path / "store.db").ok


@pytest.mark.parametrize(
    ("statements", "name"),
    [
        (("UPDATE events SET event_id = '1' WHERE seq = 2",), "every identity is there once"),
        (("DELETE FROM events WHERE seq = 2",), "seq goes from 1 without a gap"),
        (("UPDATE events SET payload = x'7b' WHERE seq = 1",), READ_BACK),
        (("UPDATE events SET payload = x'22ff22' WHERE seq = 1",), READ_BACK),
        (("UPDATE events SET event_id = CAST(x'ff' AS TEXT) WHERE seq = 1",), READ_BACK),
        (("UPDATE events SET source = CAST(x'ff' AS TEXT) WHERE seq = 1",), READ_BACK),
        (("UPDATE events SET processed_at_ns = 1 WHERE seq = 2",), READ_BACK),
        (("UPDATE log SET received = 7",), "the counters equal the rows"),
        (("UPDATE log SET stored = 4, received = 6",), "the counters equal the rows"),
        (("UPDATE log SET duplicate = 2, received = 6",), "the counters equal the rows"),
        (("UPDATE duplicates SET count = 2",), "the counters equal the rows"),
        (("UPDATE conflicts SET count = 2",), "the counters equal the rows"),
        (("UPDATE topics SET stored = 3 WHERE topic = 'a'",), "the figures of each topic equal its rows"),
        (("UPDATE topics SET last_timestamp_ns = 3 WHERE topic = 'a'",), "the figures of each topic equal its rows"),
        (("UPDATE topics SET conflicts = 3 WHERE topic = 'a'",), "the figures of each topic equal its rows"),
        (("UPDATE topics SET topic = 'a b' WHERE topic = 'a'",), "the figures of each topic equal its rows"),
        (
            ("UPDATE duplicates SET seq = 99",),
            "every duplicate count, variant and topic belongs to an event",
        ),
        (("UPDATE conflicts SET seq = 99",), "every duplicate count, variant and topic belongs to an event"),
        (
            ("UPDATE events SET topic_id = 99 WHERE seq = 3",),
            "every duplicate count, variant and topic belongs to an event",
        ),
    ],
)
def test_the_audit_sees(path: Path, statements: tuple[str, ...], name: str) -> None:
    tamper(path, *statements)
    assert name in failed(path)


def test_the_audit_sees_damage_that_sqlite_sees(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096 + 8 : 4096 + 40] = bytes(32)
    path.write_bytes(data)
    try:
        assert "SQLite finds no damage in the file" in failed(path)
    except StoreBroken as error:
        assert "restore a backup" in str(error) or "cannot open" in str(error)


def test_the_audit_refuses_a_store_in_use_and_one_that_is_not_there(path: Path, tmp_path: Path) -> None:
    store = open_store(path)
    with pytest.raises(StartupError, match="in use"):
        verify(path)
    store.close()
    with pytest.raises(StoreBroken, match="no store"):
        verify(tmp_path / "nothing.db")


@pytest.mark.parametrize("order", Order)
def test_a_damaged_row_is_an_error_for_that_row_only(path: Path, order: Order) -> None:
    tamper(
        path,
        "UPDATE events SET payload = x'22ff22' WHERE seq = 1",
        "UPDATE events SET source = CAST(x'ff' AS TEXT) WHERE seq = 3",
    )
    store = open_store(path)
    events = {event.seq: event for event in store.read(Query(order=order)).events}
    assert isinstance(events[1], Unreadable) and "checksum" in events[1].error
    assert not isinstance(events[2], Unreadable) and events[2].event_id == "2"
    assert isinstance(events[3], Unreadable) and "utf-8" in events[3].error
    first = store.read(Query(order=order, limit=2))
    assert len(first.events) == 2 and first.next is not None
    rest = store.read(Query(order=order, limit=2, position=first.next))
    assert {event.seq for event in first.events + rest.events} == {1, 2, 3}
    store.close()


def test_a_page_looks_at_a_bounded_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_read, "SCAN_ROWS_MAX", 10)
    store = open_store(tmp_path / "store.db")
    publish(store, *[("a", str(number), b"1", "rare" if number == 57 else "often") for number in range(95)])
    for order in Order:
        query = Query(source="rare", order=order)
        assert store.read(query).events == [] and store.read(query).next is not None
        assert [event.event_id for event in read_all(store, query)] == ["57"]
        assert len(read_all(store, Query(source="often", order=order, limit=7))) == 94
    store.close()


def test_behind_a_damaged_row_the_next_rows_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_read, "SCAN_ROWS_MAX", 10)
    store = open_store(tmp_path / "store.db")
    publish(store, *[("a", str(number), b"1", "host") for number in range(1, 36)])
    store.close()
    tamper(tmp_path / "store.db", "UPDATE events SET source = CAST(x'ff' AS TEXT) WHERE seq IN (3, 17)")
    store = open_store(tmp_path / "store.db")
    for order in Order:
        query: Query | None = Query(until_ns=2**62, order=order)
        found: list[int] = []
        while query is not None:
            page = store.read(query)
            found += [event.seq for event in page.events]
            query = None if page.next is None else replace(query, position=page.next)
        assert sorted(found) == [*range(1, 36)]
    store.close()


def test_a_second_writer_is_kept_out(path: Path) -> None:
    store = open_store(path)
    with pytest.raises(StartupError, match=r"in use by another sekali process.*DB_PATH"):
        open_store(path)
    store.close()
    open_store(path).close()


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (("CREATE TABLE notes (text)",), "another program"),
        (("PRAGMA application_id = 7",), "another program"),
        (("PRAGMA application_id = 0x53454B41", "PRAGMA user_version = 99"), "run a newer sekali"),
    ],
)
def test_files_that_are_not_ours_are_refused(tmp_path: Path, statements: tuple[str, ...], message: str) -> None:
    path = tmp_path / "store.db"
    tamper(path, *statements)
    before = path.read_bytes()
    with pytest.raises(StartupError, match=message):
        open_store(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_text("hello, this is no database, but it is long enough to look like a header of one " * 20)
    with pytest.raises(StoreBroken, match="cannot open"):
        open_store(path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="choose another DB_PATH"):
        open_store(tmp_path / "file" / "below" / "store.db")


def test_commits_are_durable_by_the_settings_read_back(path: Path) -> None:
    store = open_store(path)
    assert store._writer.pragma("synchronous") == 2
    assert store._writer.pragma("journal_mode") == "wal"
    store.close()


def test_a_reader_that_takes_too_long_is_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_read, "STEPS_BETWEEN_LOOKS", 1)
    store = SqliteStore(path, FakeClock(), topics_max=100, read_timeout_s=0)
    store.recover()
    for read in (store.read, lambda query: store.summary()):
        with pytest.raises(TookTooLong, match=r"took longer than 0 s \(READ_TIMEOUT_S\) and was ended"):
            read(Query())
    # It holds nothing back: the log can start over.
    publish(store, ("a", "3"))
    assert store._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE) == (0, 0)
    store.close()


def test_a_reader_that_is_in_time_is_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_read, "STEPS_BETWEEN_LOOKS", 1)
    store = open_store(path)
    assert len(store.read(Query()).events) == 3
    store.close()
