from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import hypothesis.strategies as st
import pytest
from hypothesis import given

from sekali.timestamps import format_timestamp, format_timestamps, parse_timestamp, parse_timestamps

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("1969-12-31T23:59:59.9Z", -100_000_000),
        ("1970-01-01 00:00:01", 1_000_000_000),
        ("1970-01-01t01:00:00+01:00", 0),
        ("1969-12-31T23:30:00-00:30", 0),
        ("1970-01-01T00:00:00-00:00", 0),
        ("1970-01-01T23:59:60z", 86_400_000_000_000),
        ("2024-02-29T00:00:00Z", 1_709_164_800_000_000_000),
    ],
)
def test_good_times(text: str, ns: int) -> None:
    assert parse_timestamp(text) == ns


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "1970-01-01",
        "1970-01-01T00:00Z",
        "1970-01-01T00:00:00.Z",
        "1970-01-01T00:00:00,5Z",
        "1970-01-01T00:00:00.1234567890Z",
        "1970-13-01T00:00:00Z",
        "2023-02-29T00:00:00Z",
        "1970-01-01T24:00:00Z",
        "1970-01-01T00:60:00Z",
        "1970-01-01T00:00:60Z",
        "1970-01-01T00:59:61Z",
        "1970-01-01T00:00:00+24:00",
        "1970-01-01T00:00:00+0100",
        "1970-01-01T00:00:00 Z",
        " 1970-01-01T00:00:00Z",
        "1970-01-01T00:00:00Z\n",
        "1677-12-31T23:59:59Z",
        "2262-01-01T00:00:00Z",
        "1678-01-01T00:00:00+00:01",
        "0000-01-01T00:00:00Z",
        "19700101T000000Z",
        "\u0661970-01-01T00:00:00Z",
    ],
)
def test_bad_times(text: str) -> None:
    with pytest.raises(ValueError, match=r"RFC 3339|years 1678 to 2261|at most 9"):
        parse_timestamp(text)


def test_the_range_ends_where_it_says() -> None:
    first, last = parse_timestamp("1678-01-01T00:00:00Z"), parse_timestamp("2261-12-31T23:59:59.999999999Z")
    assert -(2**63) <= first < last < 2**63
    assert format_timestamp(last) == "2261-12-31T23:59:59.999999999Z"


@given(st.integers(-9_214_560_000_000_000_000, 9_214_646_399_999_999_999))
def test_what_is_written_reads_back_the_same(ns: int) -> None:
    assert parse_timestamp(format_timestamp(ns)) == ns


moments = st.datetimes(
    datetime(1678, 1, 2),
    datetime(2261, 12, 30),
    timezones=st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m))),
)


@given(moments)
def test_agrees_with_the_standard_library(moment: datetime) -> None:
    expected_us = (moment - EPOCH) // timedelta(microseconds=1)
    assert parse_timestamp(moment.isoformat()) == expected_us * 1000


def outcome(parse: Callable[[], list[int]]) -> list[int] | None:
    try:
        return parse()
    except ValueError:
        return None


@st.composite
def written_alike(draw: st.DrawFn) -> list[str]:
    """Many date-times in one format, most of them of one minute; at times one of them is spoilt."""
    near = draw(moments)
    others = st.integers(-61, 61).map(lambda seconds: near + timedelta(seconds=seconds)) | moments
    some = [near, *draw(st.lists(others, max_size=3))]
    digits = draw(st.integers(0, 9))
    fractions = st.text("0123456789", min_size=digits, max_size=digits)
    zone = draw(st.sampled_from(["", "Z", "z", "+00:00", "-23:59", "+07:30"]))
    letter = draw(st.sampled_from("Tt "))
    texts = [
        moment.strftime(f"%Y-%m-%d{letter}%H:%M:%S") + ("." + draw(fractions) if digits else "") + zone
        for moment in some
    ]
    if draw(st.booleans()):
        texts = [text.replace("0" + zone, zone) if text.endswith("0" + zone) else text for text in texts]
    if draw(st.booleans()):
        place = draw(st.integers(0, len(texts) - 1))
        start = draw(st.integers(0, len(texts[place])))
        replaced = draw(st.integers(0, 2))
        put = draw(st.text("0123456789:.-+TZ \n\u0665", max_size=2) | st.sampled_from(["60", "9", "2", "+01:00"]))
        texts[place] = texts[place][:start] + put + texts[place][start + replaced :]
    return draw(st.permutations(texts * 12))


