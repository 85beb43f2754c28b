import hypothesis.strategies as st
import pytest
from hypothesis import given

from sekali.topics import is_pattern, matches, pattern_fault, topic_fault

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
