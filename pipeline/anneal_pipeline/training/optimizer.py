"""One optimiser step: gradients of a batch, clipped, applied.

The loss of a step is the sum of its token losses over its number of trained tokens, over all
micro-batches and ranks: how the batch is cut up does not change the gradient. Gathering and
applying are two calls, so that a step that went wrong can be taken back before it counts. The
moments are made by the first gathering, so that applying asks for no memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer

from anneal_pipeline.config.training import TrainingConfig
from anneal_pipeline.errors import DOES_NOT_FIT, UserError
from anneal_pipeline.model.adapters import trainable_parameters
from anneal_pipeline.training.batches import Batch
from anneal_pipeline.training.eight_bit import NAME as PAGED_8BIT
from anneal_pipeline.training.eight_bit import adamw_8bit
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.loss_scaling import forget_gradients, has_overflowed, make_scaler
from anneal_pipeline.training.memory import MemoryRanOutError, free_memory, is_out_of_memory
from anneal_pipeline.training.moments import prepare_moments
from anneal_pipeline.training.rank_allocator import RankAllocator
from anneal_pipeline.training.ranks import Ranks

_RATIO = "rate_ratio"
"""Key of a parameter group: its learning rate over that of the A matrices."""


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    loss: float
    """Nats per trained token; 0 where no token is trained."""
    grad_norm: float
    num_tokens: int
    num_trained_tokens: int
    is_finite: bool
    """False: the gradients must not be applied."""
    has_overflowed: bool = False
    """Gradients are no numbers because of the loss scale: applying them lowers it, and moves
    nothing. (A norm beyond fp32 of gradients that are numbers is told as that, too; such gradients
    are clipped to nothing.)"""


class AdapterOptimizer:
    """AdamW over the adapters, with fp16 loss scaling where the products run in fp16."""

    def __init__(
        self,
        config: TrainingConfig,
        *,
        model: PeftModel,
        compute: torch.dtype,
        ranks: Ranks,
        allocator: RankAllocator | None = None,
    ) -> None:
        self._config = config
        self.allocator = allocator
        """Decides which directions are kept; None: all of them."""
        self._parameters = list(trainable_parameters(model).values())
        self._ranks = ranks
        self._is_finite = False
        """Whether the gathered gradients are numbers; if not, loss scaling leaves the step out."""
        self.adamw = _adamw(config, model=model, device=ranks.device)
        self.scaler = make_scaler(ranks.device, compute=compute)

    def step(
        self, path: LogitsPath, batches: Sequence[Batch], *, learning_rate: float, step: int
    ) -> StepOutcome:
        """Train on this rank's micro-batches as step `step`, unless its loss is no number."""
        outcome = self.gather(path, batches)
        if outcome.is_finite:
            self.apply(learning_rate, step=step)
        else:
            self.take_back()
        return outcome

    def gather(self, path: LogitsPath, batches: Sequence[Batch]) -> StepOutcome:
        """Bring the clipped gradients of one step together, over micro-batches and ranks.

        Raises MemoryRanOutError on all ranks, with nothing gathered, if memory ran out on one.
        """
        own = [sum(b.num_tokens for b in batches), sum(b.num_trained_tokens for b in batches)]
        num_tokens, num_trained = (int(n) for n in self._ranks.sum(own))
        divisor = max(1, num_trained)
        own_loss, ran_out, failure = 0.0, False, None
        try:
            prepare_moments(self.adamw, self._parameters)
            for batch in batches:
                own_loss += path.backward(
                    batch.to(self._ranks.device),
                    weigh=lambda losses: self.scaler.scale(losses / divisor),
                )
        except Exception as error:  # raised again by the vote
            ran_out = is_out_of_memory(error)
            failure = None if ran_out else error
        all_loss, num_ran_out = self._ranks.sum([own_loss, float(ran_out)], failure=failure)
        if num_ran_out:
            self.drop()
            free_memory(self._ranks.device)
            raise MemoryRanOutError
        loss = all_loss / divisor
        self._ranks.sum_gradients(self._parameters)
        if self._has_gradients():  # the scaler fails on none
            self.scaler.unscale_(self.adamw)
        if self.allocator is not None:
            self.allocator.hold_apart()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm)
        grad_norm = float(norm)
        self._is_finite = math.isfinite(grad_norm)
        overflowed = has_overflowed(self.scaler, loss=loss, grad_norm=grad_norm)
        return StepOutcome(
            loss=loss,
            grad_norm=grad_norm,
            num_tokens=num_tokens,
            num_trained_tokens=num_trained,
            is_finite=math.isfinite(loss) and (self._is_finite or overflowed),
            has_overflowed=overflowed,
        )

    def apply(self, learning_rate: float, *, step: int) -> bool:
        """Move the adapters by the gathered gradients, on every rank; True if ranks settle by that.

        `step`, counted from 1, is what the fall of adapter ranks goes by. A failure on one rank is
        one on all of them: what is half done is never kept. Memory that runs out is `DoesNotFit`,
        because fewer rows per pass would not help here.
        """
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate * group[_RATIO]
        with self._ranks.together():
            try:
                self.scaler.step(self.adamw)
                self.scaler.update()
            except Exception as error:
                if is_out_of_memory(error):
                    raise UserError(DOES_NOT_FIT, self._too_little_to_apply()) from error
                raise
        is_settled = False
        if self.allocator is not None:
            is_settled = self.allocator.after_update(step, has_moved=self._is_finite)
        self.drop()
        return is_settled

    def _too_little_to_apply(self) -> str:
        rank = "tuning.lora.rank"
        if self.allocator is not None:  # adapters begin with it, where it is set
            rank = f"{rank} and tuning.lora.rankAllocation.initialRank"
        ways = [f"lower {rank}", "give the job more memory"]
        if self._config.optimizer != PAGED_8BIT:
            ways.insert(0, f"set training.optimizer to {PAGED_8BIT}")
        return (
            "Memory ran out while the adapters were moved by a step, which is not kept: the last "
            f"checkpoint is from before it; {'; or '.join(ways)}"
        )

    def take_back(self) -> None:
        """Forget the gradients that `gather` brought together."""
        forget_gradients(self.scaler)
        self.drop()

    def pass_over(self, *, step: int) -> bool:
        """Take back a step that trains nothing; ranks fall all the same: True if they settle."""
        self.take_back()
        return self.allocator is not None and self.allocator.after_update(step, has_moved=False)

    def _has_gradients(self) -> bool:
        return any(parameter.grad is not None for parameter in self._parameters)

    def drop(self) -> None:
        self.adamw.zero_grad(set_to_none=True)


def _adamw(
    config: TrainingConfig, *, model: PeftModel, device: torch.device
) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    kind: Any = torch.optim.AdamW
    options: dict[str, Any] = {"fused": True}
    if config.optimizer == PAGED_8BIT:
        kind, options = adamw_8bit(device), {}
    adamw: torch.optim.Optimizer
    if config.lora_plus_ratio is None:
        parameters = list(trainable_parameters(model).values())
        adamw = kind(parameters, lr=rate, weight_decay=decay, **options)
    else:
        options["loraplus_weight_decay"] = decay
        adamw = create_loraplus_optimizer(
            model, kind, lr=rate, loraplus_lr_ratio=config.lora_plus_ratio, **options
        )
    for group in adamw.param_groups:
        group[_RATIO] = group["lr"] / rate
    return adamw
