"""What a request body is worth, decided anew from the rules of docs/reference/http.md: slowly, and with other tools.

Nothing here comes from the program under test. JSON is read by the standard library, numbers are kept as text, time is
checked by ``datetime``.
"""

import json
import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

REQUIRED = {"topic", "event_id", "timestamp", "payload"}
FIELDS = REQUIRED | {"source", "source_seq", "seq", "processed_at", "duplicates", "last_duplicate_at"}
_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~:@=-]+"
_TOPIC = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*", re.ASCII)
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:)(\d\d)(\.\d{1,9})?(?:[Zz]|([+-])([01]\d|2[0-3]):([0-5]\d))?", re.ASCII
)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_EVENT_DEPTH_MAX = 65
_DEPTH_READ_MAX = 200  # more than an event may have, and less than what takes too much stack here


class Number(str):
    """A number as it is written."""

    __slots__ = ()


class Members(dict[str, Any]):
    """An object; of members with the same key the last one counts. ``dropped`` are the values of the others."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        last = {name: place for place, (name, _) in enumerate(pairs)}
        self.dropped = [value for place, (name, value) in enumerate(pairs) if last[name] != place]


class NotAnEvent(Exception):
    """The item is not an event."""


class NotJson(Exception):
    """The text is not JSON in UTF-8."""


class CannotTell(Exception):
    """The text is too deep for this judge."""


@dataclass(frozen=True)
class Event:
    """A valid event, in a form that is equal for two of the same content."""

    topic: str
    event_id: str
    source: str
    source_seq: int | None
    payload: Any  # see _value

    @property
    def identity(self) -> tuple[str, str]:
        return self.topic, self.event_id

    @property
    def content(self) -> tuple[str, Any]:
        return self.source, self.payload


@dataclass(frozen=True)
class Judgement:
    """What a body holds: an event or None for each item, in the order sent."""

    items: list[Event | None]
    single: bool


def judge_json(body: bytes) -> Judgement:
    """Judge a JSON document.

    Raises:
        NotJson: it is none.
        CannotTell: it is too deep, or its fault may lie behind an item that is.

    """
    try:
        document = _read(body)
    except NotJson:
        if _depth(body.decode(errors="replace")) > _EVENT_DEPTH_MAX:  # that of an item may be told before its fault
            raise CannotTell from None
        raise
    if not isinstance(document, list):
        return Judgement([_event_or_none(document)], single=True)
    return Judgement([_event_or_none(item) for item in document], single=False)


def judge_lines(body: bytes) -> Judgement:
    """Judge NDJSON, where every line stands for itself.

    Raises:
        CannotTell: it is too deep.

    """
    items: list[Event | None] = []
    for line in body.split(b"\n"):
        if line.strip(b" \t\r\x0b\x0c"):
            try:
                items.append(_event_or_none(_read(line)))
            except NotJson:
                items.append(None)
    return Judgement(items, single=False)


def same_value(payload: Any) -> Any:
    """Bring a payload as it is read back, by ``read_back``, into the form in which it is compared."""
    return _value(payload, 0)


def read_back(text: bytes) -> Any:
    """Read an answer of the server, which has to be strict."""
    return json.loads(text, parse_int=Number, parse_float=Number, parse_constant=_refuse, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "a key is there twice"
    return dict(pairs)


def _read(text: bytes) -> Any:
    try:
        decoded = text.decode("utf-8", "strict")
    except UnicodeDecodeError:
        raise NotJson from None
    if _depth(decoded) > _DEPTH_READ_MAX:
        raise CannotTell
    try:
        return json.loads(
            decoded, parse_int=Number, parse_float=Number, parse_constant=_refuse, object_pairs_hook=Members
        )
    except ValueError:
        raise NotJson from None


def _depth(text: str) -> int:
    if text.count("[") + text.count("{") <= _EVENT_DEPTH_MAX:
        return 0
    depth = deepest = 0
    for character in _STRING.sub("", text):
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    return deepest


def _refuse(name: str) -> Any:
    raise ValueError(name)


def _event_or_none(item: Any) -> Event | None:
    try:
        return _event(item)
    except NotAnEvent:
        return None


def _event(item: Any) -> Event:
    _require(isinstance(item, dict) and item.keys() >= REQUIRED and item.keys() <= FIELDS)
    _require(not _has_surrogate(item))
    topic, event_id = item["topic"], item["event_id"]
    source = "" if item.get("source") is None else item["source"]
    _require(all(_is_text(text) for text in (topic, event_id, source, item["timestamp"])))
    _require(len(topic) <= 255 and _TOPIC.fullmatch(topic) is not None)
    _require(1 <= len(event_id.encode()) <= 512 and not event_id.isspace() and not _has_control(event_id))
    _require(unicodedata.normalize("NFC", event_id) == event_id)
    _require(len(source.encode()) <= 255 and not _has_control(source))
    _require(_is_time(item["timestamp"]))
    source_seq = item.get("source_seq")
    if source_seq is not None:
        _require(isinstance(source_seq, Number) and re.fullmatch(r"-?\d+", source_seq) is not None)
        _require(len(source_seq) < 30 and -(2**63) <= int(source_seq) < 2**63)
    return Event(topic, event_id, source, None if source_seq is None else int(source_seq), _value(item["payload"], 0))


def _require(holds: bool) -> None:
    if not holds:
        raise NotAnEvent


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Number)


def _has_control(text: str) -> bool:
    return any(ord(character) < 0x20 or 0x7F <= ord(character) <= 0x9F for character in text)


def _has_surrogate(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_surrogate, [*value, *value.values(), *getattr(value, "dropped", ())]))
    if isinstance(value, list):
        return any(map(_has_surrogate, value))
    return isinstance(value, str) and any(0xD800 <= ord(character) <= 0xDFFF for character in value)


def _is_time(text: str) -> bool:
    match = _TIME.fullmatch(text)
    if match is None:
        return False
    day, minute, second, _, sign, hours, minutes = match.groups()
    leap = second == "60" and minute.endswith("59:")
    try:
        moment = datetime.fromisoformat(f"{day}T{minute}{'59' if leap else second}+00:00")
        if sign is not None:
            offset = timedelta(hours=int(hours), minutes=int(minutes))
            moment += -offset if sign == "+" else offset
        moment += timedelta(seconds=int(leap))
    except (ValueError, OverflowError):
        return False
    return datetime(1678, 1, 1, tzinfo=UTC) <= moment < datetime(2262, 1, 1, tzinfo=UTC)


def _value(value: Any, depth: int) -> Any:
    """Return a payload in a form in which two are equal exactly when they are the same JSON value."""
    if isinstance(value, dict):
        _require(depth < 64)
        for dropped in getattr(value, "dropped", ()):  # it is not kept, and has to keep to the rules all the same
            _value(dropped, depth + 1)
        return "object", frozenset((name, _value(member, depth + 1)) for name, member in value.items())
    if isinstance(value, list):
        _require(depth < 64)
        return "array", tuple(_value(element, depth + 1) for element in value)
    if isinstance(value, Number):
        _require(len(value) <= 100)
        return "number", _exact(value)
    return type(value).__name__, value


def _exact(number: str) -> Any:
    mantissa, _, exponent = number.lower().partition("e")
    digits = Decimal(mantissa)
    if not digits:
        return 0
    power = int(exponent or "0")
    _require(power < 1000 and abs(float(f"{mantissa}e{max(power, -1000)}")) != float("inf"))
    sign, figures, scale = digits.as_tuple()
    assert isinstance(scale, int)
    text = "".join(map(str, figures)).lstrip("0")
    bare = text.rstrip("0")
    return sign, bare, scale + power + len(text) - len(bare)
