import json
from decimal import Decimal
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from sekali.jsonvalue import PayloadFault, canonical, clean_payload, clean_payloads, equal, is_readable, nesting_depth

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text('ab:"\\', max_size=3), children, max_size=4)
    ),
    max_leaves=12,
)
# Texts that are nearly JSON, to find where the quick check and the careful one differ.
fragments = st.lists(
    st.sampled_from(
        [
            '{"a":',
            '{"a":1,"a":2}',
            "[",
            "]",
            "}",
            '"x:y"',
            "1",
            "-0.5e3",
            ",",
            "1e999",
            '"\\u00e9"',
            "\n",
            " ",
            "9" * 101,
            "[" * 70 + "]" * 70,
            "null",
            '"é"',
            '"' + "5" * 120 + '"',
            '{"k":{"k":1}}',
            '{"a":1,"a":"\\u003a"}',
            '{"a":":","a":"\\u003A"}',
            '{"\\u0061":1,"a":2}',
            '{"a" :1,"a": 2}',
            '{"a":{":":1},"a":{}}',
            '"\\\\u003a:"',
            "9" * 100,
            "1e308",
        ]
    ),
    max_size=8,
).map("".join)


def spelled(value: Any, draw_space: str) -> bytes:
    return json.dumps(value, indent=None, separators=("," + draw_space, ":" + draw_space), ensure_ascii=False).encode()


def oracle(value: Any) -> Any:
    """A form in which Python's equality is JSON's: no 1 == True, numbers exact."""
    match value:
        case bool() | None | str():
            return (type(value).__name__, value)
        case int() | Decimal():
            return ("number", Decimal(value))
        case list():
            return [oracle(element) for element in value]
        case dict():
            return {key: oracle(member) for key, member in value.items()}
    raise AssertionError(value)


def exact(payload: bytes) -> Any:
    return oracle(json.loads(payload, parse_float=Decimal))


@given(values, values)
def test_equality_is_that_of_json_values(one: Any, other: Any) -> None:
    first, second = spelled(one, ""), spelled(other, " ")
    assert equal(first, second) == (exact(first) == exact(second))
    assert equal(first, spelled(one, "\n "))


@given(values)
def test_canonical_is_valid_json_of_the_same_value_and_stays(value: Any) -> None:
    payload = spelled(value, " ")
    assert canonical(canonical(payload)) == canonical(payload)
    assert exact(canonical(payload)) == exact(payload)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "1.0"), ("10", "1e1"), ("0.00", "-0"), ("1E+2", "100"), ("-1.50e-3", "-0.0015"), ("1e-400", "10e-401")],
)
def test_the_spelling_of_a_number_does_not_matter(one: str, other: str) -> None:
    assert equal(one.encode(), other.encode())


def test_numbers_that_floats_cannot_tell_apart_differ() -> None:
    assert not equal(b"9007199254740993", b"9007199254740992")
    assert not equal(b"1e-400", b"0")


# Among so much else the quick check counts in another way.
CROWDS = [[], [b'{"url":"http://a/b","n":[1,{"k":-1.5}]}'] * 150]


@pytest.mark.parametrize("crowd", CROWDS)
@given(st.lists(fragments.map(str.encode), min_size=1, max_size=3))
def test_what_the_quick_check_lets_through_the_careful_one_leaves_as_it_is(
    crowd: list[bytes], payloads: list[bytes]
) -> None:
    kept = [payload for payload in payloads if _is_grammatical(payload)]
    quick = clean_payloads(crowd + kept)
    if quick is not None:
        assert quick == crowd + kept
        assert [clean_payload(payload) for payload in kept] == kept


@pytest.mark.parametrize("crowd", CROWDS)
@pytest.mark.parametrize(
    "payload",
    [
        b'{"a":1,"a":2}',
        b'{"a" :1,"a"\t:2}',
        b'{"a":1,"\\u0061":2}',
        b'[{"a":":","a":":"}]',
        b'{"a":1,"a":"\\u003a"}',
        b'{"a":1,"a":"\\u003A"}',
        b'{"a":{"b":1,"b":"\\u003A"}}',
        b'{"\\u003a":1,":":2}',
    ],
)
def test_the_quick_check_finds_keys_that_are_there_twice(crowd: list[bytes], payload: bytes) -> None:
    assert clean_payload(payload) != payload
    assert clean_payloads([*crowd, payload, b'"x:y"']) is None


