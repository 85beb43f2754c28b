"""The input that docs/reference/input.md has a line for, by the name it has there."""

import json
from collections.abc import Callable
from typing import NamedTuple

from e2e.raw import one_event
from e2e.server import event

MIB = 1024 * 1024


class Odd(NamedTuple):
    """An item made of a good one. ``payload`` is what is read back where that is not what was sent."""

    make: Callable[[str, str], bytes]
    payload: bytes | None = None


def raw(topic: str, event_id: str, /, **fields: bytes) -> bytes:
    """Return an event as JSON text, with some values written as given, at their places or at the end."""
    texts = {name: json.dumps(value).encode() for name, value in event(topic, event_id).items()} | fields
    return b"{" + b", ".join(b'"%b": %b' % (name.encode(), text) for name, text in texts.items()) + b"}"


def _in(field: str, text: bytes, payload: bytes | None = None) -> Odd:
    return Odd(lambda topic, event_id: raw(topic, event_id, **{field: text}), payload)


def _without(field: str) -> Odd:
    def make(topic: str, event_id: str) -> bytes:
        fields = event(topic, event_id)
        del fields[field]
        return json.dumps(fields).encode()

    return Odd(make)


def _instead(text: bytes) -> Odd:
    return Odd(lambda _, __: text)


def _around(before: bytes, behind: bytes) -> Odd:
    return Odd(lambda topic, event_id: before + raw(topic, event_id) + behind)


def _more(members: bytes) -> Odd:
    return Odd(lambda topic, event_id: raw(topic, event_id)[:-1] + b", " + members + b"}")


def _nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def _text(content: bytes) -> bytes:
    return b'"' + content + b'"'


_LONG = _text(b"x" * MIB)
_OTHER_VALUES = len("odd/0000" + "odd" + event("", "")["timestamp"] + "test")

