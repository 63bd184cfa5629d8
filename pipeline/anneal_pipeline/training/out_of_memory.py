"""What the loop does when memory runs out in a step, by `training.recovery.oom`.

Fewer rows per forward pass, more of them: batch, gradients and steps stay. Where that is not
possible the run ends, with settings that need less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.tuning import LoraConfig
from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.errors import DOES_NOT_FIT, UserError
from anneal_pipeline.observer import EVENT_RECOVERED
from anneal_pipeline.training.events import Events
from anneal_pipeline.training.memory import RowLimit
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.state import RunState

SMALL_RANK = 8
"""From here down another rank of the adapters hardly changes the memory."""


@dataclass(frozen=True, kw_only=True)
class MicroBatchHalving:
    """All ranks have run out together, and each goes on with the same limit."""

    config: PipelineConfig
    split: PreparedSplit
    """The rows that are trained."""
    limit: RowLimit
    events: Events
    ranks: Ranks

    def lower(self, state: RunState, *, sequences: Sequence[tuple[int, ...]]) -> None:
        """Halve the micro-batch, or fail with what would fit."""
        used = min(self.limit.rows, math.ceil(len(sequences) / self.ranks.world_size))
        lengths = self.split.lengths()
        length = max(sum(lengths[row] for row in rows) for rows in sequences)
        if not self.limit.halve(rows=used):
            raise UserError(
                DOES_NOT_FIT,
                f"Memory ran out in training step {state.step + 1} with {used} "
                f"{'row' if used == 1 else 'rows'} of up to {length} tokens per forward pass; "
                f"{suggest_less_memory(self.config, rows=used, length=length)}",
            )
        state.micro_batch_size = self.limit.rows
        self.events.tell(
            EVENT_RECOVERED,
            f"Memory ran out in step {state.step + 1} with {used} rows of up to {length} tokens "
            f"per forward pass; going on with {self.limit.rows} rows and more accumulation, the "
            f"batch of {self.config.training.batch_size} and the number of steps stay",
            kind="oom",
            step=state.step + 1,
            microBatchSize=self.limit.rows,
        )


def suggest_less_memory(config: PipelineConfig, *, rows: int, length: int) -> str:
    """Concrete settings that need less memory, likeliest first."""
    ways = []
    if rows > 1:
        ways.append(
            f"set training.recovery.oom to recover or training.microBatchSize to {rows // 2}"
        )
    if not config.training.gradient_checkpointing:
        ways.append("set training.gradientCheckpointing to true")
    if config.tuning.method == "lora":
        ways.append("set tuning.method to qlora")
    elif not config.tuning.quantization.double_quant:
        ways.append("set tuning.quantization.doubleQuant to true")
    if config.training.packing:
        ways.append("set training.packing to false")
    ways.append(f"set training.sequenceLength to {max(8, length // 2)}")
    if config.training.optimizer == "adamw":
        ways.append("set training.optimizer to pagedAdamw8bit")
    if config.tuning.lora.initial_rank > SMALL_RANK:
        ways.append(_lower_rank(config.tuning.lora))
    return "; or ".join(ways)


def _lower_rank(lora: LoraConfig) -> str:
    """Memory goes by the rank that adapters begin with."""
    if lora.rank_allocation is None or lora.rank_allocation.initial_rank is None:
        return f"set tuning.lora.rank to {lora.rank // 2}"
    lower = lora.initial_rank // 2
    below = "" if lora.rank < lower else " and tuning.lora.rank below it"
    return f"set tuning.lora.rankAllocation.initialRank to {lower}{below}"
