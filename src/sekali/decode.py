"""Request bodies to events: bytes in, a batch and the faults of what did not fit into it out. No I/O, no clock.

Well-formed requests take the short way: one call decodes the whole document. Whatever that call refuses goes through
``_split``, which finds the items of an array without trusting what is in them, so that one bad item costs nothing to
its neighbours.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from sekali.errors import NotJson, TooManyItems
from sekali.event import Batch, EventIn, valid_columns, validate
from sekali.jsonvalue import DEPTH_MAX, nesting_depth


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request. ``items_max`` is a request's number of events, ``event_bytes_max`` bounds one event."""

    items_max: int
    event_bytes_max: int


class Decoded(msgspec.Struct, frozen=True):
    """What a request body held.

    ``faults`` are by position among all items sent; the batch holds the others in order. ``single`` tells a bare
    object from an array with one element. ``forbidden`` are topics that the publisher may not publish to; what it sent
    to them is among the faults.
    """

    batch: Batch
    faults: dict[int, str]
    single: bool
    forbidden: frozenset[str] = frozenset()

    @property
    def item_count(self) -> int:
        return len(self.batch) + len(self.faults)


_one = msgspec.json.Decoder(EventIn).decode
_many = msgspec.json.Decoder(list[EventIn]).decode
_WHITE_SPACE = b" \t\n\r"
_NAME_SHOWN_MAX = 100  # an answer should not be as long as what it refuses
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# A string, a comma, or a run of brackets; a quote alone opens a string that never ends.
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|,|[\[{]+|[\]}]+|"', re.DOTALL)
_MSGSPEC_MESSAGE = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<field>[^`]*)`)?", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(.*)`", re.DOTALL)


class NeedsCare(Exception):
    """The document did not pass in one call; ``decode_json`` with ``careful`` looks at each item."""


