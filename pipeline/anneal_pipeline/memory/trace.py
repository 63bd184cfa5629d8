"""The plan of a run: its model without weights goes through one real micro-batch of the loop."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.errors import PipelineError
from anneal_pipeline.memory.full_batch import full_batch
from anneal_pipeline.memory.live_set import CUDA_BLOCK_BYTES, LiveSet
from anneal_pipeline.memory.plan import MemoryPlan
from anneal_pipeline.memory.skeleton import DEVICE, Skeleton, build_skeleton
from anneal_pipeline.training.loss import LogitsPath

CPU_OVERHEAD_BYTES = 64 << 20
"""Pages of libraries, packed weights of oneDNN and small blocks; measured by
tests/benchmarks/memory.py."""
CPU_BLOCK_BYTES = 64
_CANNOT_GO_THROUGH = (
    RuntimeError,
    NotImplementedError,
    TypeError,
    ValueError,
    AttributeError,
)
"""What models and libraries raise over tensors without numbers."""


class PlanUnknownError(PipelineError):
    """The model decides by values what it computes, or the job has what is not counted yet."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and how a rank computes."""

    compute: torch.dtype
    in_4_bit: bool
    on_gpu: bool


@dataclass(frozen=True)
class Planner:
    """Plans of one model; building it takes seconds, and each plan some more."""

    skeleton: Skeleton
    place: Place

    def plan(self, *, rows: int, length: int) -> MemoryPlan:
        held = self.skeleton.held
        on_gpu = self.place.on_gpu
        live = LiveSet(
            vocabulary=self.skeleton.vocabulary,
            block_bytes=CUDA_BLOCK_BYTES if on_gpu else CPU_BLOCK_BYTES,
        )
        try:
            batch = _run(self.skeleton, live, rows=rows, length=length)
        except _CANNOT_GO_THROUGH as error:
            raise PlanUnknownError(_why(error)) from error
        return MemoryPlan(
            weights=held.weights,
            quantization_state=held.quantization_state,
            adapters=held.adapters,
            gradients=held.gradients,
            optimizer=held.optimizer,
            batch=batch,
            activations=live.peak - live.peak_logits,
            logits=live.peak_logits,
            overhead=0 if on_gpu else CPU_OVERHEAD_BYTES,
            loading=held.weights + held.quantization_state + self.skeleton.loading_work,
        )


def make_planner(config: PipelineConfig, *, folder: Path, place: Place) -> Planner:
    """Read config.json of the model (and its tokenizer for `tuning.newTokens`) in `folder`.

    Raises UserError where the tuning does not fit the model.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what there is to say, loading will say
            skeleton = build_skeleton(
                config,
                folder=folder,
                compute=place.compute,
                in_4_bit=place.in_4_bit,
                on_gpu=place.on_gpu,
            )
    except _CANNOT_GO_THROUGH as error:
        raise PlanUnknownError(_why(error)) from error
    return Planner(skeleton, place)


def _run(skeleton: Skeleton, live: LiveSet, *, rows: int, length: int) -> int:
    """One forward and backward pass, with gradients there already; returns the batch's bytes."""
    model = skeleton.model
    trained = [p for p in model.parameters() if p.requires_grad]
    with warnings.catch_warnings(), skeleton.mode:
        warnings.simplefilter("ignore")  # what a real step has to say it will say itself
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        batch = full_batch(
            rows=rows,
            length=length,
            num_ids=skeleton.vocabulary,
            is_packed=skeleton.is_packed,
            device=DEVICE,
        )
        inputs = [t for t in (*batch.inputs().values(), batch.labels) if t is not None]
        gradients = [p.grad for p in trained if p.grad is not None]
        for tensor in (*skeleton.tensors, *gradients, *inputs):
            live.ignore(tensor)
        with live:
            path = LogitsPath(model)
            model.train()
            path.backward(batch, weigh=lambda losses: losses / batch.num_trained_tokens)
    for parameter in trained:
        parameter.grad = None
    return sum(tensor.untyped_storage().nbytes() for tensor in inputs)


def _why(error: Exception) -> str:
    first_line = next(iter(str(error).strip().splitlines()), "")
    return f"the memory of this model cannot be planned ({type(error).__name__}: {first_line})"
