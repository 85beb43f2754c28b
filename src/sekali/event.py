"""The words everything else speaks: an event, its identity, its verdict, and the one place that validates."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from sekali.jsonvalue import PayloadFault, clean_payload, clean_payloads
from sekali.timestamps import parse_timestamp, parse_timestamps
from sekali.topics import topic_fault

EVENT_ID_BYTES_MAX = 512
SOURCE_BYTES_MAX = 255
SOURCE_SEQ_MIN, SOURCE_SEQ_MAX = -(2**63), 2**63 - 1


class Outcome(StrEnum):
    """What became of one published event."""

    STORED = "stored"  # new, now durable
    DUPLICATE = "duplicate"  # same identity, same content
    CONFLICT = "conflict"  # same identity, other content; the first stays
    INVALID = "invalid"  # not an event


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What the publisher is told of one item, in the form of the answer.

    ``seq`` is the event's place in the log; for a duplicate or a conflict it is that of the first. ``error`` says what
    to change about an invalid item and starts with the field's name.
    """

    outcome: Outcome
    seq: int | None = None
    error: str | None = None


def count_outcomes(verdicts: Sequence[Verdict]) -> Counter[Outcome]:
    """Count verdicts by outcome."""
    outcomes = [verdict.outcome for verdict in verdicts]
    counts: Counter[Outcome] = Counter()
    for outcome in Outcome:  # most often all are stored, and one look tells
        if counts.total() == len(outcomes):
            break
        counts[outcome] = outcomes.count(outcome)
    return counts


