"""Topic names and the patterns that readers match them with.

A topic is a path such as ``app/prod/api``. In a pattern ``*`` stands for exactly one segment and ``**`` for any number
of segments, none included: ``app/*/api``, ``app/**``. No character of a pattern is legal in a topic, so a text is
either a topic or a pattern, never both.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

TOPIC_BYTES_MAX = 255
COVER_STEPS_MAX = 20_000

_SEGMENT = r"[A-Za-z0-9._~:@=-]+"
_TOPIC = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*", re.ASCII)
_PATTERN = re.compile(rf"(?:{_SEGMENT}|\*\*?)(?:/(?:{_SEGMENT}|\*\*?))*", re.ASCII)
_ALPHABET = "letters, digits and ._~:@=-"


def topic_fault(topic: str) -> str | None:
    """Say what is wrong with a topic name, or None for a good one."""
    # A long one is not kept: it would hold the cache's memory against everybody else.
    return _topic_fault(topic) if len(topic) <= TOPIC_BYTES_MAX else _topic_fault.__wrapped__(topic)


@lru_cache(maxsize=4096)
def _topic_fault(topic: str) -> str | None:
    if _TOPIC.fullmatch(topic) is None:
        return f"not a topic: segments of {_ALPHABET}, separated by single slashes"
    return _path_fault(topic)


def pattern_fault(pattern: str) -> str | None:
    """Say what is wrong with a topic or topic pattern, or None for a good one."""
    if _PATTERN.fullmatch(pattern) is None:
        return f"neither a topic nor a pattern: segments of {_ALPHABET}, or * or **, separated by single slashes"
    return _path_fault(pattern)


def _path_fault(path: str) -> str | None:
    if len(path) > TOPIC_BYTES_MAX:  # the alphabet is ASCII: characters are bytes
        return f"{len(path)} bytes long, at most {TOPIC_BYTES_MAX} are allowed"
    if any(segment in {".", ".."} for segment in path.split("/")):
        return "a segment may not be . or .."
    return None


def is_pattern(text: str) -> bool:
    """Tell whether a reader's topic is a pattern rather than one exact topic."""
    return "*" in text


@lru_cache(maxsize=256)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return the regular expression whose ``fullmatch`` is the pattern's match. The pattern must be valid.

    It takes a time proportional to the lengths of pattern and topic multiplied, whatever they are: patterns come from
    strangers. What stands between two ``**`` is taken where it is found first (an atomic group), because a later place
    would leave less of the topic to the rest of the pattern.
    """
    # Each segment brings the slash before it; a leading slash is put before the topic when matching, so that ``**``
    # can stand for no segment at either end.
    first, *others = (_fixed(part) for part in _parts(pattern))
    if not others:
        return re.compile(first, re.ASCII)
    *between, last = others
    found = "".join(rf"(?>{_ANY}*?{part}(?![^/]))" for part in between if part)
    return re.compile(rf"{first}(?![^/]){found}{_ANY}*{last}", re.ASCII)


_ANY = rf"(?:/{_SEGMENT}+)"  # possessive with the + that _SEGMENT ends with: a segment is taken whole or not at all


def _parts(pattern: str) -> list[list[str]]:
    """Split a pattern at its ``**``: what stands before, between and behind them."""
    parts: list[list[str]] = [[]]
    for segment in pattern.split("/"):
        if segment == "**":
            parts.append([])
        else:
            parts[-1].append(segment)
    return parts


def _fixed(segments: list[str]) -> str:
    return "".join(_ANY if segment == "*" else "/" + re.escape(segment) for segment in segments)


def matches(pattern: str, topic: str) -> bool:
    """Tell whether a topic matches a pattern (an exact topic is a pattern that matches itself)."""
    return compile_pattern(pattern).fullmatch("/" + topic) is not None


def covers(patterns: Sequence[str], pattern: str) -> bool:
    """Tell whether every topic that a pattern matches is matched by at least one of ``patterns``, too.

    The pattern is walked together with the set of places that the others may be at (the subset construction). Where
    that takes more than ``COVER_STEPS_MAX`` steps, as only patterns made for it do, the answer is no.
    """
    others = _Places(patterns)
    segments = pattern.split("/")
    steps = 0
    to_do = [(place, others.start) for place in _reached(segments, 0)]
    seen: set[tuple[int, int]] = set()
    while to_do:
        place, there = to_do.pop()
        if place == len(segments):
            continue
        segment = segments[place]
        # Of all that a wildcard stands for, only what the others name makes a difference, and one that none names.
        for name in others.names if segment in {"*", "**"} else [segment]:
            steps += 1
            now_there = others.behind(there, name)
            for now in _reached(segments, place if segment == "**" else place + 1):
                if now == len(segments) and not now_there & others.ends:
                    return False
                if (now, now_there) not in seen:
                    seen.add((now, now_there))
                    to_do.append((now, now_there))
        if steps > COVER_STEPS_MAX:
            return False
    return True


def _reached(segments: Sequence[str], place: int) -> list[int]:
    """Return a place in a pattern, and those behind it that can be reached without another segment of a topic."""
    places = [place]
    while place < len(segments) and segments[place] == "**":
        place += 1
        places.append(place)
    return places


class _Places:
    """Sets of places in several patterns, as the bits of a number: the places of one behind those of the other."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self.ends = first = self._many = self._one = 0
        self._named: dict[str, int] = {}
        bit = 1
        for pattern in patterns:
            first |= bit
            for segment in pattern.split("/"):
                if segment == "**":
                    self._many |= bit
                elif segment == "*":
                    self._one |= bit
                else:
                    self._named[segment] = self._named.get(segment, 0) | bit
                bit <<= 1
            self.ends |= bit
            bit <<= 1
        self.start = self._with_reached(first)
        self.names = [*self._named, ""]

    def behind(self, there: int, name: str) -> int:
        """Return the places that a segment of a topic leads to."""
        taken = there & (self._one | self._named.get(name, 0))
        return self._with_reached(taken << 1 | there & self._many)

    def _with_reached(self, there: int) -> int:
        while more := (there & self._many) << 1 & ~there:
            there |= more
        return there
