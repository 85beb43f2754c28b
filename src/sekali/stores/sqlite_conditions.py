"""Conditions of readers' queries, each a text of SQL with the value or values of its marks. No text is a reader's."""

from collections.abc import Iterator, Sequence
from typing import Any

import apsw
import msgspec

from sekali.ports import Readable
from sekali.topics import is_pattern, matches


def where_all(conditions: list[tuple[str, Any]]) -> tuple[str, tuple[Any, ...]]:
    """Return the WHERE of all conditions together, with the values of all marks."""
    if not conditions:
        return "", ()
    bindings: list[Any] = []
    for _, value in conditions:
        bindings.extend(value if isinstance(value, tuple) else (value,))
    return "WHERE " + " AND ".join(text for text, _ in conditions), tuple(bindings)


def one_of(column: str, values: Sequence[int]) -> tuple[str, str]:
    """Return the condition that a column is one of any number of values."""
    return f"{column} IN (SELECT value FROM json_each(?))", msgspec.json.encode(values).decode()


def of_topics(connection: apsw.Connection, column: str, readable: Readable) -> list[tuple[str, Any]]:
    """Return the condition that keeps a reader to what it may read; none where it may read everything."""
    return [] if readable is None else [one_of(column, find_topic_ids(connection, None, readable))]


def find_topic_ids(connection: apsw.Connection, topic: str | None, readable: Readable) -> list[int]:
    """Find the topics that a reader asks for, a topic or a pattern, and may read; None stands for any."""
    asked = readable or () if topic is None else (topic,)
    names = {name: topic_id for pattern in asked for topic_id, name in topics_like(connection, pattern)}
    return [
        topic_id
        for name, topic_id in names.items()
        if readable is None or topic is None or any(matches(pattern, name) for pattern in readable)
    ]


def topics_like(connection: apsw.Connection, pattern: str) -> Iterator[tuple[int, str]]:
    """Find topics by a pattern, among those alone that begin as it does."""
    if not is_pattern(pattern):
        yield from connection.execute("SELECT topic_id, topic FROM topics WHERE topic = ?", (pattern,))
        return
    start = pattern.partition("*")[0].rstrip("/")
    end = start + chr(ord("/") + 1) if start else "\x7f"  # topics are ASCII
    for topic_id, name in connection.execute(
        "SELECT topic_id, topic FROM topics WHERE topic >= ? AND topic < ?", (start, end)
    ):
        if matches(pattern, name):
            yield topic_id, name
