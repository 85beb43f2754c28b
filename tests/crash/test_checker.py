"""The checker that the kills rest on sees each kind of harm, and calls it by its name."""

import pytest

from crash.checker import Findings, Read, Sent, check

NOTHING = {
    "lost_prefix": 0,
    "lost_middle": 0,
    "lost_postfix": 0,
    "unexpected": 0,
    "duplicated": 0,
    "gaps": 0,
    "moved": 0,
    "damaged": 0,
}


def sent() -> dict[str, Sent]:
    """Two writers; of a's six events the last is unanswered, of b's two both are acknowledged."""
    return {"a": Sent(6, {0: 1, 1: 3, 2: 4, 3: 5, 4: 6}), "b": Sent(2, {0: 2, 1: 7})}


def log(*more: Read) -> list[Read]:
    """The log that both writers expect, and what else is in it."""
    places = [("a", 0), ("b", 0), ("a", 1), ("a", 2), ("a", 3), ("a", 4), ("b", 1)]
    return [*(Read(seq, writer, counter, True) for seq, (writer, counter) in enumerate(places, 1)), *more]


def figures(findings: Findings, **expected: int) -> None:
    assert findings.harm == NOTHING | expected


def test_a_log_that_holds_what_was_acknowledged_is_clean() -> None:
    findings = check(sent(), log())
    figures(findings)
    assert [(row.writer, row.attempted, row.acknowledged, row.read) for row in findings.rows] == [
        ("a", 6, 5, 5),
        ("b", 2, 2, 2),
    ]
    assert findings.total("recovered") == 0


def test_what_was_never_acknowledged_may_be_there() -> None:
    findings = check(sent(), log(Read(8, "a", 5, True)))
    figures(findings)
    assert findings.rows[0].recovered == 1 and findings.rows[1].recovered == 0


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ({1}, {"lost_prefix": 1}),
        ({1, 3}, {"lost_prefix": 2}),
        ({4}, {"lost_middle": 1}),
        ({5, 6}, {"lost_postfix": 2}),
        ({1, 4, 6}, {"lost_prefix": 1, "lost_middle": 1, "lost_postfix": 1}),
        ({1, 3, 4, 5, 6}, {"lost_postfix": 5}),
        ({2, 7}, {"lost_postfix": 2}),
    ],
)
def test_what_was_acknowledged_and_is_missing_is_lost(missing: set[int], expected: dict[str, int]) -> None:
    left = [read for read in log() if read.seq not in missing]
    findings = check(sent(), left)
    assert {name: count for name, count in findings.harm.items() if count and name != "gaps"} == expected
    assert findings.total("lost") == len(missing)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (Read(8, "a", 6, True), {"unexpected": 1}),
        (Read(8, "a", -1, True), {"unexpected": 1}),
        (Read(8, "c", 0, True), {"unexpected": 1}),
        (Read(8, "a", 2, True), {"duplicated": 1, "moved": 1}),
        (Read(8, "a", 5, False), {"damaged": 1}),
        (Read(9, "a", 5, True), {"gaps": 1}),
        (Read(7, "a", 5, True), {"gaps": 1}),
        (Read(3, "a", 5, True), {"gaps": 1}),
    ],
)
def test_what_should_not_be_there_is_found(more: Read, expected: dict[str, int]) -> None:
    figures(check(sent(), log(more)), **expected)


def test_a_log_that_does_not_begin_with_1_has_a_gap() -> None:
    assert check({}, [Read(2, "a", 0, True)]).gaps == 1


def test_an_event_at_another_seq_than_told_has_moved() -> None:
    account = sent()
    account["a"].acknowledged[4] = 5
    figures(check(account, log()), moved=1)
