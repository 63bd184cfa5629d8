"""`kit`: a language model, tokenizer and rows small enough to be made anew."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

# Models of a few thousand parameters: more threads only wait for each other.
torch.set_num_threads(1)

_KIT = Path(__file__).parents[2] / "unit" / "pipeline" / "kit.py"


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """tests/unit/pipeline/kit.py; test folders are no packages, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location("pipeline_kit", _KIT)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {_KIT}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pipeline_kit"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def model_dir(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = kit.write_model(tmp_path_factory.mktemp("model"))
    return folder
