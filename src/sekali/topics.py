"""Topic names and the patterns that readers match them with.

A topic is a path such as ``app/prod/api``. In a pattern ``*`` stands for exactly one segment and ``**`` for any number
of segments, none included: ``app/*/api``, ``app/**``. No character of a pattern is legal in a topic, so a text is
either a topic or a pattern, never both.
"""

import re
from functools import lru_cache

TOPIC_BYTES_MAX = 255

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
