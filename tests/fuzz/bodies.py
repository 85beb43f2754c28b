"""Requests to /publish that Hypothesis makes: good ones, some wrong in a place, some with bytes changed at random."""

import gzip
import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from e2e.odd_input import BODIES, ITEMS
from e2e.server import NDJSON, event

BODY_BYTES_MAX = 100_000
TOPICS = ["fuzz/a", "fuzz/b", "fuzz/c/~:@=-._"]
EVENT_IDS = [f"id-{number}" for number in range(12)] + ["é", "😀", "a b", '"\\/']
MEDIA_TYPES = {
    "application/json": False,
    "": False,
    "Application/JSON; charset=UTF-8": False,
    "application/problem+json": False,
    NDJSON: True,
    "application/jsonl": True,
    "application/x-ndjson; charset=utf-8": True,
}
UNKNOWN_TYPES = [
    "text/plain",
    "application/json; charset=latin-1",
    "application/xml",
    "multipart/form-data",
    "json",
]
ENCODINGS = ["gzip", "x-gzip", "GZIP"]
UNKNOWN_ENCODINGS = ["br", "zstd", "deflate", "gzip, gzip", "identity;q=1"]
PREFERENCES = ["return=minimal", "handling=strict", "respond-async", "wait=5", "return=representation"]


@dataclass(frozen=True)
class Request:
    """A request: its body before compression, how it is sent, and what its headers say."""

    body: bytes
    content_type: str = "application/json"
    encoding: str = ""
    sent: bytes | None = None  # in place of the compressed body, where that was damaged
    preferences: tuple[str, ...] = ()
    pieces: tuple[int, ...] = ()  # lengths of chunks, in turn; else a declared length
    expects: bool = False


_NUMBERS = """0 -0 0.0 1 1.0 1e0 10E-1 -1 100 1e2 1E+2 0.1 1e308 5e-324 1e-999 1e999 -1.8e308 18446744073709551616"""
_LONG_NUMBERS = ["9" * 100, "9" * 101, "0." + "3" * 98, "0." + "3" * 99]
_numbers = st.sampled_from([*_NUMBERS.split(), *_LONG_NUMBERS]) | st.integers(-(10**20), 10**20).map(str)
_strings = st.builds(
    lambda text, ascii_only: json.dumps(text, ensure_ascii=ascii_only),
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.booleans(),
) | st.sampled_from([r'"\ud83d\ude00"', r'"\ud800"', r'"\u0000"', r'"\u003a"', '":,[]{}"', r'"\"\\"', '"\u2028"'])
_blanks = st.sampled_from(["", "", "", " ", "\n", "\r\n\t "])
_keys = st.sampled_from(['"a"', '"b"', r'"\u0061"', '""', '"a:b"', r'"\udc00"', '"topic"'])


def _array(elements: list[str], blank: str) -> str:
    return f"[{blank}{f'{blank},'.join(elements)}{blank}]"


def _object(members: list[tuple[str, str]], blank: str) -> str:
    return f"{{{f'{blank},{blank}'.join(f'{key}{blank}:{value}' for key, value in members)}{blank}}}"


def _nested(levels: int, inside: str) -> str:
    return "[" * levels + inside + "]" * levels


payloads = st.recursive(
    _numbers | _strings | st.sampled_from(["null", "true", "false", "[]", "{}"]),
    lambda values: (
        st.builds(_array, st.lists(values, max_size=4), _blanks)
        | st.builds(_object, st.lists(st.tuples(_keys, values), max_size=4), _blanks)
    ),
    max_leaves=8,
) | st.builds(_nested, st.integers(60, 70), st.sampled_from(["", "1", "{}"]))

