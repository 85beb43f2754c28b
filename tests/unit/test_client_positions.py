"""Positions on both SQLite libraries; PostgreSQL is in e2e/test_client_postgres.py."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import apsw
import pytest

from sekali.client import NoTransaction, Positions


@pytest.fixture(params=["sqlite3", "apsw"])
def connection(request: pytest.FixtureRequest) -> Iterator[Any]:
    opened: Any = (
        sqlite3.connect(":memory:", isolation_level=None) if request.param == "sqlite3" else apsw.Connection(":memory:")
    )
    with closing(opened):
        yield opened


def test_a_position_is_as_old_as_its_transaction(connection: Any) -> None:
    positions = Positions("read_to")
    positions.create_table(connection)
    positions.create_table(connection)
    assert positions.load(connection, "report") is None
    for position in ("log-1", "log-2"):
        connection.execute("BEGIN")
        positions.store(connection, "report", position)
        connection.execute("COMMIT")
    connection.execute("BEGIN")
    positions.store(connection, "report", "log-3")
    positions.store(connection, "other", "log-9")
    connection.execute("ROLLBACK")
    assert positions.load(connection, "report") == "log-2"
    assert positions.load(connection, "other") is None


def test_outside_of_a_transaction_it_is_refused(connection: Any) -> None:
    positions = Positions()
    positions.create_table(connection)
    with pytest.raises(NoTransaction, match=r"BEGIN|begin"):
        positions.store(connection, "report", "log-1")
    assert positions.load(connection, "report") is None


def test_a_table_has_a_name() -> None:
    with pytest.raises(ValueError, match="is no name for the table"):
        Positions("x; DROP TABLE y")
