"""Payloads: JSON values kept as the bytes that were sent.

A payload is checked once, when it is read (``clean_payloads``), so that whatever is stored is valid JSON in UTF-8 that
every parser reads alike; afterwards it is only ever copied. Two payloads are compared as JSON values through
``canonical``: key order, white space and the spelling of a number do not matter.

``msgspec.Raw`` checks the grammar of what it keeps, but not its UTF-8, the size of numbers or their range, the depth,
or duplicate keys. Those are checked here.
"""

import re
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np

DEPTH_MAX = 64
NUMBER_CHARACTERS_MAX = 100

_decode = msgspec.json.Decoder().decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode

_LONG_BYTES = 4096  # from so many on numpy pays (measured)
_LINE_FEED, _CARRIAGE_RETURN, _BACKSLASH = b"\n\r\\"
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_STRINGS = re.compile(_STRING, re.DOTALL)
_BRACKETS_OR_STRING = re.compile(_STRING + rb'|[\[{]+|[\]}]+|"', re.DOTALL)
_LONG_NUMBER_OR_STRING = re.compile(_STRING + rb"|([-+0-9.eE]{%d,})" % (NUMBER_CHARACTERS_MAX + 1), re.DOTALL)


class PayloadFault(ValueError):
    """A payload breaks a rule; the message says which."""


def clean_payloads(payloads: list[bytes]) -> list[bytes] | None:
    """Check many payloads in few calls: the payloads when no rule is broken and nothing needs rewriting, else None.

    None only means that ``clean_payload`` has to look at each one.
    """
    joined = b",".join(payloads)
    if _LINE_FEED in joined or _CARRIAGE_RETURN in joined:
        return None
    try:
        values = _decode(b"[%b]" % joined)  # the UTF-8 and the range of every number
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if len(joined) > NUMBER_CHARACTERS_MAX and (_may_hold_long_number(joined) or not _are_shallow(payloads, joined)):
        return None
    # Each member that was written brings one colon; more may stand in strings, where nothing hides but an escaped one.
    # So if what was decoded has as many colons when it is written again, no member was dropped for having a key twice.
    if _BACKSLASH in joined and joined.lower().find(b"\\u003a") >= 0:
        return None
    return payloads if _count_colons(joined) == _count_colons(_encode(values)) else None


def clean_payload(payload: bytes) -> bytes:
    """Return the payload as it will be stored: as sent, or without line breaks and duplicate keys where it had them.

    The payload is grammatical JSON (``msgspec.Raw`` has seen to that) unless it is nested too deeply.

    Raises:
        PayloadFault: a rule is broken.

    """
    if nesting_depth(payload) > DEPTH_MAX:
        raise PayloadFault(f"more than {DEPTH_MAX} levels deep")
    for match in _LONG_NUMBER_OR_STRING.finditer(payload):
        if match[1]:
            raise PayloadFault(f"a number is {len(match[1])} characters long, at most {NUMBER_CHARACTERS_MAX} are kept")
    try:
        value = _decode(payload)
    except UnicodeDecodeError:
        raise PayloadFault("not UTF-8") from None
    except msgspec.ValidationError:
        raise PayloadFault("a number is outside the range of binary64") from None
    if _has_duplicate_keys(payload, value):
        payload = _without_duplicate_keys(payload)
    if b"\n" in payload or b"\r" in payload:  # one event is one line of NDJSON
        payload = msgspec.json.format(payload, indent=-1)
    return payload


def is_readable(payloads: Iterable[bytes]) -> bool:
    """Tell whether each of the stored payloads is still one JSON value in UTF-8."""
    try:
        for payload in payloads:  # together they would take as long: what is decoded is let go of while it is at hand
            _decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def canonical(payload: bytes) -> bytes:
    """Return bytes that are equal for two payloads exactly when they are the same JSON value.

    Members are sorted by key and every number is written as its exact decimal value, without trailing zeros.
    """
    first = payload.lstrip(b" \t\n\r")[:1]
    if first == b"{":
        members = sorted(_decode_members(payload).items())
        return b"{%b}" % b",".join(_encode(key) + b":" + canonical(bytes(value)) for key, value in members)
    if first == b"[":
        return b"[%b]" % b",".join(canonical(bytes(value)) for value in _decode_elements(payload))
    if first in b'"tfn':
        return _encode(_decode(payload))
    return _canonical_number(payload)


