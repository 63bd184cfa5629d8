"""Every row of docs/requirements.md has a test, a command, or the reason why it has neither.

The table of diagnoses has other columns: test_diagnoses_table.py holds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[3] / "docs/requirements.md"
SHOWN = re.compile(r"tests/[\w/.-]+|`(?:make|anneal|\.venv/bin)[^`]*`|lint-imports|pyproject\.toml")
REASONS = re.compile(
    r"(later issue|met otherwise|decided|does not apply|not done|needs a GPU)(: | otherwise: |, )\S"
)
"""What a remark beside no test begins with; any other prose answers nothing."""


def rows() -> Iterator[list[str]]:
    before, _, diagnoses = REQUIREMENTS.read_text(encoding="utf-8").partition("## Diagnoses\n")
    text = before + diagnoses.partition("\n## ")[2]
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and cells[:2] != ["Row", "Shown by"]:
            yield cells


def is_answered(cells: list[str]) -> bool:
    if len(cells) != 3:
        return False
    _, shown, remark = cells
    return bool(SHOWN.search(shown) or REASONS.match(remark))


def test_every_row_has_its_test_or_says_why_not() -> None:
    found = list(rows())
    assert len(found) > 300
    assert [cells for cells in found if not is_answered(cells)] == []


def test_no_row_stands_twice() -> None:
    names = [cells[0] for cells in rows()]
    assert [name for name in names if names.count(name) > 1] == []


def test_a_row_without_an_answer_is_found() -> None:
    assert not is_answered(["A1", "data part", ""])
    assert not is_answered(["A1", "tests/unit"])
    assert not is_answered(["A1", "", "the metrics are refused by their names until they exist"])
    assert not is_answered(["A1", "later issue: the metrics are refused", ""])
    assert not is_answered(["A1", "", "later issue"])
    assert is_answered(["A1", "", "later issue: the metrics are refused until they exist"])
