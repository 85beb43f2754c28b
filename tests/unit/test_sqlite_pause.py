"""Why the server paused a subscription, in a file that was damaged: ``sekali verify`` says so."""

from pathlib import Path

import apsw
import pytest

from sekali.delivery import Alter, Change, Create, Definition, Pause, Subscription
from sekali.stores.sqlite import SqliteStore
from sekali.stores.sqlite_subscriptions_audit import subscription_faults
from sekali.testing import FakeClock

GOOD = """'["gone",7]'"""


@pytest.mark.parametrize(
    ("pause", "paused", "faults"),
    [
        (GOOD, True, []),
        ("NULL", True, []),
        ("NULL", False, []),
        (GOOD, False, ["s: why it is paused is damaged"]),
        ("'[7]'", True, ["s: why it is paused is damaged"]),
        ("CAST(x'5bff5d' AS TEXT)", True, ["s: why it is paused is damaged"]),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, pause: str, paused: bool, faults: list[str]) -> None:
    store = SqliteStore(tmp_path / "store.db", FakeClock(), topics_max=10)
    store.recover()
    definition = Definition("t", "earliest", paused=paused)
    changes: list[Change] = [Create(Subscription("s", definition, 0, 5)), Alter("s", definition, Pause("gone", 7))]
    assert store.commit([store.prepare_changes(changes)]) == []
    store.close()
    connection = apsw.Connection(str(tmp_path / "store.db"))
    assert connection.execute("SELECT pause FROM subscriptions").get == GOOD.strip("'")
    connection.execute(f"UPDATE subscriptions SET pause = {pause}")
    assert list(subscription_faults(connection)) == faults
    connection.close()
