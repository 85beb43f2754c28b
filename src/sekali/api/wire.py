"""What readers are sent: events, topics and conflicts as JSON, and cursors that survive a restart."""

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from sekali.errors import InvalidQuery, PositionGone
from sekali.ports import Conflict, SourceInfo, StoredEvent, Summary, TopicInfo, Unreadable
from sekali.timestamps import format_timestamp, format_timestamps

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines


class EventOut(msgspec.Struct, omit_defaults=True, gc=False):
    """An event as readers get it. ``duplicates`` is there where it was sent again."""

    topic: str
    event_id: str
    timestamp: str
    source: str
    source_seq: int | None = None
    # From here on there must be defaults because the field before has one; no event has these values.
    payload: msgspec.Raw = msgspec.Raw(b"")
    processed_at: str = ""
    seq: int = 0
    duplicates: int = 0
    last_duplicate_at: str | None = None
    attempt: int = 0  # there where a subscription delivers it


class TopicOut(msgspec.Struct):
    """A line of ``/topics``."""

    topic: str
    stored: int
    duplicates: int
    conflicts: int
    first_seq: int
    last_seq: int
    last_event_time: str


class SourceOut(msgspec.Struct):
    """A line of ``/sources``. Ranges have a first and a last number."""

    topic: str
    source: str
    lowest: int
    highest: int
    received: int
    missing: int
    completeness: float
    missing_ranges: list[tuple[int, int]]
    missing_ranges_count: int
    repeated: int
    unnumbered: int


class ConflictOut(msgspec.Struct):
    """A line of ``/conflicts``: the variant that was refused, and ``seq`` of the event that stays."""

    topic: str
    event_id: str
    seq: int
    source: str
    payload: msgspec.Raw
    count: int
    first_at: str
    last_at: str


def events_json(events: Sequence[StoredEvent | Unreadable]) -> bytes:
    """Encode a page of events as an array."""
    return _encode(_events_out(events))


def pushed_json(event: StoredEvent) -> bytes:
    """Encode an event for a webhook: the same bytes at every attempt, so without how often it was sent again."""
    return _encode(_events_out([msgspec.structs.replace(event, duplicates=0, last_duplicate_at_ns=None)])[0])


def events_ndjson(events: Sequence[StoredEvent | Unreadable]) -> bytes:
    """Encode events one a line, each line ended."""
    return _encode_lines(_events_out(events))


def events_sse(log_id: str, events: Sequence[StoredEvent | Unreadable]) -> list[bytes]:
    """Encode events as Server-Sent Events, one for one; the id of each is its place in the log."""
    head = log_id.encode()
    lines = events_ndjson(events).split(b"\n")
    return [b"id: %b-%d\ndata: %b\n\n" % (head, event.seq, line) for event, line in zip(events, lines, strict=False)]


def position_id(log_id: str, seq: int) -> str:
    """Return the place of an event as ``id`` and ``Last-Event-ID`` have it."""
    return f"{log_id}-{seq}"


def open_position(text: str, parameter: str, summary: Summary) -> int:
    """Return the seq of a place that this log handed out.

    Raises:
        InvalidQuery: it is none.
        PositionGone: it is of another log, or above the head of this one.

    """
    log_id, dash, seq = text.rpartition("-")
    if not dash or not is_seq(seq):
        raise InvalidQuery(parameter, "not the id of an event of a stream: the log's id, a dash and the seq")
    _require_log(log_id, "position", summary)
    require_not_above_head(int(seq), summary)
    return int(seq)


def is_seq(text: str) -> bool:
    """Whether a text is a seq: digits, no more of them than a seq can have."""
    return text.isascii() and text.isdigit() and len(text) < len(str(2**63))


def delivered_json(
    lease: str | None, expires_at_ns: int, events: Sequence[tuple[StoredEvent | Unreadable, int]]
) -> bytes:
    """Encode events that a consumer gets, each with the number of its attempt, and the lease that holds them."""
    out = _events_out([event for event, _ in events])
    for one, (_, attempt) in zip(out, events, strict=True):
        if isinstance(one, EventOut):
            one.attempt = attempt
        else:
            one["attempt"] = attempt
    expires_at = None if lease is None else format_timestamp(expires_at_ns)
    return _encode({"lease": lease, "expires_at": expires_at, "events": out})


