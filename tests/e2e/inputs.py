"""Tables of good and bad input, field by field: raw JSON, because much of it no JSON library would write."""

from typing import NamedTuple


class Case(NamedTuple):
    """A field of an event and the JSON text that stands there. ``out`` is how it is read back, None for unchanged."""

    name: str
    field: str
    text: bytes
    out: bytes | None = None


def _string(text: str) -> bytes:
    return b'"' + text.encode() + b'"'


def _nested(levels: int, opening: bytes, closing: bytes, inside: bytes = b"0") -> bytes:
    return opening * levels + inside + closing * levels


def _time(name: str, text: str, out: str | None = None) -> Case:
    return Case(name, "timestamp", _string(text), None if out is None else _string(out))


BAD_TOPICS = [
    Case("empty", "topic", b'""'),
    Case("blank", "topic", b'" "'),
    Case("space", "topic", b'"a b"'),
    Case("double slash", "topic", b'"a//b"'),
    Case("first slash", "topic", b'"/a"'),
    Case("last slash", "topic", b'"a/"'),
    Case("slash", "topic", b'"/"'),
    Case("dot", "topic", b'"."'),
    Case("two dots", "topic", b'".."'),
    Case("dot inside", "topic", b'"a/./b"'),
    Case("two dots inside", "topic", b'"a/../b"'),
    Case("two dots at the end", "topic", b'"a/.."'),
    Case("star", "topic", b'"a/*"'),
    Case("two stars", "topic", b'"**"'),
    Case("not ASCII", "topic", _string("é")),
    Case("ASCII look-alike", "topic", _string("\uff41")),
    Case("NUL", "topic", b'"a\\u0000"'),
    Case("line feed at the end", "topic", b'"a\\n"'),
    Case("comma", "topic", b'"a,b"'),
    Case("backslash", "topic", b'"a\\\\b"'),
    Case("256 bytes", "topic", _string("t" * 256)),
    Case("256 bytes in segments", "topic", _string("a/" * 127 + "ab")),
    Case("number", "topic", b"1"),
    Case("null", "topic", b"null"),
    Case("array", "topic", b'["a"]'),
    Case("object", "topic", b'{"name": "a"}'),
]

BAD_EVENT_IDS = [
    Case("empty", "event_id", b'""'),
    Case("blank", "event_id", b'"  "'),
    Case("no-break space", "event_id", b'"\\u00a0"'),
    Case("ideographic space", "event_id", _string("\u3000")),
    Case("number", "event_id", b"1"),
    Case("fraction", "event_id", b"1.5"),
    Case("null", "event_id", b"null"),
    Case("true", "event_id", b"true"),
    Case("array", "event_id", b'["a"]'),
    Case("513 bytes", "event_id", _string("i" * 513)),
    Case("514 bytes in 257 characters", "event_id", _string("é" * 257)),
    Case("NUL", "event_id", b'"a\\u0000b"'),
    Case("line feed", "event_id", b'"a\\n"'),
    Case("tab", "event_id", b'"\\ta"'),
    Case("delete", "event_id", b'"a\\u007f"'),
    Case("C1 control", "event_id", b'"a\\u0085"'),
    Case("NFD", "event_id", b'"e\\u0301"'),
    Case("NFD unescaped", "event_id", _string("e\u0301")),
    Case("not NFC by a singleton", "event_id", b'"\\u2126"'),
    Case("lone high surrogate", "event_id", b'"a\\ud800"'),
    Case("lone low surrogate", "event_id", b'"\\udc00a"'),
]

BAD_SOURCES = [
    Case("number", "source", b"1"),
    Case("array", "source", b"[]"),
    Case("256 bytes", "source", _string("s" * 256)),
    Case("256 bytes in 128 characters", "source", _string("é" * 128)),
    Case("NUL", "source", b'"\\u0000"'),
    Case("line feed", "source", b'"a\\nb"'),
    Case("escape", "source", b'"\\u001b[31m"'),
    Case("C1 control", "source", b'"\\u009b"'),
    Case("lone surrogate", "source", b'"\\ud83d"'),
]