def decode_json(body: bytes, limits: Limits, *, careful: bool) -> Decoded:
    """Decode one event (an object) or a batch (an array).

    Without ``careful`` this takes the short way only, which is bounded in time; the careful way can take a second for
    a hostile body of 10 MiB and belongs on a thread that may wait.

    Raises:
        NeedsCare: only ``careful`` can tell.
        NotJson: the document is not JSON, or not UTF-8.
        TooManyItems: more than ``limits.items_max`` items.

    """
    single = body.lstrip(_WHITE_SPACE)[:1] != b"["
    if careful:
        return _decode_carefully(body, limits, single=single)
    try:
        _require_utf8(body)
        items = [_one(body)] if single else _many(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise NeedsCare from None
    if len(items) > limits.items_max:
        raise _too_many(limits)
    return _decoded_at_once(items, len(body), limits, single=single)


def decode_ndjson(body: bytes, limits: Limits, *, careful: bool) -> Decoded:
    """Decode one event a line; blank lines do not count. A line that is not JSON is that line's fault alone.

    Raises:
        NeedsCare: only ``careful`` can tell.
        TooManyItems: more than ``limits.items_max`` lines, or more than that many blank ones beside them.

    """
    if body.count(b"\n") > 2 * limits.items_max:
        raise _too_many(limits)
    lines = [line for line in body.split(b"\n") if line and not line.isspace()]
    if len(lines) > limits.items_max:
        raise _too_many(limits)
    if careful:
        return _decode_lines_carefully(lines, limits)
    try:
        _require_utf8(body)
        items = list(map(_one, lines))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise NeedsCare from None
    return _decoded_at_once(items, len(body), limits, single=False)


def _decode_lines_carefully(lines: list[bytes], limits: Limits) -> Decoded:
    items: list[EventIn] = []
    faults: dict[int, str] = {}
    for position, line in enumerate(lines):
        try:
            _require_utf8(line)
            items.append(_one(line))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            try:
                faults[position] = _fault(line, nesting_depth(line))
            except NotJson as error:
                faults[position] = f"line: {error}"
    return _decoded(items, faults, limits, single=False)


def _require_utf8(text: bytes) -> None:
    """See to what msgspec.Raw keeps, or lets pass, without looking."""
    if not text.isascii():
        text.decode()


def _decode_carefully(body: bytes, limits: Limits, *, single: bool) -> Decoded:
    if body.startswith(_BYTE_ORDER_MARK):
        raise NotJson("the document starts with a byte-order mark; send UTF-8 without one")
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise NotJson(f"the document is not UTF-8 (byte {error.start})") from None
    items: list[EventIn] = []
    faults: dict[int, str] = {}
    texts = [(body, nesting_depth(body))] if single else _split(body)
    for position, (text, depth) in enumerate(texts):
        if position >= limits.items_max:
            raise _too_many(limits)
        try:
            items.append(_one(text))
        except (msgspec.MsgspecError, RecursionError):
            faults[position] = _fault(text, depth)
    return _decoded(items, faults, limits, single=single)


def _decoded_at_once(items: list[EventIn], body_bytes: int, limits: Limits, *, single: bool) -> Decoded:
    batch = valid_columns(items, body_bytes, limits.event_bytes_max)
    if batch is None:
        raise NeedsCare
    return Decoded(batch, {}, single)


def _decoded(items: list[EventIn], faults: dict[int, str], limits: Limits, *, single: bool) -> Decoded:
    batch, rule_faults = validate(items, limits.event_bytes_max)
    if rule_faults and faults:  # from positions among the items to positions among all that was sent
        positions = [position for position in range(len(items) + len(faults)) if position not in faults]
        rule_faults = {positions[item]: fault for item, fault in rule_faults.items()}
    return Decoded(batch, faults | rule_faults, single)


def _split(body: bytes) -> Iterator[tuple[bytes, int]]:
    """Find the elements of an array: each one's text, not otherwise looked at, and how deeply it is nested."""
    start = element_start = body.index(b"[") + 1
    depth, deepest = 1, 0  # of what is open at this point; inside this element
    for match in _TOKENS.finditer(body, start):
        token = match[0]
        if token == b"," and depth == 1:
            yield body[element_start : match.start()], deepest
            element_start, deepest = match.end(), 0
        elif token[0] in b"[{":
            depth += len(token)
            deepest = max(deepest, depth - 1)
        elif token[0] in b"]}":
            depth -= len(token)
            if depth <= 0:
                end = match.end() + depth - 1  # the bracket that closes the array
                if body[end : end + 1] != b"]" or body[end + 1 :].strip(_WHITE_SPACE):
                    raise NotJson("the document goes on after its array")
                last = body[element_start:end]
                if element_start != start or last.strip(_WHITE_SPACE):
                    yield last, deepest
                return
        elif token == b'"':
            raise NotJson(f"a string is not closed (byte {match.start()})")
    raise NotJson("the array is not closed")


def _fault(text: bytes, depth: int) -> str:
    """Say what is wrong with an item that ``_one`` refused.

    Raises:
        NotJson: it is not JSON, or not UTF-8.

    """
    if depth > DEPTH_MAX + 1:  # the event itself is one level
        return f"payload: more than {DEPTH_MAX} levels deep"
    try:
        # The judge of what is JSON: msgspec stops at the first fault, of whatever kind, and refuses lone surrogates,
        # which the grammar allows.
        found = json.loads(text.decode(), parse_constant=_refuse_constant, parse_int=str, parse_float=str)
    except UnicodeDecodeError:
        raise NotJson("not UTF-8") from None
    except ValueError as error:
        raise NotJson(f"not JSON: {error}" if text.strip() else "a value is missing") from None
    try:
        _one(text)
    except msgspec.ValidationError as error:
        return _explain(str(error))
    except msgspec.DecodeError:
        return f"{_surrogate_field(found)}: a lone surrogate (\\ud800 to \\udfff), which is not Unicode"
    raise AssertionError("a refused item was accepted the second time")


def _surrogate_field(item: Any) -> str:
    """Name the field that holds a text which cannot be written as UTF-8."""
    for name, value in item.items() if isinstance(item, dict) else ():
        try:
            json.dumps(value, ensure_ascii=False).encode()
            name.encode()
        except UnicodeEncodeError:
            return name if name.isascii() else "event"
    return "event"


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _explain(message: str) -> str:
    match = _MSGSPEC_MESSAGE.fullmatch(message)
    assert match is not None
    what, field = match["what"].replace("`", ""), match["field"]
    if unknown := _UNKNOWN_FIELD.match(message):
        return f"{_clipped(unknown[1])}: unknown field; put what belongs to the event into payload"
    if missing := _MISSING_FIELD.match(message):
        return f"{missing[1]}: required field is missing"
    return f"{field or 'event'}: {what[:1].lower()}{what[1:]}"


def _clipped(name: str) -> str:
    return name if len(name) <= _NAME_SHOWN_MAX else name[:_NAME_SHOWN_MAX] + "…"


def _too_many(limits: Limits) -> TooManyItems:
    return TooManyItems(f"more than {limits.items_max} items in one request (BATCH_EVENTS_MAX)")
