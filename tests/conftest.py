"""Options of the tests that have a long form."""

import hypothesis
import pytest

# How long an example takes says nothing on a machine that does other work meanwhile.
hypothesis.settings.register_profile("sekali", deadline=None, print_blob=True)
hypothesis.settings.load_profile("sekali")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sekali")
    group.addoption("--kills", type=int, metavar="N", help="tests/crash/test_kills.py: kill the server N times")
    group.addoption("--kills-seed", type=int, metavar="SEED", help="the seed of a run to repeat")
    group.addoption("--kills-report", metavar="FILE", help="write the figures there as JSON")
    group.addoption(
        "--deliveries-seconds", type=float, metavar="S", help="tests/crash/test_deliveries.py: consume for so long"
    )
    group.addoption(
        "--followers-events", type=int, metavar="N", help="tests/e2e/test_coming_and_going.py: follow N events"
    )
    group.addoption("--followers-seed", type=int, metavar="SEED", help="the seed of a run to repeat")
    group.addoption("--followers-report", metavar="FILE", help="write the figures there as JSON")
    group.addoption(
        "--deliveries-kills", type=int, metavar="N", help="tests/crash/test_deliveries.py: kill the server N times"
    )
    group.addoption("--deliveries-report", metavar="FILE", help="write the figures there as JSON")
    group.addoption(
        "--every-operation", action="store_true", help="tests/crash/test_every_operation.py: try every fault everywhere"
    )
    group.addoption(
        "--every-flip", metavar="FILE", help="tests/unit/test_sqlite_damage.py: flip a bit of every byte; figures there"
    )
    group.addoption("--every-operation-report", metavar="FILE", help="write the figures there as JSON")
    group.addoption("--orders-kills", type=int, metavar="N", help="tests/crash/test_orders.py: kill N times")
    group.addoption("--orders-count", type=int, metavar="N", help="while so many orders run")
    group.addoption("--orders-seed", type=int, metavar="SEED", help="the seed of a run to repeat")
    group.addoption("--orders-report", metavar="FILE", help="write the figures there as JSON")
    group.addoption("--fuzz-minutes", type=float, metavar="M", help="tests/fuzz: make requests for so many minutes")
    group.addoption("--fuzz-seed", type=int, metavar="SEED", help="the seed of a run to repeat")
    group.addoption("--fuzz-report", metavar="FILE", help="write the figures there as JSON")
