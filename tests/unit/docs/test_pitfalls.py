"""Each pitfall of docs/pitfalls.md has a test whose docstring has its words."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


LINES = (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8").splitlines()
HEAD = ["Pitfall", "Test"]


def rows() -> list[list[str]]:
    """The cells of every line of a table but its head and the rule below."""
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in LINES
        if line.startswith("| ")
    ]
    return [row for row in cells if row != HEAD]


def named() -> Iterator[tuple[str, str]]:
    for pitfall, *tests in rows():
        for test in ", ".join(tests).split(", "):
            yield pitfall, test


def docstring_of(test: str) -> str:
    file, *names = test.split("::")
    assert names, f"{test} names a file, not the test in it"
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


def test_every_pitfall_has_a_test() -> None:
    assert len(rows()) >= 28
    assert [row for row in rows() if len(row) != 2 or not row[1].startswith("tests/")] == []