BAD_SOURCE_SEQS = [
    Case("string", "source_seq", b'"1"'),
    Case("fraction", "source_seq", b"1.5"),
    Case("true", "source_seq", b"true"),
    Case("above 64 bits", "source_seq", b"9223372036854775808"),
    Case("below 64 bits", "source_seq", b"-9223372036854775809"),
    Case("far above", "source_seq", b"1" * 90),
    Case("array", "source_seq", b"[1]"),
]

BAD_TIMESTAMPS = [
    _time("empty", ""),
    _time("word", "now"),
    _time("date only", "2026-11-23"),
    _time("no seconds", "2026-11-23T10:15Z"),
    _time("ten digits", "2026-11-23T10:15:30.1234567890Z"),
    _time("no digits", "2026-11-23T10:15:30.Z"),
    _time("comma", "2026-11-23T10:15:30,5Z"),
    _time("year 1677", "1677-12-31T23:59:59.999999999Z"),
    _time("year 2262", "2262-01-01T00:00:00Z"),
    _time("year 1677 in UTC", "1678-01-01T00:00:00+00:01"),
    _time("year 2262 in UTC", "2261-12-31T23:59:59-00:01"),
    _time("year 0000", "0000-01-01T00:00:00Z"),
    _time("year of five digits", "12026-11-23T10:15:30Z"),
    _time("30 February", "2026-02-30T00:00:00Z"),
    _time("29 February of no leap year", "2026-02-29T00:00:00Z"),
    _time("month 13", "2026-13-01T00:00:00Z"),
    _time("hour 24", "2026-11-23T24:00:00Z"),
    _time("minute 60", "2026-11-23T10:60:00Z"),
    _time("second 61", "2026-11-23T23:59:61Z"),
    _time("leap second inside an hour", "2026-11-23T10:15:60Z"),
    _time("offset of 24 hours", "2026-11-23T10:15:30+24:00"),
    _time("offset of 60 minutes", "2026-11-23T10:15:30+10:60"),
    _time("offset without colon", "2026-11-23T10:15:30+0100"),
    _time("named zone", "2026-11-23T10:15:30 UTC"),
    _time("two spaces", "2026-11-23  10:15:30Z"),
    _time("underscore", "2026-11-23_10:15:30Z"),
    _time("space before", " 2026-11-23T10:15:30Z"),
    _time("space after", "2026-11-23T10:15:30Z "),
    _time("other digits", "２０２６-11-23T10:15:30Z"),  # noqa: RUF001
    Case("line feed after", "timestamp", b'"2026-11-23T10:15:30Z\\n"'),
    Case("number", "timestamp", b"1763892930"),
    Case("null", "timestamp", b"null"),
    Case("lone surrogate", "timestamp", b'"\\ud800"'),
]

BAD_PAYLOADS = [
    Case("arrays 65 deep", "payload", _nested(65, b"[", b"]")),
    Case("objects 65 deep", "payload", _nested(65, b'{"a":', b"}")),
    Case("65 deep, mixed and spaced", "payload", _nested(32, b'[ { "a" : ', b"} ]", b"[0]")),
    Case("65 deep, empty", "payload", b"[" * 65 + b"]" * 65),
    Case("2,000 deep", "payload", _nested(2000, b"[", b"]")),
    Case("100,000 deep", "payload", _nested(100_000, b"[", b"]")),
    Case("objects 100,000 deep", "payload", _nested(100_000, b'{"a":', b"}")),
    Case("number of 101 characters", "payload", b"1" * 101),
    Case("fraction of 101 characters", "payload", b"0." + b"1" * 99),
    Case("exponent of 101 characters", "payload", b"1e" + b"0" * 98 + b"1"),
    Case("number of 101 characters inside", "payload", b'{"a": [-0.' + b"0" * 97 + b"1]}"),
    Case("number of 6,000 characters", "payload", b"7" * 6000),
    Case("1e999", "payload", b"1e999"),
    Case("-1e999 inside", "payload", b'{"a": [1, -1e999]}'),
    Case("1.8e308", "payload", b"1.8e308"),
    Case("lone high surrogate", "payload", b'"\\ud800"'),
    Case("lone low surrogate", "payload", b'"\\udfff"'),
    Case("surrogates the wrong way round", "payload", b'"\\udc00\\ud800"'),
    Case("lone surrogate inside", "payload", b'{"a": ["b\\ud83dc"]}'),
    Case("lone surrogate in a key", "payload", b'{"\\ud83d": 1}'),
]

