"""A tiny model with adapters, and rows of unequal length for it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.model.adapters import trainable_parameters
from anneal_pipeline.model.loading import TunedModel, load_tuned_model
from anneal_pipeline.training.ranks import Ranks

CPU = torch.device("cpu")
ALONE = Ranks(rank=0, world_size=1, device=CPU)
NUM_ROWS = 8


@pytest.fixture(scope="module")
def tuned(kit: ModuleType, model_dir: Path) -> TunedModel:
    config = kit.make_config(
        tuning={"method": "lora", "lora": {"rank": 4, "dropout": 0.0}},
        training={"gradientCheckpointing": False},
    )
    return load_tuned_model(config, folder=model_dir, device=CPU)


@pytest.fixture(scope="module")
def split() -> PreparedSplit:
    """Rows of 5, 10, ... 40 tokens, with a trained share that differs."""
    generator = torch.Generator().manual_seed(3)
    lengths = [5 * (index + 1) for index in range(NUM_ROWS)]
    mask = [int(i >= n // (2 + n % 3)) for n in lengths for i in range(n)]
    return PreparedSplit(
        ids=torch.randint(4, 300, (sum(lengths),), generator=generator, dtype=torch.int32),
        is_response=torch.tensor(mask, dtype=torch.uint8),
        offsets=torch.tensor([0, *lengths]).cumsum(0),
    )


@pytest.fixture
def adapters(tuned: TunedModel) -> dict[str, torch.nn.Parameter]:
    """The adapters with B away from zero, so that A gets a gradient too."""
    parameters = trainable_parameters(tuned.model)
    with torch.no_grad():
        for index, parameter in enumerate(parameters.values()):
            torch.manual_seed(index)
            parameter.normal_(std=0.05)
    return parameters
