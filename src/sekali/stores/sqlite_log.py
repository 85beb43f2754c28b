"""The log as the dedup index sees it when it is made anew."""

from collections.abc import Sequence

import apsw


class LogSource:
    """A ``dedup.Log`` on a connection to the file."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self.log_id, self.head = connection.execute(
            "SELECT log_id, (SELECT coalesce(max(seq), 0) FROM events) FROM log"
        ).get
        self._topics: dict[int, str] = dict(iter(connection.execute("SELECT topic_id, topic FROM topics")))

    def identities(self, first_seq: int, last_seq: int) -> tuple[Sequence[str], Sequence[str]]:
        rows = self._connection.execute(
            "SELECT topic_id, event_id FROM events WHERE seq BETWEEN ? AND ? ORDER BY seq", (first_seq, last_seq)
        ).fetchall()
        topic_ids, event_ids = zip(*rows, strict=True)
        return [self._topics[topic_id] for topic_id in topic_ids], event_ids

    def processed_at_ns(self, seq: int) -> int:
        return int(self._connection.execute("SELECT processed_at_ns FROM events WHERE seq = ?", (seq,)).get)
