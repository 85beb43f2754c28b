"""Figures beside what they are to reach."""

from typing import Any

import pytest

from sekali.bench import targets
from sekali.bench.targets import Target


def target(**changes: Any) -> Target:
    usual: dict[str, Any] = {"group": 1, "what": "w", "measured": 1.0, "bound": 2.0, "text": "{:.1f} s"}
    return Target(**(usual | changes))


@pytest.mark.parametrize(
    ("measured", "at_most", "met"),
    [(2.0, False, True), (1.9, False, False), (2.0, True, True), (2.1, True, False), (None, True, False)],
)
def test_a_target_is_met_from_its_bound_on(measured: float | None, at_most: bool, met: bool) -> None:
    assert target(measured=measured, at_most=at_most).met is met


def test_rows_are_for_people_and_by_group() -> None:
    rows = targets.rows([target(group=5), target(measured=None, at_most=True)])
    assert rows == [
        ("batches", "w", "at most 2.0 s", "not measured", "missed"),
        ("disk", "w", "at least 2.0 s", "1.0 s", "missed"),
    ]
    assert {len(row) for row in rows} == {len(targets.COLUMNS)}


def test_targets_come_back_from_a_document() -> None:
    given = [target(), target(measured=None, at_most=True)]
    document = {"targets": targets.to_documents(given)}
    assert [one["met"] for one in document["targets"]] == [False, False]
    assert targets.from_document(document) == given