_odd_items = st.sampled_from(
    [text for odd in ITEMS.values() if len(text := odd.make(TOPICS[0], EVENT_IDS[0])) < BODY_BYTES_MAX // 8]
)


_event_ids = st.sampled_from(EVENT_IDS) | st.integers(0, 10_000).map("new-{}".format)


@st.composite
def _events(draw: st.DrawFn) -> bytes:
    """Mostly a good event, of few identities, so that duplicates and conflicts come about."""
    fields = {name: json.dumps(value) for name, value in event(draw(st.sampled_from(TOPICS)), draw(_event_ids)).items()}
    fields["payload"] = draw(st.sampled_from(['{"n": 1}', '{"n":1.0}', "1", "1.0"]) | payloads)
    for name, values in (
        ("source", st.sampled_from(['""', '"s"', "null", '"é"'])),
        ("source_seq", st.sampled_from(["null", "1", "-9223372036854775808", "9223372036854775808", "1.0", "-0"])),
        (
            "timestamp",
            st.sampled_from(['"2026-11-23T10:15:30Z"', '"2016-12-31 23:59:60"', '"1678-01-01T00:00:00+00:01"']),
        ),
        ("event_id", st.text(max_size=5).map(json.dumps)),
        ("topic", st.sampled_from(['"."', '"a//b"', '"A"', '"a/*"', "7"])),
        ("seq", st.sampled_from(["1", "null", "{}"])),
    ):
        if draw(st.integers(0, 5)) == 5:
            fields[name] = draw(values)
    if draw(st.integers(0, 9)) == 9:
        del fields[draw(st.sampled_from(sorted(fields)))]
    members = [f"{json.dumps(name)}: {text}" for name, text in draw(st.permutations(sorted(fields.items())))]
    return ("{" + ", ".join(members) + "}").encode("utf-8", "surrogatepass")


_items = st.one_of(_events(), _events(), _events(), _odd_items)


@st.composite
def _bodies(draw: st.DrawFn) -> tuple[bytes, bool]:
    """A body, and whether it is meant as NDJSON."""
    items = draw(st.lists(_items, max_size=8))
    form = draw(st.sampled_from(["single", "array", "array", "lines", "lines", "many", "odd"]))
    if form == "single":
        return (items[0] if items else b""), False
    if form == "odd":
        odd = draw(st.sampled_from([body for body in BODIES.values() if len(body) < BODY_BYTES_MAX]))
        return odd, draw(st.booleans())
    if form == "many":
        items = (items or [b"0"]) * draw(st.sampled_from([7, 8, 9, 60, 61]))
    if form == "lines":
        end = draw(st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \t\n"]))
        return end.join(items) + draw(st.sampled_from([b"", end])), True
    blank = draw(st.sampled_from([b"", b" ", b"\n"]))
    return b"[" + (blank + b",").join(items) + b"]", False


_TOKENS = [b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"\\ud800", b"\\u0000", b"NaN", b"1e999", b"-", b"0", b"\n"]
_TOKENS += [
    b"\r\n",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"null",
    b"topic",
    b"//",
    b" ",
    b"\xc3\xa9",
    b"e\xcc\x81",
]


@st.composite
def _damaged(draw: st.DrawFn, body: bytes) -> bytes:
    """A few places of a body changed, left out, put in or repeated."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(body)))
        end = min(len(body), place + draw(st.integers(0, 12)))
        kind = draw(st.sampled_from(["drop", "token", "byte", "repeat", "cut"]))
        if kind == "drop":
            body = body[:place] + body[end:]
        elif kind == "token":
            body = body[:place] + draw(st.sampled_from(_TOKENS)) + body[place:]
        elif kind == "byte":
            body = body[:place] + draw(st.binary(min_size=1, max_size=1)) + body[place + 1 :]
        elif kind == "repeat":
            body = body[:end] + body[place:end] * draw(st.integers(1, 5)) + body[end:]
        else:
            body = body[:place]
    return body


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A request of any kind."""
    body, lines = draw(_bodies())
    if draw(st.integers(0, 2)) == 2:
        body = draw(_damaged(body))
    if draw(st.integers(0, 30)) == 30:
        body = draw(st.binary(max_size=40))
    if draw(st.integers(0, 12)) == 12:
        lines = not lines
    known = [name for name, is_lines in MEDIA_TYPES.items() if is_lines == lines]
    changes: dict[str, Any] = {"content_type": draw(st.sampled_from(known))}
    if draw(st.integers(0, 15)) == 15:
        changes["content_type"] = draw(st.sampled_from(UNKNOWN_TYPES))
    if draw(st.integers(0, 3)) == 3:
        changes["encoding"] = draw(st.sampled_from(ENCODINGS))
        changes["sent"] = _compressed(body, draw(st.lists(st.integers(0, len(body)), max_size=2)))
        if draw(st.integers(0, 3)) == 3:
            changes["sent"] = draw(_damaged(changes["sent"]))
    elif draw(st.integers(0, 15)) == 15:
        changes["encoding"] = draw(st.sampled_from(UNKNOWN_ENCODINGS))
    if draw(st.booleans()):
        changes["preferences"] = tuple(draw(st.lists(st.sampled_from(PREFERENCES), unique=True, max_size=3)))
    if draw(st.integers(0, 2)) == 2:
        changes["pieces"] = tuple(draw(st.lists(st.integers(1, 5000), min_size=1, max_size=4)))
    changes["expects"] = draw(st.integers(0, 20)) == 20
    return Request(body, **changes)


def _compressed(body: bytes, cuts: list[int]) -> bytes:
    edges = [0, *sorted(cuts), len(body)]
    return b"".join(gzip.compress(body[start:end], 1, mtime=0) for start, end in pairwise(edges))
