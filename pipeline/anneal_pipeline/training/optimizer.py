"""One optimiser step: gradients of a batch, clipped, applied.

The loss of a step is the sum of its token losses over its number of trained tokens, over all
micro-batches and ranks: how the batch is cut up does not change the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from anneal_pipeline.config.training import TrainingConfig
from anneal_pipeline.errors import NON_FINITE_LOSS, TrainingFailedError
from anneal_pipeline.training.batches import Batch
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    loss: float
    """Nats per trained token."""
    grad_norm: float
    num_tokens: int
    num_trained_tokens: int


class AdapterOptimizer:
    """AdamW over the adapters, with fp16 loss scaling where the products run in fp16."""

    def __init__(
        self,
        config: TrainingConfig,
        *,
        parameters: Mapping[str, torch.nn.Parameter],
        compute: torch.dtype,
        ranks: Ranks,
    ) -> None:
        self._config = config
        self._parameters = list(parameters.values())
        self._ranks = ranks
        self.adamw = torch.optim.AdamW(
            self._parameters,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=compute == torch.float16)

    def step(
        self, path: LogitsPath, batches: Sequence[Batch], *, learning_rate: float, step: int
    ) -> StepOutcome:
        """Train on this rank's micro-batches of step `step`."""
        own = [sum(b.num_tokens for b in batches), sum(b.num_trained_tokens for b in batches)]
        num_tokens, num_trained = (int(n) for n in self._ranks.sum(own))
        own_loss = 0.0
        for batch in batches:
            own_loss += path.backward(
                batch.to(self._ranks.device),
                weigh=lambda losses: self.scaler.scale(losses / num_trained),
            )
        loss = self._ranks.sum([own_loss])[0] / num_trained
        self._ranks.sum_gradients(self._parameters)
        grad_norm = self._apply(learning_rate, loss=loss, step=step)
        return StepOutcome(
            loss=loss,
            grad_norm=grad_norm,
            num_tokens=num_tokens,
            num_trained_tokens=num_trained,
        )

    def _apply(self, learning_rate: float, *, loss: float, step: int) -> float:
        self.scaler.unscale_(self.adamw)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm)
        grad_norm = float(norm)
        # With fp16 scaling a gradient that overflows is expected: the scaler leaves the step out.
        overflow_is_expected = self.scaler.is_enabled()
        if not _is_finite(loss) or not (_is_finite(grad_norm) or overflow_is_expected):
            raise TrainingFailedError(
                NON_FINITE_LOSS,
                f"Loss is {loss} and gradient norm {grad_norm} at step {step + 1} with learning "
                f"rate {learning_rate:g}; lower training.learningRate, or look for damaged rows",
            )
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate
        self.scaler.step(self.adamw)
        self.scaler.update()
        self.adamw.zero_grad(set_to_none=True)
        return grad_norm


def _is_finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
