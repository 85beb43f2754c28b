"""RFC 3339 date-times to and from integer nanoseconds since 1970 in UTC.

The range is what 64 bits of nanoseconds hold in whole years: 1678 to 2261. ``datetime`` stops at microseconds, so the
fraction is read and written here.
"""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

NS_PER_SECOND = 1_000_000_000
YEAR_MIN, YEAR_MAX = 1678, 2261
FRACTION_DIGITS_MAX = 9

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DATE_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:)(\d\d)(?:\.(\d+))?(?:([Zz])|([+-])(\d\d):(\d\d))?",
    re.ASCII,
)
_SHAPE = "not an RFC 3339 date-time such as 2026-11-23T10:15:30.123Z"


@lru_cache(maxsize=4096)
def _minute_seconds(minute: str) -> int:
    """Seconds since the epoch of ``YYYY-MM-DDTHH:MM:``, read as UTC. Cached: events come in runs of one minute."""
    moment = datetime.fromisoformat(f"{minute[:10]}T{minute[11:16]}:00+00:00")
    return (moment - _EPOCH) // timedelta(seconds=1)


def parse_timestamp(text: str) -> int:
    """Return the nanoseconds since the epoch of an RFC 3339 date-time.

    A time without a zone is UTC, a space may stand for the ``T``, and a leap second (``:60``) is read as the second
    that follows it, which is how POSIX counts.

    Raises:
        ValueError: the text is no such date-time, or outside the range; the message says which.

    """
    match = _DATE_TIME.fullmatch(text)
    if match is None:
        raise ValueError(_SHAPE)
    minute, second, fraction, zulu, sign, offset_hours, offset_minutes = match.groups()
    try:
        seconds = _minute_seconds(minute) + int(second)
    except ValueError:
        raise ValueError(f"{_SHAPE}: there is no such day or time") from None
    if second > "59" and not (second == "60" and minute[14:16] == "59"):
        raise ValueError(f"{_SHAPE}: seconds end at 59, or at 60 for a leap second")
    if zulu is None and sign is not None:
        if offset_hours > "23" or offset_minutes > "59":
            raise ValueError(f"{_SHAPE}: the offset goes up to 23:59")
        offset_seconds = int(offset_hours) * 3600 + int(offset_minutes) * 60
        seconds += -offset_seconds if sign == "+" else offset_seconds
    if not _RANGE_START_SECONDS <= seconds < _RANGE_END_SECONDS:
        raise ValueError(f"outside the years {YEAR_MIN} to {YEAR_MAX}")
    if fraction is None:
        return seconds * NS_PER_SECOND
    if len(fraction) > FRACTION_DIGITS_MAX:
        raise ValueError(f"{len(fraction)} fractional digits, at most {FRACTION_DIGITS_MAX} are kept")
    return seconds * NS_PER_SECOND + int(fraction.ljust(FRACTION_DIGITS_MAX, "0"))


_RANGE_START_SECONDS = _minute_seconds(f"{YEAR_MIN}-01-01T00:00:")
_RANGE_END_SECONDS = _minute_seconds(f"{YEAR_MAX + 1}-01-01T00:00:")


@lru_cache(maxsize=4096)
def _format_second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


def format_timestamp(timestamp_ns: int) -> str:
    """Write nanoseconds since the epoch as RFC 3339 in UTC, with 0, 3, 6 or 9 fractional digits."""
    seconds, ns = divmod(timestamp_ns, NS_PER_SECOND)
    if ns == 0:
        return _format_second(seconds) + "Z"
    digits = f"{ns:09d}"
    while digits.endswith("000"):
        digits = digits[:-3]
    return f"{_format_second(seconds)}.{digits}Z"