@given(written_alike())
def test_many_are_parsed_as_each_is(texts: list[str]) -> None:
    assert outcome(lambda: parse_timestamps(texts)) == outcome(lambda: [parse_timestamp(text) for text in texts])


@pytest.mark.parametrize("place", [0, 1, -1])
@pytest.mark.parametrize(
    ("usual", "odd"),
    [
        ("2026-01-01T00:00:00.12Z", "2026-01-01T00:59:60.12Z"),
        ("2026-01-01T00:00:00.12Z", "2026-02-29T00:00:00.12Z"),
        ("2026-01-01T00:00:00.12Z", "2026-W01-4T00:00:00.12Z"),
        ("2026-01-01T00:00:00.12Z", "2026-01-01T00:00:61.12Z"),
        ("2026-01-01T00:00:00.12Z", "2026-01-01T00:00:0:.12Z"),
        ("2026-01-01T00:00:00.12Z", "2026-01-01T00:00:00.1/Z"),
        ("2026-01-01T00:00:00.12Z", "2026-01-01T00:00:00.1é"),
        ("2026-01-01T00:00:00.12Z", "2026-01-01T00:00:00:12Z"),
        ("2026-01-01T00:00:00.12Z", "2026-01-01t00:00:00.12Z"),
        ("2026-01-01T00:00:00.12Z", "2026-01-01T00:00:00.12z"),
        ("2026-01-01T00:00:00.12Z", "2026-01-01T00:00:00.1Z\n"),
        ("2026-01-01T00:00:00.12Z", "1678-01-01T00:00:00.12Z"),
        ("2026-01-01T00:00:00.12Z", "2261-12-31T23:59:59.99Z"),
        ("2026-01-01T00:00:00.12Z", "0001-01-01T00:00:00.12Z"),
        ("2026-01-01T00:00:00.12Z", "9999-12-31T23:59:59.12Z"),
        ("2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00+01:00"),
        ("2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00-00:01"),
        ("2026-01-01T00:00:00+00:00", "2261-12-31T23:59:59-00:01"),
    ],
)
def test_one_odd_time_among_many(usual: str, odd: str, place: int) -> None:
    texts = [usual] * 40
    texts[place] = odd
    assert outcome(lambda: parse_timestamps(texts)) == outcome(lambda: [parse_timestamp(text) for text in texts])


def test_lines_that_only_look_alike_when_joined_are_not() -> None:
    shorter, longer = "2026-01-01T00:00:00", "Z\n2026-01-01T00:00:00Z"
    with pytest.raises(ValueError, match="RFC 3339"):
        parse_timestamps(["2026-01-01T00:00:00Z", shorter, longer, *["2026-01-01T00:00:00Z"] * 40])


written_ns = st.builds(
    lambda number, unit: number // unit * unit,
    st.integers(-9_214_560_000_000_000_000, 9_214_646_399_999_999_999) | st.integers(-(10**13), 10**13),
    st.sampled_from([1, 10**3, 10**6, 10**9, 60 * 10**9, 86_400 * 10**9]),
)


@given(st.lists(written_ns, max_size=6), st.sampled_from([0, 1, 7, 99, 150]), written_ns, st.integers(0, 10**9))
def test_many_are_written_as_each_is(some: list[int], others: int, start: int, step: int) -> None:
    moments_ns = some + [start // 2 + place * step for place in range(others)]
    assert format_timestamps(moments_ns) == [format_timestamp(ns) for ns in moments_ns]


def test_both_ends_of_the_range_and_each_length_are_written_in_one_page() -> None:
    first, last = parse_timestamp("1678-01-01T00:00:00Z"), parse_timestamp("2261-12-31T23:59:59.999999999Z")
    moments_ns = [first, last, -1, 0, 1, 10**3, 10**6, 10**9, *range(5 * 10**9, 5 * 10**9 + 200 * 10**6, 10**6)]
    assert format_timestamps(moments_ns) == [format_timestamp(ns) for ns in moments_ns]
