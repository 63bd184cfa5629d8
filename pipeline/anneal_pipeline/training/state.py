"""Where a run stands, and its files in a checkpoint.

The learning rate, the rows of a step and the random numbers of a step are functions of the step
number (`schedule`, `batches`, `randomness`), so that the step, the adapters and the optimizer are
all there is to restore, and where ranks are allocated what that goes by. Tensors are safetensors,
the rest JSON; nothing is pickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from anneal_pipeline.errors import RUN_CHANGED, UserError
from anneal_pipeline.training.eight_bit import TABLES
from anneal_pipeline.training.moments import prepare_moments
from anneal_pipeline.training.optimizer import AdapterOptimizer
from anneal_pipeline.training.rank_allocator import RankAllocator
from anneal_pipeline.training.runaway import LOOK_BACK

ADAPTER_NAME = "adapter.safetensors"
OPTIMIZER_NAME = "optimizer.safetensors"
ALLOCATION_NAME = "allocation.safetensors"
STATE_NAME = "state.json"
OBSERVER_NAME = "observer.json"
CONFIG_NAME = "config.json"
CURVE_POINTS = 400


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
    best_checkpoint: str | None = None
    """Name of the checkpoint of `best_step`."""
    result_step: int | None = None
    """The step whose weights are the result, where these are not the last ones."""
    micro_batch_size: int | None = None
    """Rows per forward pass since memory ran out; None: as planned."""
    is_memory_short: bool = False
    """Whether the memory plan took so much that the heap is held tight from the start."""
    evaluation_batch_size: int | None = None
    """The same of evaluations."""
    rate_factor: float = 1.0
    """What the learning rate is multiplied with since something went wrong."""
    interventions: int = 0
    """How often the learning rate was lowered because something went wrong."""
    skipped_rows: list[int] = field(default_factory=list)
    """Training rows that are left out since they made the loss no number."""
    num_skipped_with_steps: int = 0
    """Of those, rows of whole steps, in which no row stood out."""
    grad_norms: list[float] = field(default_factory=list)
    """Of the last steps that moved the adapters, for the diagnoses."""
    overflows: list[int] = field(default_factory=list)
    """The last steps, OVERFLOWS_MANY at most, whose gradients overflowed in float16."""
    gradients: dict[str, list[float]] = field(default_factory=dict)
    """Sums over all steps by adapter (`efficiency.gradients`), kept by the first rank."""
    num_clipped: int = 0
    """Steps in those sums whose gradient was clipped."""
    told: list[str] = field(default_factory=list)
    """Diagnoses that were made already."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    """Of the last steps, for the rules."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """Mean losses over the whole run, CURVE_POINTS at most, for the report."""
    evaluations: list[Evaluated] = field(default_factory=list)
    scaler: dict[str, float] = field(default_factory=dict)
    """Of the fp16 loss scaling, empty without it."""
    lineage: list[str] = field(default_factory=list)
    """Hashes of the configurations of the checkpoints that this run was resumed from, over all
    attempts: what was saved under them is its own past, also where the configuration has changed
    since and the change was accepted. Without the hash of its own."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What has to be equal for a resumed run to end bit-equal."""

    def add_loss(self, loss: float, *, total_steps: int) -> None:
        """Keep the loss of the step just done; what is kept does not grow with the run."""
        self.losses = [*self.losses[1 - LOOK_BACK :], (self.step, loss)]
        stride = math.ceil(total_steps / CURVE_POINTS)
        if self.step % stride == 0:
            mean = fmean(value for _, value in self.losses[-stride:])
            self.curve = [*self.curve, (self.step, mean)]

    @property
    def weights_step(self) -> int:
        """The step from which the weights in the model are, once training is over."""
        return self.step if self.result_step is None else self.result_step

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
    config: Mapping[str, Any],
    allocator: RankAllocator | None = None,
) -> None:
    """Write the files of a checkpoint into a new folder."""
    folder.mkdir(parents=True)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=1) + "\n")
    weights = {name: p.detach().cpu().contiguous() for name, p in parameters.items()}
    save_file(weights, folder / ADAPTER_NAME)
    save_file(_moments(parameters, optimizer), folder / OPTIMIZER_NAME)
    if allocator is not None:
        save_file(allocator.state(), folder / ALLOCATION_NAME)
    (folder / STATE_NAME).write_text(json.dumps(asdict(state), indent=1) + "\n")
    (folder / OBSERVER_NAME).write_text(json.dumps(observer_state) + "\n")


def _moments(
    parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    return {
        f"{name}|{key}": torch.as_tensor(value).detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if key not in TABLES
    }


def read_state(folder: Path) -> RunState:
    fields: dict[str, Any] = json.loads((folder / STATE_NAME).read_text())
    evaluations = [Evaluated(**entry) for entry in fields.pop("evaluations")]
    losses, curve = (
        [(int(step), float(loss)) for step, loss in fields.pop(name, ())]
        for name in ("losses", "curve")
    )
    return RunState(evaluations=evaluations, losses=losses, curve=curve, **fields)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of the run that wrote the checkpoint."""
    config: dict[str, Any] = json.loads((folder / CONFIG_NAME).read_text())
    return config


def read_observer_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / OBSERVER_NAME).read_text())
    return state


def load_weights(folder: Path, parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Take the adapters of a checkpoint; other ones than the model has are `RunChanged`."""
    stored = load_file(folder / ADAPTER_NAME)
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if shapes != wanted:
        names = sorted(n for n in {*shapes, *wanted} if shapes.get(n) != wanted.get(n))
        first = names[0]
        raise UserError(
            RUN_CHANGED,
            f"The checkpoint has other adapters than this run: {len(names)} differ, {first} has "
            f"shape {shapes.get(first, 'none')} there and {wanted.get(first, 'none')} here; such a "
            "change cannot be accepted: put tuning back, or set checkpoint.resume to Never",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])


def load_state(
    folder: Path,
    state: RunState,
    *,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: AdapterOptimizer,
) -> None:
    """Put model and optimizer where the checkpoint in `folder`, whose `state` was read, stands."""
    load_weights(folder, parameters)
    load_moments(folder, parameters, optimizer.adamw)
    if state.scaler:
        optimizer.scaler.load_state_dict(dict(state.scaler))
    if optimizer.allocator is not None:
        optimizer.allocator.load_state(load_file(folder / ALLOCATION_NAME))


def load_moments(
    folder: Path,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Take the moments of a checkpoint, and no others: a parameter it has none for starts anew.

    Those of another optimizer are `RunChanged`: 8-bit moments mean nothing to AdamW.
    """
    optimizer.state.clear()
    stored = load_file(folder / OPTIMIZER_NAME)
    prepare_moments(optimizer, (parameters[key.rpartition("|")[0]] for key in stored))
    known = {slot for slots in optimizer.state.values() for slot in slots}
    foreign = {key.rpartition("|")[2] for key in stored} - known
    if foreign:
        raise UserError(
            RUN_CHANGED,
            f"The checkpoint has moments of another optimizer ({', '.join(sorted(foreign))}); such "
            "a change cannot be accepted: put training.optimizer back, or set checkpoint.resume "
            "to Never",
        )
    for key, value in stored.items():
        name, _, slot = key.rpartition("|")
        slots = optimizer.state[parameters[name]]
        if isinstance(slots[slot], int):
            slots[slot] = int(value)
        else:
            slots[slot].copy_(value)
