"""Documents that promise a test name one that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted(
    path for path in ROOT.glob("docs/*.md") if "tests/" in path.read_text(encoding="utf-8")
)
NAMED = re.compile(r"(tests/[\w/.-]+\.py)((?:::\w+)*)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_is_named_exists(document: Path) -> None:
    missing = []
    for file, names in NAMED.findall(document.read_text(encoding="utf-8")):
        path = ROOT / file
        source = path.read_text(encoding="utf-8") if path.is_file() else ""
        defined = set(re.findall(r"(?:def|class) (\w+)", source))
        if not source or not defined.issuperset(filter(None, names.split("::"))):
            missing.append(file + names)
    assert missing == []


def test_the_requirements_are_among_them() -> None:
    assert "requirements.md" in {path.name for path in DOCUMENTS}
