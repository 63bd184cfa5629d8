"""Where a run stands, and its files in a checkpoint.

The learning rate, the rows of a step and the random numbers of a step are functions of the step
number (`schedule`, `batches`, `randomness`), so that the step, the adapters and the optimizer are
all there is to restore. Tensors are safetensors, the rest JSON; nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ADAPTER_NAME = "adapter.safetensors"
OPTIMIZER_NAME = "optimizer.safetensors"
STATE_NAME = "state.json"
OBSERVER_NAME = "observer.json"


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The metrics of one subject at one step."""

    step: int
    subject: str
    split: str
    metrics: Mapping[str, float]


@dataclass(kw_only=True)
class RunState:
    step: int = 0
    """Optimiser steps done."""
    num_trained_tokens: int = 0
    evaluated_step: int = 0
    """The last step that was evaluated."""
    best_step: int | None = None
    best_value: float | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)
    evaluations: list[Evaluated] = field(default_factory=list)
    scaler: dict[str, float] = field(default_factory=dict)
    """Of the fp16 loss scaling, empty without it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What has to be equal for a resumed run to end bit-equal."""

    def evaluation(self, *, subject: str, split: str, step: int) -> Evaluated | None:
        for done in self.evaluations:
            if (done.subject, done.split, done.step) == (subject, split, step):
                return done
        return None


def write_state(
    folder: Path,
    *,
    state: RunState,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    observer_state: Mapping[str, Any],
) -> None:
    folder.mkdir(parents=True)
    weights = {name: p.detach().cpu().contiguous() for name, p in parameters.items()}
    save_file(weights, folder / ADAPTER_NAME)
    save_file(_moments(parameters, optimizer), folder / OPTIMIZER_NAME)
    (folder / STATE_NAME).write_text(json.dumps(asdict(state), indent=1) + "\n")
    (folder / OBSERVER_NAME).write_text(json.dumps(observer_state) + "\n")


def _moments(
    parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    return {
        f"{name}|{key}": value.detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }


def read_state(folder: Path) -> RunState:
    fields: dict[str, Any] = json.loads((folder / STATE_NAME).read_text())
    evaluations = [Evaluated(**entry) for entry in fields.pop("evaluations")]
    losses = [(int(step), float(loss)) for step, loss in fields.pop("losses")]
    return RunState(evaluations=evaluations, losses=losses, **fields)


def read_observer_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / OBSERVER_NAME).read_text())
    return state


def load_weights(folder: Path, parameters: Mapping[str, torch.nn.Parameter]) -> None:
    stored = load_file(folder / ADAPTER_NAME)
    if stored.keys() != parameters.keys():
        difference = sorted(stored.keys() ^ parameters.keys())[:3]
        raise ValueError(f"checkpoint and model have other adapters: {', '.join(difference)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])


def load_moments(
    folder: Path,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    for key, value in load_file(folder / OPTIMIZER_NAME).items():
        name, _, slot = key.rpartition("|")
        parameter = parameters[name]
        # fused AdamW wants its step counter beside the parameter
        optimizer.state[parameter][slot] = value.to(parameter.device)