ITEMS: dict[str, Odd] = {
    "payload: `NaN`": _in("payload", b"NaN"),
    "payload: `Infinity`": _in("payload", b"Infinity"),
    "payload: `-Infinity` inside an array": _in("payload", b"[1, -Infinity]"),
    "payload: 1e999": _in("payload", b"1e999"),
    "payload: -1e999 inside an object": _in("payload", b'{"a": [-1e999]}'),
    "payload: 1e-999": _in("payload", b"1e-999"),
    "payload: integer of 100 digits": _in("payload", b"7" * 100),
    "payload: integer of 101 digits": _in("payload", b"7" * 101),
    "payload: integer of 6,000 digits": _in("payload", b"7" * 6_000),
    "payload: 18446744073709551617": _in("payload", b"18446744073709551617"),
    "payload: -0.0, 1E+2 and 0.1000000000000000055511151231257827": _in(
        "payload", b"[-0.0, 1E+2, 0.1000000000000000055511151231257827]"
    ),
    "payload: 64 levels": _in("payload", _nested(64)),
    "payload: 65 levels": _in("payload", _nested(65)),
    "payload: 100,000 levels": _in("payload", _nested(100_000)),
    "payload: 100,000 levels, never closed": _in("payload", b"[" * 100_000),
    "payload: lone surrogate, escaped": _in("payload", _text(b"\\ud800")),
    "payload: lone surrogate in a key, escaped": _in("payload", b'{"\\udc00": 1}'),
    "payload: surrogate pair, escaped": _in("payload", _text(b"\\ud83d\\ude00")),
    "payload: lone surrogate as bytes": _in("payload", _text(b"\xed\xa0\x80")),
    "payload: invalid UTF-8": _in("payload", _text(b"\xff")),
    "payload: overlong UTF-8": _in("payload", _text(b"\xc0\xaf")),
    "payload: NUL, escaped": _in("payload", _text(b"a\\u0000b")),
    "payload: NUL as a byte": _in("payload", _text(b"a\0b")),
    "payload: control character as a byte": _in("payload", _text(b"a\x01b")),
    "payload: escape sequence of a terminal": _in("payload", _text(b"\\u001b[2J\x7f\xc2\x9b")),
    "payload: not NFC": _in("payload", _text("e\u0301".encode())),
    "payload: the same key twice": _in("payload", b'{"a": 1, "b": 2, "a": 3}', b'{"a":3,"b":2}'),
    "payload: the same key twice, one escaped": _in("payload", b'{"a": 1, "\\u0061": 2}', b'{"a":2}'),
    "payload: the same key twice, deep inside": _in("payload", b'[{"a":{"x":1,"x":1e0}}]', b'[{"a":{"x":1e0}}]'),
    "payload: string of 1 MiB": _in("payload", _LONG),
    "payload: string that just fits": _in("payload", _text(b"x" * (MIB - _OTHER_VALUES - 2))),
    "payload: 10,000 empty arrays": _in("payload", b"[" + b"[]," * 9_999 + b"[]]"),
    "payload: null": _in("payload", b"null"),
    "payload: line separators U+2028 and U+2029": _in("payload", _text("\u2028\u2029".encode())),
    "event_id: empty": _in("event_id", b'""'),
    "event_id: blank": _in("event_id", _text("\u3000 ".encode())),
    "event_id: null": _in("event_id", b"null"),
    "event_id: number": _in("event_id", b"7"),
    "event_id: NUL, escaped": _in("event_id", _text(b"a\\u0000")),
    "event_id: line feed, escaped": _in("event_id", _text(b"a\\n")),
    "event_id: lone surrogate, escaped": _in("event_id", _text(b"a\\ud800")),
    "event_id: invalid UTF-8": _in("event_id", _text(b"a\xff")),
    "event_id: é in NFC": _in("event_id", _text("é".encode())),
    "event_id: é in NFD": _in("event_id", _text("e\u0301".encode())),
    "event_id: 513 bytes": _in("event_id", _text(b"x" * 513)),
    "event_id: 1 MiB": _in("event_id", _LONG),
    "topic: empty": _in("topic", b'""'),
    "topic: null": _in("topic", b"null"),
    "topic: NUL, escaped": _in("topic", _text(b"a\\u0000")),
    "topic: not ASCII": _in("topic", _text("é".encode())),
    "topic: `..`": _in("topic", _text(b"a/../b")),
    "topic: pattern": _in("topic", _text(b"a/**")),
    "topic: 256 bytes": _in("topic", _text(b"x" * 256)),
    "topic: 1 MiB": _in("topic", _LONG),
    "source: null": _in("source", b"null"),
    "source: number": _in("source", b"7"),
    "source: NUL, escaped": _in("source", _text(b"a\\u0000")),
    "source: 256 bytes": _in("source", _text(b"x" * 256)),
    "source_seq: fraction": _in("source_seq", b"1.5"),
    "source_seq: 2 to the power of 63": _in("source_seq", b"9223372036854775808"),
    "timestamp: 1763892930": _in("timestamp", b"1763892930"),
    "timestamp: year 9999": _in("timestamp", _text(b"9999-01-01T00:00:00Z")),
    "timestamp: 1 MiB": _in("timestamp", _LONG),
    "unknown field": _more(b'"colour": 1'),
    "unknown field with a name of 1 MiB": _more(_LONG + b": 1"),
    "no payload": _without("payload"),
    "no event_id": _without("event_id"),
    "a field twice": _more(b'"payload": {"other": 1}, "payload": {"last": 1}'),
    "a field twice, the last one bad": _more(b'"event_id": 7'),
    "a field of the server with nonsense in it": _more(b'"seq": [[1e999]], "duplicates": {"a": 1, "a": 2}'),
    "a field of the server with a lone surrogate, escaped": _more(b'"seq": "\\ud800"'),
    "a field of the server that is not UTF-8": _more(b'"processed_at": "\xff"'),
    "null in place of an event": _instead(b"null"),
    "number in place of an event": _instead(b"7"),
    "string in place of an event": _instead(_text(b"event")),
    "array in place of an event": _instead(b"[7]"),
    "byte-order mark before it": _around(b"\xef\xbb\xbf", b""),
    "something behind it": _around(b"", b"x"),
    "cut in the middle": Odd(lambda topic, event_id: raw(topic, event_id)[:30]),
    "nothing": _instead(b""),
}

_ONE, _TWO = one_event("odd/body", "1"), one_event("odd/body", "2")

BODIES: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \t\r\n\r\n ",
    "`[]`": b"[]",
    "`[[]]`": b"[[]]",
    "`{}`": b"{}",
    "`null`": b"null",
    '`"text"`': b'"text"',
    "`1`": b"1",
    "`NaN`": b"NaN",
    "byte-order mark before an event": b"\xef\xbb\xbf" + _ONE,
    "UTF-16": b'[\n"\n1",\n2]'.decode().encode("utf-16"),
    "NUL": b"\0",
    "an event, and a byte behind it": _ONE + b"x",
    "two events, nothing between": _ONE + _TWO,
    "two events, a line each": _ONE + b"\n" + _TWO + b"\n",
    "two events, CRLF, no end of the last line": _ONE + b"\r\n" + _TWO,
    "two events, blank lines around": b"\n \t\r\n" + _ONE + b"\n\n\n" + _TWO + b"\n\r\n",
    "two events, a line with nonsense between": _ONE + b"\n{]\n" + _TWO,
    "two events, carriage returns alone": _ONE + b"\r" + _TWO + b"\r",
    "an array over several lines": b"[\n" + _ONE + b",\n" + _TWO + b"\n]",
    "an array that is not closed": b"[" + _ONE,
    "10,001 items": b"[" + b"\n,".join([_ONE] * 10_001) + b"]",
    "5,000,000 items": b"[" + b"0\n," * 3_300_000 + b"0]",
    "10,000,000 opening brackets": b"[" * 10_000_000,
    "10 MiB of blanks": b" " * (10 * MIB),
    "10 MiB and one byte": b" " * (10 * MIB + 1),
}