@pytest.mark.parametrize("crowd", CROWDS)
@given(st.lists(values, max_size=5))
def test_the_quick_check_lets_usual_payloads_through(crowd: list[bytes], some: list[Any]) -> None:
    payloads = [json.dumps(value, ensure_ascii=False).encode() for value in some]
    assert clean_payloads(crowd + payloads) == crowd + payloads


@pytest.mark.parametrize("crowd", CROWDS)
@pytest.mark.parametrize("start", range(12))
def test_the_quick_check_finds_the_longest_number_and_the_deepest_value_wherever_they_are(
    crowd: list[bytes], start: int
) -> None:
    before = [b'"%b"' % (b"x" * start)]
    for good, bad in (
        (b"1" * 100, b"1" * 101),
        (b"-" + b"0.5e-1" + b"0" * 90, b"-" + b"0.5e-" + b"0" * 95),
        (b"[" * 64 + b"]" * 64, b"[" * 65 + b"]" * 65),
        (b'{"a":' * 64 + b"1" + b"}" * 64, b'{"a":' * 65 + b"1" + b"}" * 65),
    ):
        assert clean_payloads([*crowd, *before, good, *crowd]) is not None
        assert clean_payloads([*crowd, *before, bad, *crowd]) is None


@given(st.lists(fragments.map(str.encode), max_size=3))
def test_what_is_stored_is_read_alike_by_every_parser(payloads: list[bytes]) -> None:
    for payload in filter(_is_grammatical, payloads):
        try:
            stored = clean_payload(payload)
        except PayloadFault:
            continue
        json.loads(stored, object_pairs_hook=_require_each_key_once)
        assert b"\n" not in stored
        assert exact(stored) == exact(payload)
        assert is_readable([stored])


def _require_each_key_once(pairs: list[tuple[str, Any]]) -> None:
    keys = [key for key, _ in pairs]
    assert len(keys) == len(set(keys)), keys


def _is_grammatical(payload: bytes) -> bool:
    """What msgspec.Raw lets through."""
    try:
        return bytes(msgspec.json.decode(payload, type=msgspec.Raw)) == payload
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False


@pytest.mark.parametrize(
    ("payload", "stored"),
    [
        (b'{"a":1,"a":1.50}', b'{"a":1.50}'),
        (b'{"a":{"b":1,"b":[1e2]},"c":1}', b'{"a":{"b":[1e2]},"c":1}'),
        (b'[{"a":1,\n"b":2}]', b'[{"a":1,"b":2}]'),
        (b'{"a" : 1.0}', b'{"a" : 1.0}'),
        (b'"' + b"1" * 200 + b'"', b'"' + b"1" * 200 + b'"'),
        (b"[" * 64 + b"]" * 64, b"[" * 64 + b"]" * 64),
        (b"1" * 100, b"1" * 100),
    ],
)
def test_payloads_are_kept_as_sent_or_made_unambiguous(payload: bytes, stored: bytes) -> None:
    assert clean_payload(payload) == stored


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"[" * 65 + b"]" * 65, "64 levels"),
        (b"1" * 101, "101 characters"),
        (b"1e999", "binary64"),
        (b"-1e400", "binary64"),
        (b'"\xff"', "UTF-8"),
        (b'"\xed\xa0\x80"', "UTF-8"),
    ],
)
def test_bad_payloads(payload: bytes, message: str) -> None:
    with pytest.raises(PayloadFault, match=message):
        clean_payload(payload)
    assert clean_payloads([b"1", payload]) is None


@pytest.mark.parametrize("damaged", [b"", b"1,2", b'1],"b":[2', b"{}{}", b'"\xff"', b"1e999", b"[1"])
def test_a_damaged_payload_is_seen_among_good_ones(damaged: bytes) -> None:
    assert is_readable([]) and is_readable([b"1", b'"\xc3\xa9"'])
    assert not is_readable([b"[1", damaged, b"2]"]) and not is_readable([b"1", damaged])


def test_depth_ignores_brackets_in_strings_and_ends_on_broken_ones() -> None:
    assert nesting_depth(b'["[[[", {"a]":[1]}]') == 3
    assert nesting_depth(b'["' + b'\\"' * 1_000_000) == 1
