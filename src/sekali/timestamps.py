"""RFC 3339 date-times to and from integer nanoseconds since 1970 in UTC.

The range is what 64 bits of nanoseconds hold in whole years: 1678 to 2261. ``datetime`` stops at microseconds, so the
fraction is read and written here.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import numpy as np

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

_MANY = 32  # from so many on numpy pays (measured)
_WIDTHS_MAX = 4
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"0" * 9)
_MINUTE_WIDTH, _SECOND_WIDTH = len("YYYY-MM-DDTHH:MM:"), len("YYYY-MM-DDTHH:MM:SS")
# What a digit counts, in nanoseconds, from the seconds on: two digits, the point, the fraction.
_DIGIT_NS = np.array([10**10, 10**9, 0, *(10**power for power in reversed(range(FRACTION_DIGITS_MAX)))])
_DAY_SECONDS = 86_400


def parse_timestamps(texts: Sequence[str]) -> list[int]:
    """Parse many date-times; several times faster than one by one where they are written alike.

    Raises:
        ValueError: as ``parse_timestamp``.

    """
    if len(texts) >= _MANY:
        alike = _parse_alike(texts)
        if alike is not None:
            return alike
        widths = set(map(len, texts))
        if 1 < len(widths) <= _WIDTHS_MAX:  # some publishers leave out the zeros at the end of a fraction
            return _parse_by_width(texts, widths)
    return [parse_timestamp(text) for text in texts]


def _parse_by_width(texts: Sequence[str], widths: set[int]) -> list[int]:
    parsed = {width: iter(parse_timestamps([text for text in texts if len(text) == width])) for width in widths}
    return [next(parsed[len(text)]) for text in texts]


def _parse_alike(texts: Sequence[str]) -> list[int] | None:
    """Parse date-times as columns. None where they are not all written like the first, or need a closer look."""
    first, count, width = texts[0], len(texts), len(texts[0]) + 1
    first_ns = parse_timestamp(first)
    match = _DATE_TIME.fullmatch(first)
    assert match is not None  # it was parsed
    zone_start = max(match.end(3), _SECOND_WIDTH)
    lines = ("\n".join(texts) + "\n").encode()
    # The first is well formed, so all are that have digits where it has them and its other characters elsewhere.
    if lines.translate(_DIGITS_TO_ZERO) != lines[:width].translate(_DIGITS_TO_ZERO) * count:
        return None
    rows = np.frombuffer(lines, np.uint8).reshape(count, width)
    if (rows[:, zone_start:] != rows[0, zone_start:]).any():
        return None
    if (rows[:, :_MINUTE_WIDTH] == rows[0, :_MINUTE_WIDTH]).all():
        minutes = np.array([_minute_seconds(first[:_MINUTE_WIDTH])])
    else:
        minutes = np.array([_minute_seconds(text[:_MINUTE_WIDTH]) for text in texts])
    weights = _DIGIT_NS[: zone_start - _MINUTE_WIDTH]
    ns_of_minute = rows[:, _MINUTE_WIDTH:zone_start] @ weights - ord("0") * weights.sum()
    if (
        ns_of_minute.max() >= 60 * NS_PER_SECOND  # a leap second, or a fault
        or minutes.min() < _RANGE_START_SECONDS + _DAY_SECONDS
        or minutes.max() >= _RANGE_END_SECONDS - _DAY_SECONDS
    ):
        return None
    local_ns = minutes * NS_PER_SECOND + ns_of_minute
    parsed: list[int] = (local_ns + (first_ns - local_ns[0])).tolist()  # the zone is that of the first
    return parsed


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


_MANY_WRITTEN = 100  # from so many on numpy pays (measured)
_MINUTES = np.array([b"T%02d:%02d:" % divmod(minute, 60) for minute in range(24 * 60)])
_TWO_DIGITS = np.array([b"%02d" % number for number in range(100)])
_THREE_DIGITS = np.array([b"%03d" % number for number in range(1000)])
_LINE = np.dtype(
    [
        ("date", "S10"),
        ("minute", "S7"),
        ("second", "S2"),
        ("point", "S1"),
        ("milli", "S3"),
        ("micro", "S3"),
        ("nano", "S3"),
        ("end", "S2"),
    ]
)


def format_timestamps(timestamps_ns: Sequence[int]) -> list[str]:
    """Write many, each as ``format_timestamp`` does; several times faster."""
    distinct = set(timestamps_ns)
    if len(distinct) * 8 <= len(timestamps_ns):  # when events were committed: many at a time
        texts = {timestamp_ns: format_timestamp(timestamp_ns) for timestamp_ns in distinct}
        return [texts[timestamp_ns] for timestamp_ns in timestamps_ns]
    if len(timestamps_ns) < _MANY_WRITTEN:
        return [format_timestamp(timestamp_ns) for timestamp_ns in timestamps_ns]
    return _format_as_columns(timestamps_ns)


def _format_as_columns(timestamps_ns: Sequence[int]) -> list[str]:
    seconds, fraction = np.divmod(np.array(timestamps_ns), NS_PER_SECOND)
    minutes, second = np.divmod(seconds, 60)
    days, minute = np.divmod(minutes, 24 * 60)
    micros, nano = np.divmod(fraction, 1000)
    milli, micro = np.divmod(micros, 1000)
    dates, date = np.unique(days, return_inverse=True)
    lines = np.empty(len(timestamps_ns), _LINE)
    lines["date"] = np.datetime_as_string(dates.view("datetime64[D]")).astype("S10").take(date)
    lines["minute"] = _MINUTES.take(minute)
    lines["second"] = _TWO_DIGITS.take(second)
    lines["point"] = b"."
    for name, digits in (("milli", milli), ("micro", micro), ("nano", nano)):
        lines[name] = _THREE_DIGITS.take(digits)
    # All with as many digits as most have; the few others are written anew.
    groups = np.where(nano > 0, 3, np.where(micro > 0, 2, np.where(milli > 0, 1, 0)))
    usual = np.bincount(groups).argmax()
    width = _SECOND_WIDTH + (1 + 3 * int(usual) if usual else 0)
    characters = lines.view(np.uint8).reshape(len(lines), _LINE.itemsize)[:, : width + 2]
    characters[:, width:] = list(b"Z\n")
    texts = characters.tobytes().decode().split("\n")[:-1]
    for place in np.flatnonzero(groups != usual).tolist():
        texts[place] = format_timestamp(timestamps_ns[place])
    return texts
