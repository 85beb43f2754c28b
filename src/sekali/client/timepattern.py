"""Finds the time in a line of a log, by a pattern in the language of ``strptime``."""

import calendar
import re
from datetime import UTC, datetime, timedelta

_NS_PER_SECOND = 1_000_000_000
FRACTION_DIGITS_MAX = 9
_MICROSECOND_DIGITS = 6


def _names(names: list[str]) -> str:
    return "|".join(re.escape(name) for name in sorted(filter(None, names), key=len, reverse=True))


# What each directive may look like, in the alternatives that strptime tries. The fraction alone goes beyond strptime,
# which stops at microseconds.
_DIRECTIVES = {
    "Y": r"\d{4}",
    "y": r"\d\d",
    "m": r"1[0-2]|0[1-9]|[1-9]",
    "d": r"3[01]|[12]\d|0[1-9]|[1-9]| [1-9]",
    "j": r"36[0-6]|3[0-5]\d|[12]\d\d|0[1-9]\d|00[1-9]|[1-9]\d|0[1-9]|[1-9]",
    "H": r"2[0-3]|[01]\d|\d",
    "I": r"1[0-2]|0[1-9]|[1-9]| [1-9]",
    "M": r"[0-5]\d|\d",
    "S": r"6[01]|[0-5]\d|\d",
    "f": rf"\d{{1,{FRACTION_DIGITS_MAX}}}",
    "p": r"am|pm",
    "b": _names(list(calendar.month_abbr)),
    "B": _names(list(calendar.month_name)),
    "a": _names(list(calendar.day_abbr)),
    "A": _names(list(calendar.day_name)),
    "z": r"[+-]\d\d:?[0-5]\d|Z",
    "Z": r"UTC|GMT",
}
_NUMBERS = frozenset("YymdjHIMSf")
_DAY_SETS = ({"d", "m"}, {"d", "b"}, {"d", "B"}, {"j"})


class TimePattern:
    """A ``strptime`` format such as ``%Y-%m-%d %H:%M:%S,%f``, to be found anywhere in a line.

    A time without a zone is UTC. A time without a year is of this year, or of the year before if that would be more
    than a day ahead. Fractions keep nine digits.

    Raises:
        ValueError: the format has a directive that is not known, or does not say which day.

    """

    def __init__(self, strptime_format: str) -> None:
        parts = re.findall(r"%.?|\s+|[^%\s]+", strptime_format, re.DOTALL)
        directives = [part[1:] for part in parts if part.startswith("%") and part != "%%"]
        for directive in directives:
            if directive not in _DIRECTIVES:
                known = " ".join("%" + name for name in _DIRECTIVES)
                raise ValueError(f"%{directive} is not known; known are {known} %%")
        if len(set(directives)) < len(directives):
            raise ValueError("a directive may stand only once")
        if not any(days <= set(directives) for days in _DAY_SETS):
            raise ValueError("it does not say which day: it needs %d with %m, %b or %B, or %j")
        self._has_year = bool({"Y", "y"} & set(directives))
        self._format = strptime_format
        expression = "".join(map(_expression, parts))
        # A number is not taken out of the middle of a longer one.
        before = r"(?<!\d)" if parts[0][1:] in _NUMBERS else ""
        after = r"(?!\d)" if parts[-1][1:] in _NUMBERS else ""
        self._search = re.compile(before + expression + after, re.ASCII | re.IGNORECASE)

    def find(self, line: str, now_ns: int) -> str | None:
        """Return the first time in a line as RFC 3339 in UTC, None if there is none.

        ``now_ns`` is nanoseconds since 1970; it settles the year where the line has none.
        """
        now = datetime.fromtimestamp(now_ns // _NS_PER_SECOND, UTC)
        for match in self._search.finditer(line):
            text, fraction = match[0], match.groupdict().get("f") or ""
            if len(fraction) > _MICROSECOND_DIGITS:
                cut = match.end("f") - match.start() - (len(fraction) - _MICROSECOND_DIGITS)
                text = text[:cut] + text[match.end("f") - match.start() :]
            moment = self._parse(text, now)
            if moment is not None:
                return moment.isoformat()[:19] + ("." + fraction if fraction else "") + "Z"
        return None

    def _parse(self, text: str, now: datetime) -> datetime | None:
        if self._has_year:
            return _strptime(text, self._format)
        for year in (now.year, now.year - 1):
            # With the year in the text, because 29 February is no day of the year that strptime would assume.
            moment = _strptime(f"{year} {text}", f"%Y {self._format}")
            if moment is not None and moment <= now + timedelta(days=1):
                return moment
        return None


def _expression(part: str) -> str:
    if part == "%%":
        return "%"
    if part.startswith("%"):
        return f"(?P<{part[1]}>{_DIRECTIVES[part[1]]})"
    return r"\s+" if part.isspace() else re.escape(part)


def _strptime(text: str, strptime_format: str) -> datetime | None:
    try:
        moment = datetime.strptime(text, strptime_format)  # noqa: DTZ007 - the next line settles the zone
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):  # no such day, or a year that datetime does not reach
        return None
