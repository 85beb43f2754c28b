from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekali.client.timepattern import TimePattern

NOW_NS = int(datetime(2026, 11, 23, 10, 0, tzinfo=UTC).timestamp()) * 1_000_000_000


@pytest.mark.parametrize(
    ("pattern", "line", "time"),
    [
        ("%Y-%m-%d %H:%M:%S,%f", "2015-07-29 17:41:44,747 - INFO", "2015-07-29T17:41:44.747Z"),
        ("%y%m%d %H%M%S", "081109 203615 148 INFO", "2008-11-09T20:36:15Z"),
        ("%a %b %d %H:%M:%S %Y", "[Sun Dec 04 04:47:44 2005] [notice]", "2005-12-04T04:47:44Z"),
        ("%b %d %H:%M:%S", "Nov 10 06:55:46 LabSZ sshd[24200]:", "2026-11-10T06:55:46Z"),
        ("%b %d %H:%M:%S", "Nov  1 06:55:46 LabSZ", "2026-11-01T06:55:46Z"),
        ("%d/%b/%Y:%H:%M:%S %z", '1.2.3.4 - - [10/Oct/2000:13:55:36 -0700] "GET', "2000-10-10T20:55:36Z"),
        ("%Y-%m-%dT%H:%M:%S.%f%z", "x 2026-01-02T03:04:05.123456789+01:00 y", "2026-01-02T02:04:05.123456789Z"),
        ("%Y-%m-%d %H:%M:%S %Z", "2026-01-02 03:04:05 UTC", "2026-01-02T03:04:05Z"),
        ("%Y-%j", "2026-032", "2026-02-01T00:00:00Z"),
        ("%d.%m.%Y %I:%M %p", "at 3.4.2026 02:05 PM", "2026-04-03T14:05:00Z"),
        ("100%% %Y-%m-%d", "100% 2026-01-02", "2026-01-02T00:00:00Z"),
        ("[%Y-%m-%d]", "(2025-01-01) [2026-01-02]", "2026-01-02T00:00:00Z"),
        # The first that is a time, not the first that looks like one.
        ("%Y-%m-%d", "2026-02-30 2026-02-28", "2026-02-28T00:00:00Z"),
        # Not out of the middle of a number.
        ("%Y-%m-%d", "12026-02-280 2026-02-27", "2026-02-27T00:00:00Z"),
        ("%Y-%m-%d", "no time at all", None),
    ],
)
def test_finds_the_time_in_a_line(pattern: str, line: str, time: str | None) -> None:
    assert TimePattern(pattern).find(line, NOW_NS) == time


@pytest.mark.parametrize(
    ("line", "time"),
    [
        ("Nov 23 23:00:00", "2026-11-23T23:00:00Z"),  # a clock that is ahead
        ("Nov 24 10:00:00", "2026-11-24T10:00:00Z"),  # a day ahead, not more
        ("Nov 24 10:00:01", "2025-11-24T10:00:01Z"),
        ("Dec 31 23:59:59", "2025-12-31T23:59:59Z"),
        ("Jan 01 00:00:00", "2026-01-01T00:00:00Z"),
        ("Feb 29 00:00:00", None),  # neither in 2026 nor in 2025
    ],
)
def test_a_time_without_a_year_is_the_latest_that_is_not_ahead(line: str, time: str | None) -> None:
    assert TimePattern("%b %d %H:%M:%S").find(line, NOW_NS) == time


def test_29_february_without_a_year_in_a_leap_year() -> None:
    now_ns = int(datetime(2028, 3, 1, tzinfo=UTC).timestamp()) * 1_000_000_000
    assert TimePattern("%b %d %H").find("Feb 29 07", now_ns) == "2028-02-29T07:00:00Z"


@given(
    st.datetimes(datetime(1678, 1, 1), datetime(2261, 12, 31)),
    st.text(st.characters(exclude_categories=["Nd", "Cs"])),
    st.sampled_from(["%Y-%m-%d %H:%M:%S.%f", "%d/%b/%Y %I:%M:%S,%f %p", "%B %d %H:%M:%S.%f %Y", "%f %S %M %H %j %Y"]),
)
def test_what_strftime_writes_is_found_anywhere(moment: datetime, around: str, pattern: str) -> None:
    line = f"{around} {moment.strftime(pattern)} {around}"
    expected = moment.isoformat(timespec="microseconds") + "Z"
    assert TimePattern(pattern).find(line, NOW_NS) == expected


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("", "which day"),
        ("%H:%M:%S", "which day"),
        ("%Y-%m", "which day"),
        ("%Q %d %m", "%Q is not known"),
        ("%d %m %", "% is not known"),
        ("%d %d %m", "only once"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused(pattern: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TimePattern(pattern)
