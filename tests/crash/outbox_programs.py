"""The programs that ``test_outbox_with_kills.py`` kills. Each writes a line for what must not be lost from then on.

``publish URL OUTBOX NAME``: publishes with an outbox of its own; a line when ``publish`` has returned.
``order URL DATABASE NAME``: writes orders and their events in one transaction; a line when it is committed.
"""

import os
import sqlite3
import sys
from collections.abc import Callable
from itertools import count

from sekali.client import Outbox, Publisher, Relay, new_event

TOPIC = "orders"


def publishing(url: str, path: str) -> Callable[[str], None]:
    """Return what publishes a key."""
    publisher = Publisher(url, outbox=path)

    def publish(key: str) -> None:
        publisher.publish(TOPIC, key)

    return publish


def open_shop(path: str) -> sqlite3.Connection:
    """Open the database of the shop."""
    connection = sqlite3.connect(path, timeout=30)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def ordering(url: str, path: str) -> Callable[[str], None]:
    """Return what writes an order and its event; every fifth is thought better of."""
    connection = open_shop(path)
    Relay(url, Outbox(), lambda: open_shop(path), poll_s=0.005).start()

    def order(key: str) -> None:
        connection.execute("INSERT INTO orders VALUES (?)", (key,))
        Outbox().add(connection, new_event(TOPIC, key))
        if key.endswith("5"):
            connection.rollback()
        else:
            connection.commit()

    return order


def main() -> None:
    """Go on until killed."""
    what, url, path, name = sys.argv[1:]
    work = {"publish": publishing, "order": ordering}[what](url, path)
    for number in count():
        key = f"{name}-{number}"
        work(key)
        os.write(1, f"{key}\n".encode())


if __name__ == "__main__":
    main()
