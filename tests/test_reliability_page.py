"""The page on reliability names tests that exist, and figures that were measured."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?(?:::(\w+))?`", PAGE)))


def test_the_page_names_many_tests() -> None:
    assert len(NAMED) > 40


@pytest.mark.parametrize(("path", "outer", "inner"), NAMED)
def test_every_test_that_the_page_names_exists(path: str, outer: str, inner: str) -> None:
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
    assert {name for name in (outer, inner) if name} <= names


@pytest.mark.parametrize(
    "name", ["kills", "orders", "deliveries", "disk_faults", "flips", "fuzz", "followers", "compare"]
)
def test_every_figure_of_a_result_is_on_the_page(name: str) -> None:
    """The numbers that a line of the page takes from ``bench/results/<name>.json`` are those of that file."""
    result: Any = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_bytes())
    (line,) = re.findall(rf"<!-- {name}: (.*?) -->", PAGE)
    for path, shown in (part.split("=", 1) for part in line.split("; ")):
        value = result
        for key in path.split("/"):
            value = value[int(key) if isinstance(value, list) else key]
        text = f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
        assert text == shown, path
        assert shown in PAGE.replace(f"<!-- {name}: {line} -->", ""), path
