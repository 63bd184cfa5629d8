"""docs/contracts.md leaves no line of the design's contracts without an answer."""

import re
from pathlib import Path

CONTRACTS = Path(__file__).parents[3] / "docs/contracts.md"
ANSWER = re.compile(r"tests/[\w/]+\.py::\w+|later issue|ADR \d{4}|import-linter|no test: ")


def test_every_line_has_its_test_or_says_why_not() -> None:
    lines = CONTRACTS.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    shown = [row for row in rows if row != ["Line", "Shown by"]]
    assert len(shown) > 80
    assert [row for row in shown if len(row) != 2 or not ANSWER.search(row[1])] == []
