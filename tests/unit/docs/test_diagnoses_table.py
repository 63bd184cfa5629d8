"""The table of diagnoses has every row, and says where the code makes it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PIPELINE = ROOT / "pipeline" / "anneal_pipeline"
MADE = re.compile(r'row="(S\d+)"')


def table() -> dict[str, tuple[str, list[str], str]]:
    """Kind, files and tests by row."""
    text = (ROOT / "docs" / "requirements.md").read_text(encoding="utf-8")
    section = text.split("## Diagnoses\n")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.split("|")] for line in section.splitlines()]
    rows = [parts for parts in cells if len(parts) > 1 and re.fullmatch(r"S\d+", parts[1])]
    return {parts[1]: (parts[2], parts[3].split(", "), parts[4]) for parts in rows}


def test_every_row_of_training_has_its_kind_its_place_and_a_test() -> None:
    rows = table()
    assert list(rows) == [f"S{number}" for number in range(1, 27)]
    for row, (kind, files, shown) in rows.items():
        assert kind, row
        assert [file for file in files if not (PIPELINE / file).exists()] == [], row
        assert "tests/" in shown, row


def test_diagnoses_are_made_where_the_table_says() -> None:
    in_code = {
        (row, path.relative_to(PIPELINE).as_posix())
        for path in PIPELINE.rglob("*.py")
        for row in MADE.findall(path.read_text(encoding="utf-8"))
    }
    in_table = {
        (row, file)
        for row, (kind, files, _) in table().items()
        if "diagnosis" in kind
        for file in files[:1]
    }
    assert in_code == in_table
