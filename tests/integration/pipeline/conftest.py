"""`kit`: a language model, tokenizer and rows small enough to be made anew; `tuned`, `adapters`,
`split`: what a step is made of."""

from pathlib import Path
from types import ModuleType

import pytest
from tests.integration.pipeline.unequal_rows import adapters, split, tuned
from tests.unit.pipeline.fixtures import kit, model_dir

__all__ = ["adapters", "kit", "model_dir", "rows", "split", "tuned"]


@pytest.fixture(scope="session")
def rows(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty questions with their answers."""
    path: Path = kit.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", kit.sums(30))
    return path
