"""Where a follower has come, in the consumer's own database: written in the transaction of the effect."""

from typing import Any

from sekali.client.sql import check_table, database_of


class Positions:
    """A table of positions by name in a database of the consumer's.

    Every method takes a connection of sqlite3, apsw or psycopg, and none commits. One follower at a time may use a
    name: of two, each would have the effects.

    Args:
        table: its name in lower case, perhaps with a schema before it.

    Raises:
        ValueError: that is no name.

    """

    def __init__(self, table: str = "sekali_positions") -> None:
        self.table = check_table(table)

    def create_table(self, connection: Any) -> None:
        """Create the table where it is missing. For a migration, or for the start of a program."""
        sql = f"CREATE TABLE IF NOT EXISTS {self.table} (name text PRIMARY KEY, position text NOT NULL)"
        database = database_of(connection)
        database.rows(sql + database.dialect.table_end)

    def load(self, connection: Any, name: str) -> str | None:
        """Return the position that was stored under a name, None if none was."""
        rows = database_of(connection).rows(f"SELECT position FROM {self.table} WHERE name = ?", (name,))
        return str(rows[0][0]) if rows else None

    def store(self, connection: Any, name: str, position: str) -> None:
        """Store a position, in the transaction that is open.

        Raises:
            NoTransaction: none is open, and the connection would not begin one by itself.

        """
        database = database_of(connection)
        database.require_transaction()
        database.rows(
            f"INSERT INTO {self.table} (name, position) VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET position = excluded.position",
            (name, position),
        )