BAD_FIELDS = BAD_TOPICS + BAD_EVENT_IDS + BAD_SOURCES + BAD_SOURCE_SEQS + BAD_TIMESTAMPS + BAD_PAYLOADS

GOOD_FIELDS = [
    Case("one character", "topic", b'"a"'),
    Case("255 bytes", "topic", _string("t" * 255)),
    Case("255 bytes in segments", "topic", _string("a/" * 127 + "b")),
    Case("alphabet", "topic", _string("AZaz09._~:@=-/a")),
    Case("dots", "topic", b'".../a..b/.a"'),
    Case("escaped slash", "topic", b'"a\\/b"', b'"a/b"'),
    Case("one character", "event_id", b'"1"'),
    Case("512 bytes", "event_id", _string("i" * 512)),
    Case("512 bytes in 256 characters", "event_id", _string("é" * 256)),
    Case("NFC", "event_id", b'"\\u00e9"', _string("é")),
    Case("spaces", "event_id", b'" a b "'),
    Case("quotes and slashes", "event_id", b'"a\\"/\\\\b"'),
    Case("surrogate pair", "event_id", b'"\\ud83d\\ude00"', _string("😀")),
    Case("empty", "source", b'""'),
    Case("255 bytes", "source", _string("s" * 255)),
    Case("254 bytes in 127 characters", "source", _string("é" * 127)),
    Case("NFD", "source", _string("e\u0301")),
    Case("largest", "source_seq", b"9223372036854775807"),
    Case("smallest", "source_seq", b"-9223372036854775808"),
    Case("zero", "source_seq", b"0"),
    _time("nine digits", "2026-11-23T10:15:30.123456789Z"),
    _time("nine digits, the last alone", "2026-11-23T10:15:30.000000001Z"),
    _time("no digits", "2026-11-23T10:15:30Z"),
    _time("one digit", "2026-11-23T10:15:30.5Z", "2026-11-23T10:15:30.500Z"),
    _time("zeros", "2026-11-23T10:15:30.000000000Z", "2026-11-23T10:15:30Z"),
    _time("no zone", "2026-11-23T10:15:30", "2026-11-23T10:15:30Z"),
    _time("space", "2026-11-23 10:15:30.25Z", "2026-11-23T10:15:30.250Z"),
    _time("space and no zone", "2026-11-23 10:15:30", "2026-11-23T10:15:30Z"),
    _time("lower case", "2026-11-23t10:15:30z", "2026-11-23T10:15:30Z"),
    _time("offset", "2026-11-23T10:15:30+07:00", "2026-11-23T03:15:30Z"),
    _time("negative offset over midnight", "2026-12-31T23:30:00-01:30", "2027-01-01T01:00:00Z"),
    _time("largest offset", "2026-11-23T23:59:00+23:59", "2026-11-23T00:00:00Z"),
    _time("unknown offset", "2026-11-23T10:15:30-00:00", "2026-11-23T10:15:30Z"),
    _time("leap second", "2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
    _time("leap second elsewhere", "2017-01-01T06:59:60+07:00", "2017-01-01T00:00:00Z"),
    _time("29 February", "2024-02-29T00:00:00Z"),
    _time("before 1970", "1969-12-31T23:59:59.999999999Z"),
    _time("first", "1678-01-01T00:00:00Z"),
    _time("last", "2261-12-31T23:59:59.999999999Z"),
    Case("arrays 64 deep", "payload", _nested(64, b"[", b"]")),
    Case("objects 64 deep", "payload", _nested(64, b'{"a":', b"}")),
    Case("64 deep beside others", "payload", _nested(63, b"[", b"]", b"[],{},[0]")),
    Case("brackets in a string", "payload", _string("[" * 1000 + "{" * 1000)),
    Case("number of 100 characters", "payload", b"1" * 100),
    Case("negative number of 100 characters", "payload", b"-0." + b"3" * 97),
    Case("digits in a string", "payload", _string("1" * 6000)),
    Case("beyond 64 bits", "payload", b"18446744073709551617"),
    Case("more digits than binary64 has", "payload", b"0.1000000000000000055511151231257827"),
    Case("1e308", "payload", b"1e308"),
    Case("1E+2", "payload", b"1E+2"),
    Case("1.0", "payload", b"1.0"),
    Case("-0", "payload", b"-0"),
    Case("-0.0e-0", "payload", b"-0.0e-0"),
    Case("5e-324", "payload", b"5e-324"),
    Case("too small for binary64 and finite", "payload", b"1e-999"),
    Case("null", "payload", b"null"),
    Case("false", "payload", b"false"),
    Case("empty string", "payload", b'""'),
    Case("empty array", "payload", b"[]"),
    Case("empty object", "payload", b"{}"),
    Case("NUL in a string", "payload", b'"a\\u0000b"'),
    Case("surrogate pair", "payload", b'"\\ud83d\\ude00"'),
    Case("not NFC", "payload", _string("e\u0301")),
    Case("line separators", "payload", _string("a\u2028b\u2029c\x7f\x85")),
    Case("escaped line feed", "payload", b'"a\\nb"'),
    Case("white space", "payload", b'{ "a" :\t[ 1 , 2 ] }'),
    Case("duplicate keys", "payload", b'{"a":1,"b":2,"a":3}', b'{"a":3,"b":2}'),
    Case("duplicate keys by escapes", "payload", b'{"a":1,"\\u0061":2}', b'{"a":2}'),
    Case("duplicate keys inside", "payload", b'[{"a":{"x":1,"x":1e0}}]', b'[{"a":{"x":1e0}}]'),
    Case("fields of an event", "payload", b'{"topic":1,"event_id":null,"seq":-1}'),
    Case("prototype", "payload", b'{"__proto__":{"a":1},"constructor":2}'),
    Case("a script", "payload", _string("</script><script>alert(1)</script>")),
    Case("SQL", "payload", _string("'); DROP TABLE events; --")),
]

# Nothing here is JSON in UTF-8 where a payload should stand.
NOT_JSON = [
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"01",
    b"+1",
    b".5",
    b"1.",
    b"1e",
    b"0x10",
    b"'a'",
    b"tru",
    b"True",
    b"undefined",
    b"[1,]",
    b"{1: 2}",
    b'{"a" 1}',
    b'{"a": 1,}',
    b"[1 2]",
    b"",
    b'"a\x01b"',
    b'"\\x41"',
    b'"\\u12"',
    b"\xef\xbb\xbf1",
    b'"\xff"',
    b'"\xc0\xaf"',  # overlong
    b'"\xed\xa0\x80"',  # a surrogate, encoded
    b'"\xf4\x90\x80\x80"',  # above U+10FFFF
    b'"\xe2\x82"',  # cut
    b"/* */ 1",
    b"[[[[",
    b'"open',
]

BAD_DOCUMENTS = [
    b"",
    b" \r\n\t",
    b"{",
    b"[",
    b"[,]",
    b"]",
    b"}",
    b"[{}",
    b"[1]]",
    b"[{}{}]",
    b"[1] 2",
    b"{} {}",
    b"nonsense",
    b'"',
    b'["',
    b"\x00",
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf[]",
    b"\xef\xbb\xbf{}",
    b"[\xff]",
    b"[" * 100_000,
    b"topic=a&event_id=b",
    b"<event/>",
]

# Not closed, and too deep for an event as well: both refusals are true.
ENDLESS_DOCUMENTS = [b"{" * 100_000, b'{"a":' * 100_000, b'{"payload":' + b"[" * 100_000]

# JSON, and nothing that could be an event.
NO_EVENTS = [
    b"null",
    b"true",
    b"1",
    b'"text"',
    b"{}",
    b'{"topic": 1}',
    b"[[]]",
    b"[null, 1, {}]",
    b"[" * 99 + b"]" * 99,
]
