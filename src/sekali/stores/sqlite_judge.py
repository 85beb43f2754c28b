"""What becomes of the events of one commit: new, sent before, in conflict with what is stored, or refused."""

from collections.abc import Sequence
from typing import NamedTuple

import apsw
import numpy as np
import numpy.typing as npt

from sekali import jsonvalue
from sekali.event import Batch, Outcome, Verdict
from sekali.stores.identity import Hashes
from sekali.stores.index_table import Positions, Seqs

# Rows are fetched packed, in one step: each step of a statement gives the interpreter lock away and asks for it again.
# Neither separator can be in a valid field, nor can the line break between rows.
_FIELD, _UNIT = b"\x1e", b"\x1f"
_PACKED = (
    "SELECT CAST(group_concat(e.seq || char(30) || e.topic_id || char(31) || e.event_id || char(30) || "
    "e.source || char(31) || {payload}, char(10)) AS BLOB) "
    "FROM carray(?) wanted CROSS JOIN events e ON e.seq = wanted.value"
)
PACKED_PAYLOAD_BYTES_MAX = 64 * 1024  # larger ones come one by one, so that the packed text stays small
_FETCH_MANY = _PACKED.format(
    payload=f"CASE WHEN length(e.payload) <= {PACKED_PAYLOAD_BYTES_MAX} THEN CAST(e.payload AS TEXT) END"
)
_FETCH_ONE = _PACKED.format(payload="CAST(e.payload AS TEXT)")


class Variant(NamedTuple):
    """Content that was refused, because ``seq`` has its identity."""

    seq: int
    topic_id: int
    source: str
    payload: bytes


class _First(NamedTuple):
    """What holds an identity: a stored event, or a new one at a position of this commit."""

    seq: int | None
    position: int
    content: bytes


