"""What becomes of the events of one commit: new, sent before, in conflict with what is stored, or refused."""

from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from sekali import jsonvalue
from sekali.event import Batch, Outcome, Verdict
from sekali.stores.identity import Hashes
from sekali.stores.index_table import Positions, Seqs
from sekali.stores.sqlite_lookup import Columns, First, Identity, Rows


class Variant(NamedTuple):
    """Content that was refused, because ``seq`` has its identity."""

    seq: int
    topic_id: int
    source: str
    payload: bytes


class Judge:
    """Judges the batches of one commit, ``events`` together. ``hashes`` are of their identities, in order.

    First ``assign_topics``, then ``decide``; then the results are there.
    """

    def __init__(self, batches: Sequence[Batch], events: Batch, hashes: Hashes) -> None:
        self._batches = batches
        self.hashes = hashes
        self._events = events
        self._topic_ids: list[int] = []
        self.new_topics: dict[str, int] = {}
        self.is_new: npt.NDArray[np.bool_] = np.ones(len(hashes), np.bool_)
        self.first_seq = 0  # of what is new
        self.new_count = 0
        self.outcomes = [Outcome.STORED] * len(hashes)
        self.seqs: list[int] = []
        self.duplicate_seqs: list[int] = []
        self.duplicate_topic_ids: list[int] = []
        self.variants: list[Variant] = []
        self._errors: dict[int, str] = {}

    def assign_topics(self, known: dict[str, int], topics_max: int) -> None:
        """Give ids to topics that are new, as far as there is room, and refuse the events of the others."""
        found = list(map(known.get, self._events.topics))
        if None in found:
            start = 0
            for batch in self._batches:
                self._assign_new(batch, start, known, topics_max)
                start += len(batch)
            known = known | self.new_topics
            found = [known.get(topic, 0) for topic in self._events.topics]
        self._topic_ids = cast("list[int]", found)

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

    def decide(self, positions: Positions, candidates: Seqs, rows: Rows, head: int) -> None:
        """Judge every event. ``candidates`` are seqs that may have the identity of the events at ``positions``.

        What has no candidate and no equal hash beside it in this commit is new; the rows decide about the others.
        """
        order = np.argsort(self.hashes)
        ordered = self.hashes[order]
        again = np.flatnonzero(ordered[1:] == ordered[:-1])
        self.is_new[positions] = self.is_new[order[again]] = self.is_new[order[again + 1]] = False
        self.is_new[list(self._errors)] = False
        repeats = self._judge(np.flatnonzero(~self.is_new).tolist(), rows.fetch(candidates))
        self.first_seq = head + 1
        self.new_count = int(np.count_nonzero(self.is_new))
        self.seqs = (np.cumsum(self.is_new) + head).tolist()
        for position, (stored_seq, first_position, _, _) in repeats:
            self.seqs[position] = seq = self.seqs[first_position] if stored_seq is None else stored_seq
            topic_id = self._topic_ids[position]
            if self.outcomes[position] is Outcome.DUPLICATE:
                self.duplicate_seqs.append(seq)
                self.duplicate_topic_ids.append(topic_id)
            else:
                events = self._events
                self.variants.append(Variant(seq, topic_id, events.sources[position], events.payloads[position]))

    def _judge(self, doubtful: Sequence[int], firsts: dict[Identity, First]) -> list[tuple[int, First]]:
        """Judge the events at these positions, and return those that are not new with what holds their identity."""
        events, topic_ids, errors = self._events, self._topic_ids, self._errors
        repeats: list[tuple[int, First]] = []
        for position in doubtful:
            if position in errors:
                self.outcomes[position] = Outcome.INVALID
                continue
            identity = (topic_ids[position], events.event_ids[position])
            source, payload = events.sources[position], events.payloads[position]
            first = firsts.get(identity)
            if first is None:
                self.is_new[position] = True
                firsts[identity] = (None, position, source, payload)
                continue
            same = first[2] == source and (first[3] == payload or jsonvalue.equal(first[3], payload))
            self.outcomes[position] = Outcome.DUPLICATE if same else Outcome.CONFLICT
            repeats.append((position, first))
        return repeats

    def new_rows(self) -> Columns:
        """Return what is new, as rows to be stored."""
        events = self._events
        columns = Columns(
            self._topic_ids,
            events.event_ids,
            events.timestamps_ns,
            events.sources,
            events.source_seqs,
            events.payloads,
        )
        if self.new_count == len(self.is_new):
            return columns
        chosen = self.is_new.tolist()
        return Columns._make(list(compress(column, chosen)) for column in columns)

    def new_topic_names(self) -> Sequence[str]:
        """Return the topics of what is new."""
        topics = self._events.topics
        return topics if self.new_count == len(self.is_new) else list(compress(topics, self.is_new.tolist()))

    def verdicts(self) -> list[Verdict]:
        """Return a verdict for each event, in order."""
        verdicts = list(map(Verdict, self.outcomes, self.seqs))
        for position, error in self._errors.items():
            verdicts[position] = Verdict(Outcome.INVALID, error=error)
        return verdicts


def together(batches: Sequence[Batch]) -> Batch:
    """Put the events of several batches into one."""
    if len(batches) == 1:
        return batches[0]
    joined = Batch()
    for batch in batches:
        joined.topics += batch.topics
        joined.event_ids += batch.event_ids
        joined.timestamps_ns += batch.timestamps_ns
        joined.sources += batch.sources
        joined.source_seqs += batch.source_seqs
        joined.payloads += batch.payloads
    return joined
