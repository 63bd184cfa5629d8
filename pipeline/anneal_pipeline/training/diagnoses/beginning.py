"""What shows before the first step: small batches, and adapters that change the base (S21, S11).

An adapter whose second matrix is zero is the base by construction. Other initialisations are
checked, on the first micro-batch of the run, with and without the adapters.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import PeftModel

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.tuning import DEFAULT, GAUSSIAN
from anneal_pipeline.diagnosis import Diagnosis
from anneal_pipeline.model.beginning import base_alone
from anneal_pipeline.training.batches import Batch
from anneal_pipeline.training.diagnoses.facts import Planned
from anneal_pipeline.training.loss import LogitsPath, sum_of_losses
from anneal_pipeline.training.memory import is_out_of_memory

SMALL_BATCH = 4
BEGIN_NATS = 0.05
"""Ten times what 16-bit products differ by where the order of sums does."""


def of_batch(
    config: PipelineConfig, *, world_size: int, on_gpu: bool, planned: Planned | None
) -> Iterator[Diagnosis]:
    """Of how many rows a step has, and how many of them go through one GPU at once."""
    training = config.training
    size = training.batch_size
    share = size // world_size
    if size < SMALL_BATCH and not training.packing:
        yield Diagnosis(
            row="S21",
            symptom=f"Every step sees only {size} {'row' if size == 1 else 'rows'}",
            cause="gradients of so few rows are noisy and leave a processor idle",
            fix="set training.batchSize to 8 or more; training.microBatchSize bounds memory",
        )
    elif on_gpu and world_size > 1 and share < SMALL_BATCH and not training.packing:
        yield Diagnosis(
            row="S21",
            symptom=f"training.batchSize {size} over {world_size} GPUs leaves each of them "
            f"{share} {'row' if share == 1 else 'rows'} a step",
            cause="a GPU is idle with so little, and waits for the others after each step",
            fix=f"set training.batchSize to {8 * world_size}, or take fewer GPUs",
        )
    if on_gpu and planned is not None and planned.rows == 1 and planned.rows_with_room > 1:
        yield Diagnosis(
            row="S21",
            case="room",
            symptom="training.microBatchSize 1 puts one sequence through the GPU at once, where "
            f"by the memory plan {planned.rows_with_room} have room",
            cause="products of so few rows leave most of a GPU idle",
            fix=f"remove training.microBatchSize, or set it to {planned.rows_with_room}",
        )


def may_differ(config: PipelineConfig) -> bool:
    """Whether the adapters begin as something else than a product with a zero matrix."""
    tuning = config.tuning
    return not _begins_at_zero(config) or tuning.lora.use_dora or bool(tuning.new_tokens)


def _begins_at_zero(config: PipelineConfig) -> bool:
    return config.tuning.lora.initialization in (DEFAULT, GAUSSIAN)


def losses_at_start(model: PeftModel, path: LogitsPath, batch: Batch) -> tuple[float, float] | None:
    """Nats per trained token of base and adapted model, without dropout.

    None where memory does not hold the batch: its step will find out, and take fewer rows.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            adapted = _loss(path, batch)
            with base_alone(model):
                return _loss(path, batch), adapted
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        model.train(was_training)


def of_beginning(config: PipelineConfig, *, base: float, adapted: float) -> Iterator[Diagnosis]:
    if adapted > base + BEGIN_NATS:
        cause, fix = _of_difference(config)
        yield Diagnosis(
            row="S11",
            symptom=f"Before the first step the adapted model has a loss of {adapted:.2f} on the "
            f"first rows, its base {base:.2f}",
            cause=cause,
            fix=fix,
        )


def _of_difference(config: PipelineConfig) -> tuple[str, str]:
    """What of the job makes the adapters differ from the base, and what to do."""
    lora = config.tuning.lora
    if not _begins_at_zero(config):
        return (
            f"the adapters do not begin as the base (initialization {lora.initialization}, "
            f"alpha {lora.alpha:g})",
            "set tuning.lora.initialization to default, which does, or lower tuning.lora.alpha",
        )
    causes: list[str] = []
    fixes: list[str] = []
    if lora.use_dora:
        causes.append("the magnitudes of useDora do not begin as those of the base")
        fixes.append("set tuning.lora.useDora to false")
    if config.tuning.new_tokens:
        causes.append("the rows of newTokens do not begin as those of the base")
        fixes.append("remove tuning.newTokens")
    return " and ".join(causes), " or ".join(fixes)


def _loss(path: LogitsPath, batch: Batch) -> float:
    total = sum(float(sum_of_losses(tokens)) for tokens in path.pieces(batch))
    return total / max(1, batch.num_trained_tokens)
