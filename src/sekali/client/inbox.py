"""The inbox: makes the effect of an event happen once, although it is delivered at least once.

The consumer writes the event's identity into its own database, in the transaction of the effect. Either both are there
or neither, so an event that comes again finds its mark.
"""

from collections.abc import Mapping
from typing import Any

from sekali.client.events import Event
from sekali.client.sql import check_table, database_of


class Inbox:
    """A table of identities in a database of the consumer's.

    Every method takes a connection of sqlite3, apsw or psycopg, and none commits.

    Args:
        table: its name in lower case, perhaps with a schema before it. Consumers with effects of their own need
            tables of their own.

    Raises:
        ValueError: that is no name.

    """

    def __init__(self, table: str = "sekali_inbox") -> None:
        self.table = check_table(table)

    def create_table(self, connection: Any) -> None:
        """Create the table where it is missing. For a migration, or for the start of a program."""
        database = database_of(connection)
        dialect = database.dialect
        database.rows(
            f"CREATE TABLE IF NOT EXISTS {self.table} (topic text NOT NULL, event_id text NOT NULL, "
            f"seen_at {dialect.time_type} NOT NULL DEFAULT {dialect.now}, PRIMARY KEY (topic, event_id))"
            f"{dialect.table_end}"
        )

    def once(self, connection: Any, event: Event | Mapping[str, Any]) -> bool:
        """Record an event in the transaction that is open; tell whether this is the first time.

        ``event`` has ``topic`` and ``event_id``, as attributes or, like what the server sends, as keys. If another
        transaction has recorded the same event and is still open, this one waits for it: False if that commits, True
        if it rolls back. (In PostgreSQL above READ COMMITTED the first of these is a serialization failure instead;
        in SQLite one transaction writes at a time, and the wait may end as "database is locked". Roll back then, and
        take the event again.)

        Raises:
            NoTransaction: none is open, and the connection would not begin one by itself.

        """
        identity = (event["topic"], event["event_id"]) if isinstance(event, Mapping) else (event.topic, event.event_id)
        database = database_of(connection)
        database.require_transaction()
        sql = f"INSERT INTO {self.table} (topic, event_id) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING topic"
        return bool(database.rows(sql, identity))

    def prune(self, connection: Any, *, older_than_s: float) -> None:
        """Forget what was recorded longer ago.

        An event that is delivered again after that takes effect again. So keep it for longer than anything can still
        be delivered: redeliveries, dead letters that are replayed, and rewinding a subscription.

        Raises:
            ValueError: the age is below 0.

        """
        if older_than_s < 0:
            raise ValueError(f"an age cannot be {older_than_s} seconds")
        database = database_of(connection)
        database.rows(f"DELETE FROM {self.table} WHERE seen_at < {database.dialect.ago}", (older_than_s,))
