"""Fixtures of the pipeline's unit and integration tests; both conftests take them from here."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.unit.pipeline import kit as small

# Models of a few thousand parameters: more threads only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """A language model, tokenizer and rows small enough to be made anew."""
    return small


@pytest.fixture(scope="session")
def model_dir(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = kit.write_model(tmp_path_factory.mktemp("model"))
    return folder
