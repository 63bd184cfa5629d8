"""Which directions of the adapters are kept (AdaLoRA, Zhang et al. 2023), and what that rests on.

After every step the importance of each number of a direction (a strength, its row of A, its column
of B) is taken from its value times its gradient, smoothed over steps and weighed by how much it
varies. Where ranks are due to fall, the directions that matter least over the whole model are
pruned: their strengths are zero in every forward pass from then on, until a later decision takes
them back. Everything here follows from weights and gradients that all ranks have alike.

The scores are those of PEFT's `RankAllocator`, which a test holds them to; it prunes by a
threshold and can be off by ties, has no state that could be saved, and lets what it has pruned act
between two decisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import torch
from peft import PeftModel

from anneal_pipeline.config.tuning import LoraConfig
from anneal_pipeline.model.beginning import TRAINED
from anneal_pipeline.model.lora_layers import lora_layers
from anneal_pipeline.model.strengths import StrengthLinear
from anneal_pipeline.training.rank_schedule import RankSchedule, rank_schedule

SENSITIVITY_DECAY = UNCERTAINTY_DECAY = 0.85
"""Of both moving averages, as in the paper and in PEFT."""
_SMOOTH = 1e-2
"""Where directions are apart to this Frobenius norm, what holds them apart fades out."""
_KEPT, _AVERAGE, _UNCERTAINTY = "kept", "importance", "uncertainty"


@dataclass(kw_only=True)
class _Importance:
    """Of each number of one parameter."""

    average: torch.Tensor
    uncertainty: torch.Tensor

    def add(self, parameter: torch.Tensor) -> None:
        if parameter.grad is None:
            return
        now = (parameter.detach() * parameter.grad).abs()
        self.average.lerp_(now, 1.0 - SENSITIVITY_DECAY)
        self.uncertainty.lerp_((now - self.average).abs_(), 1.0 - UNCERTAINTY_DECAY)

    def scores(self) -> torch.Tensor:
        return self.average * self.uncertainty


class RankAllocator:
    def __init__(
        self, schedule: RankSchedule, *, model: PeftModel, orthogonality_weight: float
    ) -> None:
        self.schedule = schedule
        self._weight = orthogonality_weight
        self._firsts: dict[str, StrengthLinear] = {}
        self._seconds: dict[str, torch.Tensor] = {}
        for name, layer in lora_layers(model):
            self._firsts[name] = layer.lora_A[TRAINED]
            self._seconds[name] = layer.lora_B[TRAINED].weight
        self._importances: dict[str, _Importance] = {}
        self.ranks: dict[str, int] = {}
        """By module, in the order of the model."""
        self._keep(
            {
                name: torch.ones_like(first.strengths[:, 0], dtype=torch.bool)
                for name, first in self._firsts.items()
            }
        )

    @property
    def mean_rank(self) -> float:
        return self._num_kept / len(self.ranks)

    @property
    def _num_kept(self) -> int:
        return sum(self.ranks.values())

    def is_settled(self, step: int) -> bool:
        """Whether ranks are within the budget after `step`, and stay as they are."""
        return step >= self.schedule.end and self._num_kept == self.schedule.target

    def _keep(self, masks: dict[str, torch.Tensor]) -> None:
        self._kept = masks
        self.ranks = {name: int(mask.sum()) for name, mask in masks.items()}

    def hold_apart(self) -> None:
        """Add the gradients of what holds directions apart: weight x mean |A A^T - I|, |B^T B - I|.

        Once in a step, whatever the number of its micro-batches and ranks. A step without
        gradients gets none.
        """
        share = self._weight / (2 * len(self._firsts))
        for name, first in self._firsts.items():
            second = self._seconds[name]
            for parameter, rows in ((first.weight, first.weight), (second, second.t())):
                if share and parameter.grad is not None:
                    pull = _pull_apart(rows.detach())
                    parameter.grad.add_(pull if rows is parameter else pull.t(), alpha=share)

    def after_update(self, step: int, *, has_moved: bool) -> bool:
        """Learn from the gradients of `step`, and prune; True when ranks are settled by it.

        `has_moved` False: there were no gradients, or they overflowed; nothing is learnt, but what
        was learnt before decides.
        """
        schedule, is_settled = self.schedule, False
        if step <= schedule.end or self._importances or self._num_kept > schedule.target:
            if has_moved:
                self._learn()
            if self._importances and schedule.is_due(step, num_kept=self._num_kept):
                self._decide(schedule.budget(step))
            is_settled = self.is_settled(step)
        if is_settled:
            self._importances = {}
        self._prune()
        return is_settled

    def _parameters(self) -> dict[str, tuple[torch.Tensor, ...]]:
        return {
            name: (first.strengths, first.weight, self._seconds[name])
            for name, first in self._firsts.items()
        }

    def _learn(self) -> None:
        for name, parameters in self._parameters().items():
            for index, parameter in enumerate(parameters):
                key = f"{name}|{index}"
                if key not in self._importances:
                    self._importances[key] = _Importance(
                        average=torch.zeros_like(parameter, requires_grad=False),
                        uncertainty=torch.zeros_like(parameter, requires_grad=False),
                    )
                self._importances[key].add(parameter)

    def _decide(self, budget: int) -> None:
        self._keep(keep_best({name: self._scores(name) for name in self._firsts}, budget))

    def _scores(self, name: str) -> torch.Tensor:
        """(rank,): a strength's own, and the means over its row of A and its column of B."""
        strengths, rows, columns = (
            self._importances[f"{name}|{index}"].scores() for index in range(3)
        )
        return strengths[:, 0] + rows.mean(dim=1) + columns.mean(dim=0)

    @torch.no_grad()
    def _prune(self) -> None:
        for name, kept in self._kept.items():
            self._firsts[name].strengths.masked_fill_(~kept[:, None], 0.0)

    def state(self) -> dict[str, torch.Tensor]:
        """All that decisions to come rest on, beside the weights."""
        tensors = {f"{name}|{_KEPT}": kept for name, kept in self._kept.items()}
        for key, importance in self._importances.items():
            tensors[f"{key}|{_AVERAGE}"] = importance.average
            tensors[f"{key}|{_UNCERTAINTY}"] = importance.uncertainty
        return {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state` gave."""
        device = next(iter(self._kept.values())).device
        self._keep({name: tensors[f"{name}|{_KEPT}"].to(device) for name in self._kept})
        keys = [key.removesuffix(f"|{_AVERAGE}") for key in tensors if key.endswith(_AVERAGE)]
        self._importances = {
            key: _Importance(
                average=tensors[f"{key}|{_AVERAGE}"].to(device),
                uncertainty=tensors[f"{key}|{_UNCERTAINTY}"].to(device),
            )
            for key in keys
        }


def make_allocator(
    config: LoraConfig, *, model: PeftModel, total_steps: int
) -> RankAllocator | None:
    """The allocator of a run, or None where ranks stay as they are."""
    num_adapters = sum(1 for _ in lora_layers(model))
    schedule = rank_schedule(config, num_adapters=num_adapters, total_steps=total_steps)
    if schedule is None or config.rank_allocation is None:
        return None
    return RankAllocator(
        schedule, model=model, orthogonality_weight=config.rank_allocation.orthogonality_weight
    )


def describe_ranks(ranks: Mapping[str, int]) -> str:
    """Average, least and most, and the averages of modules of a name."""
    by_kind: dict[str, list[int]] = {}
    for name, rank in ranks.items():
        by_kind.setdefault(name.rsplit(".", 1)[-1], []).append(rank)
    kinds = ", ".join(f"{kind} {fmean(own):.1f}" for kind, own in sorted(by_kind.items()))
    every = list(ranks.values())
    return (
        f"{fmean(every):.1f} on average, from {min(every)} to {max(every)} ({kinds}); modules with "
        "0 learn nothing more"
    )


def keep_best(scores: Mapping[str, torch.Tensor], budget: int) -> dict[str, torch.Tensor]:
    """Masks of the `budget` highest scores over all modules; of equal ones the first are taken."""
    together = torch.cat(list(scores.values()))
    best = torch.sort(together, descending=True, stable=True).indices[:budget]
    mask = torch.zeros_like(together, dtype=torch.bool)
    mask[best] = True
    parts = torch.split(mask, [len(own) for own in scores.values()])
    return dict(zip(scores, parts, strict=True))


def _pull_apart(rows: torch.Tensor) -> torch.Tensor:
    """The gradient of |R R^T - I|, the Frobenius norm, for directions that are rows."""
    difference = rows @ rows.t()
    difference.diagonal().sub_(1.0)
    length = torch.sqrt(difference.square().sum() + _SMOOTH**2)
    return 2.0 * (difference / length) @ rows
