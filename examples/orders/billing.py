"""The billing service: takes each order from a durable subscription and writes a bill, once.

Kill it whenever you like and start it again. An event that it had billed but not acknowledged comes again, and finds
its mark in the inbox, which was written in the transaction of the bill.
"""

import argparse
import signal
import sqlite3
from contextlib import closing
from typing import Any

from sekali.client import Inbox, Subscriber

inbox = Inbox()


def open_database(path: str) -> sqlite3.Connection:
    """Open the database of the billing service, and make its tables where they are missing."""
    connection = sqlite3.connect(path, timeout=30, check_same_thread=False)  # the subscriber's thread uses it
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE IF NOT EXISTS bills (order_number INTEGER NOT NULL, total INTEGER NOT NULL)")
    inbox.create_table(connection)
    connection.commit()
    return connection


def bill(connection: sqlite3.Connection, event: dict[str, Any], *, has_inbox: bool) -> None:
    """Bill an order: the bill and the mark that it was billed are one transaction."""
    number, total = event["payload"]["order"], event["payload"]["total"]
    with connection:
        if has_inbox and not inbox.once(connection, event):
            print(f"order {number} came again, and is billed already", flush=True)
            return
        connection.execute("INSERT INTO bills VALUES (?, ?)", (number, total))
    print(f"order {number} is billed", flush=True)


def main() -> None:
    """Bill orders until somebody says that it is enough."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--url", default="http://127.0.0.1:8080")
    options.add_argument("--database", default="billing.db")
    options.add_argument("--no-inbox", action="store_true", help="see what happens without")
    given = options.parse_args()
    with closing(open_database(given.database)) as connection:
        subscriber = Subscriber(
            given.url,
            "billing",
            lambda event: bill(connection, event, has_inbox=not given.no_inbox),
            # A lease is extended for as long as a bill takes, so it can be short: that is how long the others wait for
            # the events of one that was killed.
            create={"topic": "shop/orders", "start": "earliest", "lease_seconds": 2, "max_attempts": 100},
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: subscriber.stop())
        subscriber.run()


if __name__ == "__main__":
    main()