def _events_out(events: Sequence[StoredEvent | Unreadable]) -> list[Any]:
    """Put events in the form of the answer: column by column, in few calls."""
    good = [event for event in events if type(event) is StoredEvent]
    last_ns = [event.last_duplicate_at_ns for event in good]
    last = {ns: None if ns is None else format_timestamp(ns) for ns in set(last_ns)}
    out = map(
        EventOut,
        [event.topic for event in good],
        [event.event_id for event in good],
        format_timestamps([event.timestamp_ns for event in good]),
        [event.source for event in good],
        [event.source_seq for event in good],
        [msgspec.Raw(event.payload) for event in good],
        format_timestamps([event.processed_at_ns for event in good]),
        [event.seq for event in good],
        [event.duplicates for event in good],
        [last[ns] for ns in last_ns],
    )
    if len(good) == len(events):
        return list(out)
    return [{"seq": event.seq, "error": event.error} if type(event) is Unreadable else next(out) for event in events]


def topics_json(topics: Sequence[TopicInfo]) -> bytes:
    """Encode a page of topics as an array."""
    last_times = format_timestamps([topic.last_timestamp_ns for topic in topics])
    return _encode(
        [
            TopicOut(
                topic.topic,
                topic.stored,
                topic.duplicates,
                topic.conflicts,
                topic.first_seq,
                topic.last_seq,
                last_time,
            )
            for topic, last_time in zip(topics, last_times, strict=True)
        ]
    )


def sources_json(sources: Sequence[SourceInfo]) -> bytes:
    """Encode a page of sources as an array."""
    return _encode(
        [
            SourceOut(
                info.topic,
                info.source,
                info.lowest,
                info.highest,
                info.received,
                info.missing,
                _completeness(info),
                info.missing_ranges,
                info.missing_ranges_count,
                info.repeated,
                info.unnumbered,
            )
            for info in sources
        ]
    )


def _completeness(info: SourceInfo) -> float:
    """Return the share that came, cut to six digits, so that it is 1 only where nothing is missing."""
    asked = info.received + info.missing
    return (info.received * 1_000_000 // asked) / 1_000_000 if asked else 1.0


def conflicts_json(conflicts: Sequence[Conflict]) -> bytes:
    """Encode a page of conflicts as an array."""
    return _encode(
        [
            {"seq": conflict.seq, "error": "the content does not fit its hash: the row is damaged"}
            if conflict.damaged
            else ConflictOut(
                conflict.topic,
                conflict.event_id,
                conflict.seq,
                conflict.source,
                msgspec.Raw(conflict.payload),
                conflict.count,
                format_timestamp(conflict.first_at_ns),
                format_timestamp(conflict.last_at_ns),
            )
            for conflict in conflicts
        ]
    )


_Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]  # what a store can look for


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Where a page ended: in which log and how far that had come, in which listing and order, and behind what."""

    log_id: str
    head: _Integer
    listing: str
    position: list[_Integer | str]

    def token(self) -> str:
        """Return the cursor as the opaque text that clients hand back."""
        return base64.urlsafe_b64encode(_encode(self)).decode().rstrip("=")


_decode_cursor = msgspec.json.Decoder(Cursor).decode


def cursor(summary: Summary, listing: str, *position: int | str) -> Cursor:
    """Return the cursor of a page that ended here, in a log that is as the summary says."""
    return Cursor(summary.log_id, summary.head, listing, list(position))


def open_cursor(token: str, listing: str, position_types: tuple[type, ...], summary: Summary) -> Cursor:
    """Read a cursor that this log handed out for this listing.

    Raises:
        InvalidQuery: it is no cursor, or one of another listing or order.
        PositionGone: it is of another log, or above the head of this one.

    """
    try:
        cursor = _decode_cursor(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        raise InvalidQuery("cursor", "not a cursor of this server; take it from the Link header unchanged") from None
    if cursor.listing != listing or tuple(map(type, cursor.position)) != position_types:
        raise InvalidQuery("cursor", f"a cursor for {cursor.listing}, not for {listing}")
    _require_log(cursor.log_id, "cursor", summary)
    require_not_above_head(cursor.head, summary)
    return cursor


def _require_log(log_id: str, what: str, summary: Summary) -> None:
    if log_id != summary.log_id:
        raise PositionGone(
            f"the {what} is of log {log_id} and this is log {summary.log_id}: a backup was restored; start again"
        )


def require_not_above_head(seq: int, summary: Summary) -> None:
    """Refuse a position that this log has not reached.

    Raises:
        PositionGone: it is above the head.

    """
    if seq > summary.head:
        raise PositionGone(
            f"seq {seq} is above the newest event, {summary.head}, of log {summary.log_id}: the position is from "
            "another log, or from before this one was put back to an older state; start again"
        )
