"""The log as the dedup index sees it when it is made anew."""

from collections.abc import Sequence
from typing import Any

import apsw

from sekali.errors import StoreBroken


class LogSource:
    """A ``dedup.Log`` on a connection to the file. Its methods raise ``StoreBroken`` where an event is missing."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self.log_id, self.head = connection.execute(
            "SELECT log_id, (SELECT coalesce(max(seq), 0) FROM events) FROM log"
        ).get
        self._topics: dict[int, str] = dict(iter(connection.execute("SELECT topic_id, topic FROM topics")))

    def identities(self, first_seq: int, last_seq: int) -> tuple[Sequence[str], Sequence[str]]:
        try:
            rows = self._rows("event_id", first_seq, last_seq)
        except UnicodeDecodeError:  # a damaged row has no identity that anybody could send
            damaged = self._rows("CAST(event_id AS BLOB)", first_seq, last_seq)
            rows = [(topic_id, event_id.decode(errors="replace")) for topic_id, event_id in damaged]
        if len(rows) <= last_seq - first_seq:
            raise _gap(first_seq, last_seq)
        topic_ids, event_ids = zip(*rows, strict=True)
        return [self._topics.get(topic_id, "") for topic_id in topic_ids], event_ids

    def _rows(self, event_id: str, first_seq: int, last_seq: int) -> list[tuple[Any, ...]]:
        return self._connection.execute(
            f"SELECT topic_id, {event_id} FROM events WHERE seq BETWEEN ? AND ? ORDER BY seq", (first_seq, last_seq)
        ).fetchall()

    def processed_at_ns(self, seq: int) -> int:
        processed_at_ns = self._connection.execute("SELECT processed_at_ns FROM events WHERE seq = ?", (seq,)).get
        if processed_at_ns is None:
            raise _gap(seq, seq)
        return int(processed_at_ns)


def _gap(first_seq: int, last_seq: int) -> StoreBroken:
    return StoreBroken(
        f"the log has lost an event between seq {first_seq} and {last_seq}; run sekali verify, and restore a backup"
    )
