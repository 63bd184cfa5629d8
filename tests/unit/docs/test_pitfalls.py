"""Each pitfall of docs/pitfalls.md has a test whose docstring has its words."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def named() -> Iterator[tuple[str, str]]:
    for line in (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 2 and cells[1].startswith("tests/"):
            for test in cells[1].split(", "):
                yield cells[0], test


def docstring_of(test: str) -> str:
    file, *names = test.split("::")
    node: ast.AST = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for name in names:
        node = next(
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and child.name == name
        )
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    return " ".join((ast.get_docstring(node) or "").split())


@pytest.mark.parametrize(("pitfall", "test"), list(named()))
def test_the_test_of_a_pitfall_is_called_by_it(pitfall: str, test: str) -> None:
    assert docstring_of(test).startswith(f"Pitfall: {pitfall}.")


def test_the_list_has_data_and_training() -> None:
    assert len(dict(named())) >= 19
