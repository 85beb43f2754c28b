"""The order service and the billing service of the examples: each order is billed once, whoever is killed, and when.

By hand, with more kills: ``python -m pytest tests/crash/test_orders.py --orders-kills 200 --orders-count 10000``.
"""

import json
import random
from pathlib import Path

import pytest
from rich.console import Console

from crash.billing_that_dies import POINT
from crash.ordering import CONSUMER, PUBLISHER, SERVER, Ordering
from sekali.bench import machine

TEST = "tests/crash/test_orders.py::test_each_order_is_billed_once_whoever_is_killed"
KILLS = 9
ORDERS = 450
ARMED_ORDERS = 20


def test_each_order_is_billed_once_whoever_is_killed(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    kills: int = pytestconfig.getoption("--orders-kills") or KILLS
    orders: int = pytestconfig.getoption("--orders-count") or ORDERS
    given_seed: int | None = pytestconfig.getoption("--orders-seed")
    seed = random.randrange(2**32) if given_seed is None else given_seed
    report: str | None = pytestconfig.getoption("--orders-report")
    with Ordering(tmp_path, orders, seed) as ordering:
        ordering.kill_again_and_again(kills)
        account = ordering.finish()
    Console().print(account.table())
    if report is not None:
        options = f"--orders-kills {kills} --orders-count {orders} --orders-seed {seed} --orders-report {report}"
        document = account.document(f"python -m pytest {TEST} {options}", machine.facts(tmp_path))
        Path(report).write_text(json.dumps(document, indent=1) + "\n")
    assert (account.orders, account.events) == (orders, orders)
    assert (account.billed_once, account.billed_twice, account.not_billed) == (orders, 0, 0), f"seed {seed}"
    assert account.dead_letters == 0 and account.kills_after_the_orders <= kills // 2
    assert sum(account.kills.values()) == kills and all(account.kills[who] for who in (PUBLISHER, SERVER, CONSUMER))


@pytest.mark.parametrize("has_inbox", [True, False])
def test_killed_between_bill_and_acknowledgement(tmp_path: Path, has_inbox: bool) -> None:
    """With the inbox the order is billed once. Without, it is billed twice: the example can fail."""
    with Ordering(tmp_path, ARMED_ORDERS, seed=0, has_inbox=has_inbox) as ordering:
        ordering.kill_at(POINT)
        account = ordering.finish()
    Console().print(account.table())
    assert (account.orders, account.not_billed) == (ARMED_ORDERS, 0)
    if has_inbox:
        assert account.billed_twice == 0 and account.redelivered >= 1
    else:
        assert account.billed_twice >= 1 and account.bills > ARMED_ORDERS