class EventIn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An event as it comes over the wire.

    The last four fields are the server's. They are accepted and ignored, so that an export can be published again.
    """

    topic: str
    event_id: str
    timestamp: str
    payload: msgspec.Raw
    source: str | None = ""
    source_seq: int | None = None
    seq: msgspec.Raw = msgspec.Raw(b"")
    processed_at: msgspec.Raw = msgspec.Raw(b"")
    duplicates: msgspec.Raw = msgspec.Raw(b"")
    last_duplicate_at: msgspec.Raw = msgspec.Raw(b"")


class Batch(msgspec.Struct):
    """Valid events of one request in the order sent, as columns: what a store is given to commit.

    ``payloads`` are JSON values in UTF-8. With ``all_or_nothing`` a store that has to refuse one event (a topic beyond
    the maximum) stores none of them.
    """

    topics: list[str] = []
    event_ids: list[str] = []
    timestamps_ns: list[int] = []
    sources: list[str] = []
    source_seqs: list[int | None] = []
    payloads: list[bytes] = []
    all_or_nothing: bool = False

    def __len__(self) -> int:
        return len(self.topics)

    def chosen(self, rows: Sequence[int]) -> "Batch":
        """Return a batch of some of the events, in the order of their positions given."""
        return Batch(
            [self.topics[row] for row in rows],
            [self.event_ids[row] for row in rows],
            [self.timestamps_ns[row] for row in rows],
            [self.sources[row] for row in rows],
            [self.source_seqs[row] for row in rows],
            [self.payloads[row] for row in rows],
            self.all_or_nothing,
        )


def valid_columns(items: list[EventIn], body_bytes: int, event_bytes_max: int) -> Batch | None:
    """Check columns whole, in few calls and a bounded time: the batch of all items, or None where that leaves a doubt.

    None only means that ``validate`` has to look at each item, decoded anew: ``items`` is emptied on the way, so that
    its memory serves for what comes next. ``body_bytes`` is the length of what they came in, and no event is longer:
    JSON never takes less room than what it stands for.
    """
    try:
        timestamps_ns = parse_timestamps([item.timestamp for item in items])
    except ValueError:
        return None
    one: dict[str, str] = {}  # of equal texts one is enough
    keep = one.setdefault
    topics = [keep(topic, topic) for topic in [item.topic for item in items]]
    sources = [keep(source, source) for source in [item.source or "" for item in items]]
    event_ids = [item.event_id for item in items]
    source_seqs = [item.source_seq for item in items]
    payloads = [bytes(item.payload) for item in items]
    items.clear()
    if not (
        _are_plain(event_ids)
        and not any(map(topic_fault, set(topics)))
        and not any(map(_source_fault, set(sources)))
        and _are_in_range(source_seqs)
        and (
            body_bytes <= event_bytes_max
            or max(map(len, payloads), default=0) <= event_bytes_max - _OTHER_FIELDS_BYTES_MAX
        )
    ):
        return None
    clean = clean_payloads(payloads)
    if clean is None:
        return None
    return Batch(topics, event_ids, timestamps_ns, sources, source_seqs, clean)


def validate(items: Sequence[EventIn], event_bytes_max: int) -> tuple[Batch, dict[int, str]]:
    """Sort items into a batch of valid events and the faults of the others, by position.

    Each item is looked at: microseconds for a usual one, up to a second for a hostile one of 10 MiB.
    """
    batch, faults = Batch(), {}
    for position, item in enumerate(items):
        try:
            timestamp_ns, payload = _check(item, event_bytes_max)
        except ValueError as fault:
            faults[position] = str(fault)
            continue
        batch.topics.append(item.topic)
        batch.event_ids.append(item.event_id)
        batch.timestamps_ns.append(timestamp_ns)
        batch.sources.append(item.source or "")
        batch.source_seqs.append(item.source_seq)
        batch.payloads.append(payload)
    return batch, faults


# Topic, event_id and source at their longest, and a timestamp: an event whose payload leaves room for these fits.
_OTHER_FIELDS_BYTES_MAX = 1100
_PLAIN_CHARACTERS = bytes(range(ord("!"), ord("~") + 1))


def _are_plain(event_ids: list[str]) -> bool:
    """Whether all are short and of printable ASCII without blanks, which breaks no rule of ours."""
    joined = "".join(event_ids).encode()
    return (
        not joined.translate(None, _PLAIN_CHARACTERS)
        and all(event_ids)
        and (len(joined) <= EVENT_ID_BYTES_MAX or max(map(len, event_ids)) <= EVENT_ID_BYTES_MAX)
    )


def _are_in_range(source_seqs: list[int | None]) -> bool:
    return source_seqs.count(None) == len(source_seqs) or all(
        seq is None or SOURCE_SEQ_MIN <= seq <= SOURCE_SEQ_MAX for seq in source_seqs
    )


def _check(item: EventIn, event_bytes_max: int) -> tuple[int, bytes]:
    """Return an item's time and payload as they are stored.

    Raises:
        ValueError: the item is not an event; the message starts with the field.

    """
    payload = bytes(item.payload)
    size = len(payload) + sum(map(_utf8_length, (item.topic, item.event_id, item.timestamp, item.source or "")))
    if size > event_bytes_max:
        raise ValueError(
            f"event: its values take {size} bytes, at most {event_bytes_max} are allowed (EVENT_BYTES_MAX)"
        )
    for name, fault in (
        ("topic", topic_fault(item.topic)),
        ("event_id", event_id_fault(item.event_id)),
        ("source", _source_fault(item.source or "")),
    ):
        if fault is not None:
            raise ValueError(f"{name}: {fault}")
    try:
        timestamp_ns = parse_timestamp(item.timestamp)
    except ValueError as error:
        raise ValueError(f"timestamp: {error}") from None
    if item.source_seq is not None and not SOURCE_SEQ_MIN <= item.source_seq <= SOURCE_SEQ_MAX:
        raise ValueError("source_seq: outside the range of a signed 64-bit integer")
    try:
        return timestamp_ns, clean_payload(payload)
    except PayloadFault as error:
        raise ValueError(f"payload: {error}") from None


def event_id_fault(event_id: str) -> str | None:
    """Say what is wrong with an event id, or None for a good one."""
    if not event_id or event_id.isspace():
        return "blank"
    return _text_fault(event_id, EVENT_ID_BYTES_MAX) or (
        None if unicodedata.is_normalized("NFC", event_id) else "not in Unicode normalization form C (NFC)"
    )


def _source_fault(source: str) -> str | None:
    return _text_fault(source, SOURCE_BYTES_MAX)


def _text_fault(text: str, bytes_max: int) -> str | None:
    if (length := _utf8_length(text)) > bytes_max:
        return f"{length} bytes long, at most {bytes_max} are allowed"
    if not text.isprintable() and any(unicodedata.category(character) == "Cc" for character in text):
        return "control characters are not allowed"
    return None


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