def equal(one: bytes, other: bytes) -> bool:
    """Tell whether two payloads are the same JSON value."""
    return one == other or canonical(one) == canonical(other)


def nesting_depth(text: bytes) -> int:
    """Return how many arrays and objects are open at once at most. The text need not be JSON: it is only counted."""
    depth = deepest = 0
    for match in _BRACKETS_OR_STRING.finditer(text):
        token = match[0]
        if token[0] in b"[{":
            depth += len(token)
            deepest = max(deepest, depth)
        elif token[0] in b"]}":
            depth -= len(token)
        elif len(token) == 1:  # a string that never ends: looking for its end again and again would take for ever
            break
    return deepest


def _canonical_number(number: bytes) -> bytes:
    # By hand, because Decimal.normalize() rounds, and because exponents may lie beyond what Decimal holds.
    mantissa, _, exponent = number.strip().lower().partition(b"e")
    sign = b"-" if mantissa.startswith(b"-") else b""
    whole, _, fraction = mantissa.lstrip(b"-").partition(b".")
    digits = (whole + fraction).lstrip(b"0")
    if not digits:
        return b"0"
    stripped = digits.rstrip(b"0")
    power = int(exponent or b"0") - len(fraction) + len(digits) - len(stripped)
    return b"%b%be%d" % (sign, stripped, power)


_NUMBER_CHARACTERS_TO_ZERO = bytes.maketrans(b"123456789-+.eE", b"0" * 14)
_SAMPLES = 10  # at least so many samples fall on a number that is too long


def _may_hold_long_number(text: bytes) -> bool:
    """Whether so many characters of numbers stand together, be it in a string. Looks closely only where samples do."""
    samples = text[:: NUMBER_CHARACTERS_MAX // _SAMPLES].translate(_NUMBER_CHARACTERS_TO_ZERO)
    if samples.find(b"0" * _SAMPLES) < 0:
        return False
    return text.translate(_NUMBER_CHARACTERS_TO_ZERO).find(b"0" * (NUMBER_CHARACTERS_MAX + 1)) >= 0


def _are_shallow(payloads: list[bytes], joined: bytes) -> bool:
    """Whether no payload has more brackets than may be open at once."""
    if len(joined) < _LONG_BYTES:
        if joined.count(b"[") + joined.count(b"{") <= DEPTH_MAX:
            return True
    else:
        openings = np.flatnonzero((np.frombuffer(joined, np.uint8) | 0x20) == ord("{"))  # 0x20 makes a "[" a "{"
        spans = openings[DEPTH_MAX:] - openings[:-DEPTH_MAX]  # of so many and one more
        if spans.size == 0 or spans.min() >= max(map(len, payloads)):
            return True
    return all(payload.count(b"[") + payload.count(b"{") <= DEPTH_MAX for payload in payloads)


def _count_colons(text: bytes) -> int:
    if len(text) < _LONG_BYTES:
        return text.count(b":")
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord(":")))


def _count_members(value: Any) -> int:
    if type(value) is dict:
        return len(value) + sum(_count_members(member) for member in value.values() if type(member) in (dict, list))
    if type(value) is list:
        return sum(_count_members(element) for element in value if type(element) in (dict, list))
    return 0


def _has_duplicate_keys(payload: bytes, value: Any) -> bool:
    members = _count_members(value)
    if payload.count(b":") == members:
        return False
    return _STRINGS.sub(b"", payload).count(b":") != members


def _without_duplicate_keys(payload: bytes) -> bytes:
    """Write a payload anew with the last of each duplicate key, numbers and strings spelled as they were."""
    first = payload.lstrip(b" \t\n\r")[:1]
    if first == b"{":
        members = _decode_members(payload).items()
        return b"{%b}" % b",".join(
            _encode(key) + b":" + _without_duplicate_keys(bytes(value)) for key, value in members
        )
    if first == b"[":
        return b"[%b]" % b",".join(_without_duplicate_keys(bytes(value)) for value in _decode_elements(payload))
    return payload
