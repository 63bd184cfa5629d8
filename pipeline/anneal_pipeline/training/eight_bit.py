"""AdamW with its moments in 8 bits (Dettmers et al. 2021), through bitsandbytes.

On a GPU the moments are paged: they move to the host's memory while the GPU's is short. A CPU has
nothing to page from; there the same numbers lie in ordinary memory. Matrices below 4,096 numbers
keep fp32 moments. Only the functions here import bitsandbytes, and only when they are called.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from anneal_pipeline.config.training import TrainingConfig
from anneal_pipeline.errors import QUANTIZATION_UNAVAILABLE, UserError
from anneal_pipeline.model.four_bit import PACKAGE

NAME = "pagedAdamw8bit"
TABLES = ("qmap1", "qmap2")
"""What the 8-bit numbers stand for: the same for every parameter of every run, so not saved."""


def adamw_8bit(device: torch.device) -> type[torch.optim.Optimizer]:
    optim = importlib.import_module(f"{PACKAGE}.optim")
    kind: type[torch.optim.Optimizer] = (
        optim.AdamW8bit if device.type == "cpu" else optim.PagedAdamW8bit
    )
    return kind


def check_optimizer(config: TrainingConfig, *, device: torch.device) -> None:
    """Refuse an optimizer that does not run here, found by trying it, before a model is loaded."""
    if config.optimizer != NAME:
        return
    fault = None
    if importlib.util.find_spec(PACKAGE) is None:
        fault = f"the package {PACKAGE} is not installed"
    else:
        try:
            _try_a_step(device)
        except (ImportError, OSError, RuntimeError, AttributeError, NotImplementedError) as error:
            fault = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if fault is not None:
        raise UserError(
            QUANTIZATION_UNAVAILABLE,
            f"training.optimizer {NAME} does not run on {device}: {fault}; use a trainer image and "
            "a node that have it, or set training.optimizer to adamw",
        )


def _try_a_step(device: torch.device) -> None:
    weight = torch.nn.Parameter(torch.zeros(64, 64, device=device))
    weight.grad = torch.ones_like(weight)
    options: dict[str, Any] = {"lr": 1.0}
    adamw_8bit(device)([weight], **options).step()
