"""Rows of events by seq, for the judge: what holds an identity, and is its content the same?"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import apsw
import numpy as np

from sekali.stores.index_table import Seqs
from sekali.stores.sqlite_file import close_quietly

# How much of what was stored last stays in memory.
RECENT_EVENTS_MAX = 16_384
RECENT_GROUPS_MAX = 1024
RECENT_BYTES_MAX = 16 * 1024 * 1024

# Rows are fetched packed, in one step: each step of a statement gives the interpreter lock away and asks for it again.
# Neither the separator can be in a valid field, nor the line break between rows.
_SEPARATOR = b"\x1f"
_PACKED = (
    "SELECT CAST(group_concat(e.seq || char(31) || e.topic_id || char(31) || e.event_id || char(31) || "
    "e.source || char(31) || {payload}, char(10)) AS BLOB) "
    "FROM carray(?) wanted CROSS JOIN events e ON e.seq = wanted.value"
)
PACKED_PAYLOAD_BYTES_MAX = 64 * 1024  # larger ones come one by one, so that the packed text stays small
_FETCH_MANY = _PACKED.format(
    payload=f"CASE WHEN length(e.payload) <= {PACKED_PAYLOAD_BYTES_MAX} THEN CAST(e.payload AS TEXT) END"
)
_FETCH_ONE = _PACKED.format(payload="CAST(e.payload AS TEXT)")


class Columns(NamedTuple):
    """Rows of events that a commit stores, as columns."""

    topic_ids: Sequence[int]
    event_ids: Sequence[str]
    timestamps_ns: Sequence[int]
    sources: Sequence[str]
    source_seqs: Sequence[int | None]
    payloads: Sequence[bytes]


Identity = tuple[int, str]  # topic_id and event_id
# What holds an identity: the seq of a stored event, or None and the position of a new one in its commit; then its
# source and payload.
First = tuple[int | None, int, str, bytes]


class Recent:
    """The events that were stored last, in memory: a retry follows soon, and need not be looked up in the file."""

    def __init__(self) -> None:
        self._first_seqs: list[int] = []  # of each group, to search in
        self._groups: list[tuple[Columns, int]] = []  # with the bytes of their payloads
        self._events = 0
        self._bytes = 0

    def add(self, first_seq: int, columns: Columns, committed_seq: int) -> None:
        """Remember new events. Those above ``committed_seq`` stay, because no file holds them yet."""
        size = sum(map(len, columns.payloads))
        self._first_seqs.append(first_seq)
        self._groups.append((columns, size))
        self._events += len(columns.payloads)
        self._bytes += size
        surplus = 0
        while self._is_over_limit(surplus) and self._first_seqs[surplus + 1] <= committed_seq + 1:
            oldest, size = self._groups[surplus]
            self._events -= len(oldest.payloads)
            self._bytes -= size
            surplus += 1
        del self._first_seqs[:surplus], self._groups[:surplus]

    def _is_over_limit(self, surplus: int) -> bool:
        count = len(self._groups) - surplus
        return count > 1 and (
            self._events > RECENT_EVENTS_MAX or self._bytes > RECENT_BYTES_MAX or count > RECENT_GROUPS_MAX
        )

    def take(self, seqs: Sequence[int], firsts: dict[Identity, First]) -> list[int]:
        """Put those events of ``seqs`` that are remembered into ``firsts``, and return the others."""
        others: list[int] = []
        first_seqs, groups = self._first_seqs, self._groups
        for seq in seqs:
            place = bisect_right(first_seqs, seq) - 1
            if place < 0:
                others.append(seq)
                continue
            columns = groups[place][0]
            row = seq - first_seqs[place]
            identity = (columns.topic_ids[row], columns.event_ids[row])
            firsts[identity] = (seq, 0, columns.sources[row], columns.payloads[row])
        return others


class Rows:
    """Finds events by seq for the judge: the newest in memory, committed or not, the others in the file.

    ``connection`` is its own, and is closed with it.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._recent = Recent()
        self.committed_seq = 0  # up to here the file has them; set by whoever commits

    def remember(self, first_seq: int, columns: Columns) -> None:
        """Keep what is about to be stored in memory."""
        self._recent.add(first_seq, columns, self.committed_seq)

    def fetch(self, seqs: Seqs) -> dict[Identity, First]:
        """Return identity and content of the events with these seqs, as far as there are such.

        Raises:
            apsw.Error: the file cannot be read.

        """
        firsts: dict[Identity, First] = {}
        others = self._recent.take(seqs.tolist(), firsts)
        if others:
            assert max(others) <= self.committed_seq, "an event that is not committed was forgotten"
            wanted = np.unique(others)
            found = _unpack(self._connection.execute(_FETCH_MANY, (apsw.carray(wanted),)).get, firsts)
            for seq in set(wanted.tolist()) - found:
                _unpack(self._connection.execute(_FETCH_ONE, (apsw.carray(np.array([seq])),)).get, firsts)
        return firsts

    def close(self) -> None:
        """Release the connection. May be called twice."""
        close_quietly(self._connection)


def _unpack(packed: bytes | None, firsts: dict[Identity, First]) -> set[int]:
    found: set[int] = set()
    for row in packed.split(b"\n") if packed else ():
        fields = row.split(_SEPARATOR, 4)
        if len(fields) == 5:  # fewer: a damaged row, which equals nothing
            seq, topic_id, event_id, source, payload = fields
            found.add(int(seq))
            firsts[int(topic_id), event_id.decode(errors="replace")] = (
                int(seq),
                0,
                source.decode(errors="replace"),
                payload,
            )
    return found