class Judge:
    """Judges the batches of one commit together. ``hashes`` are of their identities, in order.

    First ``assign_topics``, then ``decide``; then the results are there: ``is_new`` and ``new_count``, ``outcomes``,
    ``seqs``, ``duplicate_seqs`` with ``duplicate_topic_ids``, and ``variants``.
    """

    def __init__(self, batches: Sequence[Batch], hashes: Hashes) -> None:
        self._batches = batches
        self.hashes = hashes
        self.events = batches[0] if len(batches) == 1 else _together(batches)
        self.topic_ids: list[int] = []
        self.new_topics: dict[str, int] = {}
        self.is_new: npt.NDArray[np.bool_] = np.ones(len(hashes), np.bool_)
        self.new_count = 0
        self.outcomes = [Outcome.STORED] * len(hashes)
        self.seqs: list[int] = []
        self.duplicate_seqs: list[int] = []
        self.duplicate_topic_ids: list[int] = []
        self.variants: list[Variant] = []
        self._errors: dict[int, str] = {}

    def assign_topics(self, known: dict[str, int], topics_max: int) -> None:
        """Give ids to topics that are new, as far as there is room, and refuse the events of the others."""
        ids = [known.get(topic, 0) for topic in self.events.topics]
        if 0 in ids:
            start = 0
            for batch in self._batches:
                self._assign_new(batch, start, known, topics_max)
                start += len(batch)
            ids = [known.get(topic) or self.new_topics.get(topic, 0) for topic in self.events.topics]
        self.topic_ids = ids

    def _assign_new(self, batch: Batch, start: int, known: dict[str, int], topics_max: int) -> None:
        new = [topic for topic in dict.fromkeys(batch.topics) if topic not in known and topic not in self.new_topics]
        count = len(known) + len(self.new_topics)
        room = max(topics_max - count, 0)
        refused = set(new[room:])
        if refused:
            self._refuse(batch, start, refused, topics_max)
        if not (refused and batch.all_or_nothing):
            self.new_topics.update({topic: count + 1 + place for place, topic in enumerate(new[:room])})

    def _refuse(self, batch: Batch, start: int, refused: set[str], topics_max: int) -> None:
        error = f"topic: the store already holds {topics_max} topics (TOPICS_MAX)"
        for position, topic in enumerate(batch.topics, start):
            if topic in refused:
                self._errors[position] = error
            elif batch.all_or_nothing:
                self._errors[position] = "event: not stored, because another item of the request is invalid"

    def decide(self, positions: Positions, candidates: Seqs, connection: apsw.Connection, head: int) -> None:
        """Judge every event. ``candidates`` are seqs that may have the identity of the events at ``positions``.

        What has no candidate and no equal hash beside it in this commit is new; the rows decide about the others.
        """
        order = np.argsort(self.hashes)
        ordered = self.hashes[order]
        again = np.flatnonzero(ordered[1:] == ordered[:-1])
        refused = np.fromiter(self._errors, np.intp, len(self._errors))
        doubtful = np.unique(np.concatenate([positions, order[again], order[again + 1], refused]))
        firsts = _fetch(connection, np.unique(candidates)) if len(candidates) else {}
        self.is_new[doubtful] = False
        repeats = [
            (position, first) for position in doubtful.tolist() if (first := self._judge(position, firsts)) is not None
        ]
        self.new_count = int(np.count_nonzero(self.is_new))
        self.seqs = (np.cumsum(self.is_new) + head).tolist()
        for position, first in repeats:
            seq = self.seqs[first.position] if first.seq is None else first.seq
            self.seqs[position] = seq
            topic_id = self.topic_ids[position]
            if self.outcomes[position] is Outcome.DUPLICATE:
                self.duplicate_seqs.append(seq)
                self.duplicate_topic_ids.append(topic_id)
            else:
                events = self.events
                self.variants.append(Variant(seq, topic_id, events.sources[position], events.payloads[position]))

    def _judge(self, position: int, firsts: dict[bytes, _First]) -> _First | None:
        """Judge one event, and return what holds its identity unless it is new or refused."""
        if position in self._errors:
            self.outcomes[position] = Outcome.INVALID
            return None
        events = self.events
        identity = b"%d\x1f%b" % (self.topic_ids[position], events.event_ids[position].encode())
        content = b"%b\x1f%b" % (events.sources[position].encode(), events.payloads[position])
        first = firsts.get(identity)
        if first is None:
            self.is_new[position] = True
            firsts[identity] = _First(None, position, content)
            return None
        same = first.content == content or _same_content(first.content, content)
        self.outcomes[position] = Outcome.DUPLICATE if same else Outcome.CONFLICT
        return first

    def verdicts(self) -> list[Verdict]:
        """Return a verdict for each event, in order."""
        verdicts = list(map(Verdict, self.outcomes, self.seqs))
        for position, error in self._errors.items():
            verdicts[position] = Verdict(Outcome.INVALID, error=error)
        return verdicts


def _together(batches: Sequence[Batch]) -> Batch:
    joined = Batch()
    for batch in batches:
        joined.topics += batch.topics
        joined.event_ids += batch.event_ids
        joined.timestamps_ns += batch.timestamps_ns
        joined.sources += batch.sources
        joined.source_seqs += batch.source_seqs
        joined.payloads += batch.payloads
    return joined


def _fetch(connection: apsw.Connection, seqs: Seqs) -> dict[bytes, _First]:
    """Return identity and content of the events with these seqs, as far as there are such."""
    firsts: dict[bytes, _First] = {}
    found = _unpack(connection.execute(_FETCH_MANY, (apsw.carray(seqs),)).get, firsts)
    for seq in set(seqs.tolist()) - found:
        _unpack(connection.execute(_FETCH_ONE, (apsw.carray(np.array([seq])),)).get, firsts)
    return firsts


def _unpack(packed: bytes | None, firsts: dict[bytes, _First]) -> set[int]:
    found: set[int] = set()
    for row in packed.split(b"\n") if packed else ():
        parts = row.split(_FIELD, 2)
        if len(parts) == 3:  # fewer: a damaged row, which equals nothing
            seq = int(parts[0])
            found.add(seq)
            firsts[parts[1]] = _First(seq, 0, parts[2])
    return found


def _same_content(one: bytes, other: bytes) -> bool:
    one_source, _, one_payload = one.partition(_UNIT)
    other_source, _, other_payload = other.partition(_UNIT)
    return one_source == other_source and jsonvalue.equal(one_payload, other_payload)
