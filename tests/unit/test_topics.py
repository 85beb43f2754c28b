from functools import cache
from itertools import product

import hypothesis.strategies as st
import pytest
from hypothesis import given

from sekali.topics import covers, is_pattern, matches, pattern_fault, topic_fault

segments = st.text("ab~:", min_size=1, max_size=3)
paths = st.lists(segments, min_size=1, max_size=4).map("/".join)
patterns = st.lists(st.sampled_from(["*", "**"]) | segments, min_size=1, max_size=4).map("/".join)


@pytest.mark.parametrize("topic", ["a", "app/prod/api", "A.b_c~d:e@f=g-h/1", "...", "a" * 255])
def test_good_topics(topic: str) -> None:
    assert topic_fault(topic) is None
    assert pattern_fault(topic) is None
    assert not is_pattern(topic)


@pytest.mark.parametrize(
    "topic",
    ["", "/", "a/", "/a", "a//b", ".", "..", "a/./b", "a/..", "a b", "a\n", "é", "a" * 256, "a*", "*", "a/\x00"],
)
def test_bad_topics(topic: str) -> None:
    assert topic_fault(topic) is not None


@pytest.mark.parametrize("pattern", ["a**", "***", "a/*b", "**/", "", "a/[b]"])
def test_bad_patterns(pattern: str) -> None:
    assert pattern_fault(pattern) is not None


def reference_match(pattern: list[str], topic: list[str]) -> bool:
    """The definition, one segment at a time."""
    if not pattern:
        return not topic
    if pattern[0] == "**":
        return any(reference_match(pattern[1:], topic[count:]) for count in range(len(topic) + 1))
    return bool(topic) and pattern[0] in {"*", topic[0]} and reference_match(pattern[1:], topic[1:])


@given(patterns, paths)
def test_matching_is_segment_by_segment(pattern: str, topic: str) -> None:
    assert pattern_fault(pattern) is None
    assert matches(pattern, topic) == reference_match(pattern.split("/"), topic.split("/"))


@given(paths)
def test_a_topic_matches_itself(topic: str) -> None:
    assert matches(topic, topic)
    assert matches("**", topic)
    assert matches(f"{topic}/**", topic)
    assert not matches(f"{topic}/*", topic)


@given(patterns, paths)
def test_prefixes_of_segments_do_not_match(pattern: str, topic: str) -> None:
    """What stands between two ``**`` is found first where it fits, which must be at whole segments."""
    between = f"**/{pattern}/**/{topic}"
    for tried in (f"{topic}/{pattern}x/{topic}".replace("*", "b"), f"{pattern}/{topic}".replace("*", "b")):
        assert matches(between, tried) == reference_match(between.split("/"), tried.split("/"))


def matches_by_table(pattern: list[str], topic: list[str]) -> bool:
    """The definition, each question asked once."""

    @cache
    def rest_matches(at: int, of_topic: int) -> bool:
        if at == len(pattern):
            return of_topic == len(topic)
        if pattern[at] == "**":
            return rest_matches(at + 1, of_topic) or (of_topic < len(topic) and rest_matches(at, of_topic + 1))
        return of_topic < len(topic) and pattern[at] in {"*", topic[of_topic]} and rest_matches(at + 1, of_topic + 1)

    return rest_matches(0, 0)


@pytest.mark.parametrize(
    "pattern",
    [
        "/".join(["**", "a"] * 50 + ["b"]),
        "/".join(["**", "a"] * 51),
        "/".join(["**", "*"] * 51),
        "/".join(["**"] * 80 + ["b"]),
        "/".join(["**", "*", "*", "a"] * 25 + ["b"]),
        "/".join(["**", "a", "a", "b"] * 25),
    ],
)
@pytest.mark.parametrize(
    "topic", ["/".join(["a"] * 128), "/".join(["a"] * 127 + ["b"]), "/".join(["a", "a", "b"] * 42)]
)
def test_the_longest_patterns_are_no_harder_than_others(pattern: str, topic: str) -> None:
    """Tried one place after the other they would take longer than the universe has."""
    assert pattern_fault(pattern) is None and topic_fault(topic) is None
    assert matches(pattern, topic) == matches_by_table(pattern.split("/"), topic.split("/"))


few_patterns = st.lists(st.sampled_from(["*", "**", "a", "b"]), min_size=1, max_size=4).map("/".join)
# Whatever no pattern names is as good as "z"; longer topics than these lead to no place that a shorter one does not.
SHORT_TOPICS = ["/".join(segments) for length in range(1, 7) for segments in product("abz", repeat=length)]


@cache
def matched(pattern: str) -> frozenset[str]:
    return frozenset(topic for topic in SHORT_TOPICS if matches(pattern, topic))


@given(st.lists(few_patterns, max_size=3), few_patterns)
def test_patterns_cover_another_where_they_match_all_of_its_topics(others: list[str], pattern: str) -> None:
    assert covers(others, pattern) == (matched(pattern) <= frozenset[str]().union(*map(matched, others)))


@pytest.mark.parametrize(
    ("others", "pattern", "expected"),
    [
        (["app/**"], "app/prod/*", True),
        (["app/**"], "app", True),
        (["app/*"], "app/**", False),
        (["app/prod/api"], "app/prod/api", True),
        (["app/prod/api"], "app/prod/ap", False),
        (["a", "a/*", "a/*/**"], "a/**", True),
        (["*", "*/*/**"], "**", True),
        (["*/**", "x"], "**", True),
        ([], "a", False),
        (["**/a/**"], "**", False),
    ],
)
def test_covering_by_example(others: list[str], pattern: str, expected: bool) -> None:
    assert covers(others, pattern) is expected


def test_patterns_made_to_take_for_ever_cover_nothing() -> None:
    hostile = ["**/a" + "/*" * 50 + f"/{number}" for number in range(100)]
    assert not covers([*hostile, "**/a/**"], "**/a/**/" + "/".join(["a", "*"] * 30))
    assert covers(["**"], "**/a/**/" + "/".join(["a", "*"] * 30))
