"""The order service: an order and its event are written in one transaction, and a relay publishes the event.

Kill it whenever you like and start it again: it goes on with the next order, and the relay with what was not sent.
"""

import argparse
import sqlite3
import time
from contextlib import closing

from sekali.client import Outbox, Relay, new_event

outbox = Outbox()


def open_database(path: str) -> sqlite3.Connection:
    """Open the database of the order service, and make its tables where they are missing."""
    connection = sqlite3.connect(path, timeout=30)
    connection.execute("PRAGMA journal_mode = WAL")  # the relay reads while orders are written
    connection.execute("CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY, total INTEGER NOT NULL)")
    outbox.create_table(connection)
    connection.commit()
    return connection


def place_order(connection: sqlite3.Connection, number: int) -> None:
    """Write an order and its event: both, or neither."""
    total = 10 + number % 90
    with connection:
        connection.execute("INSERT INTO orders VALUES (?, ?)", (number, total))
        event = new_event("shop/orders", {"order": number, "total": total}, event_id=f"order-{number}", source="orders")
        outbox.add(connection, event)


def main() -> None:
    """Place orders until there are so many."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--url", default="http://127.0.0.1:8080")
    options.add_argument("--database", default="orders.db")
    options.add_argument("--count", type=int, default=20, help="orders that there shall be in the end")
    options.add_argument("--per-second", type=float, default=5.0, help="at most so many")
    given = options.parse_args()
    with (
        closing(open_database(given.database)) as connection,
        Relay(given.url, outbox, lambda: open_database(given.database)) as relay,
    ):
        (last,) = connection.execute("SELECT ifnull(max(number), 0) FROM orders").fetchone()
        for number in range(last + 1, given.count + 1):
            place_order(connection, number)
            print(f"order {number} is placed", flush=True)
            time.sleep(1 / given.per_second)
        while not relay.flush(timeout_s=10):
            print(f"{outbox.pending(connection)} events wait for the server", flush=True)


if __name__ == "__main__":
    main()
