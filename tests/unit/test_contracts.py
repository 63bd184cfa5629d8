"""docs/contracts.md names tests: each of them must be there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NODE = re.compile(r"(tests/[\w/]+\.py)((?:::\w+)+)")


def names_in(path: Path) -> set[str]:
    """Node ids of a file's tests, below the file."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"::{node.name}" if isinstance(node, ast.ClassDef) else ""
        found |= {
            f"{prefix}::{test.name}"
            for test in inner
            if isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef)
        }
    return found


def test_every_test_that_a_contract_names_is_there() -> None:
    named = NODE.findall((ROOT / "docs/contracts.md").read_text(encoding="utf-8"))
    assert len(named) > 100
    known = {file: names_in(ROOT / file) for file in {file for file, _ in named}}
    assert [file + test for file, test in named if test not in known[file]] == []


def test_every_line_has_its_test_or_says_why_not() -> None:
    text = (ROOT / "docs/contracts.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    shown = [row for row in rows if row != ["Line", "Shown by"]]
    assert [row for row in shown if not re.search(r"tests/|later issue|ADR|no test", row[1])] == []
