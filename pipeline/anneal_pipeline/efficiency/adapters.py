"""The adapters of a model one by one: where each sits, its two factors, and what is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from anneal_pipeline.model.beginning import BEGINNING, TRAINED
from anneal_pipeline.model.lora_layers import lora_layers
from anneal_pipeline.model.strengths import StrengthLinear


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One adapter; of stacked experts that of all experts together."""

    name: str
    """The weight it sits on, as the base model names it."""
    layer: LoraLayer
    num_experts: int
    """1 but for stacked experts."""

    @property
    def kind(self) -> str:
        """The last part of its name: q_proj, down_proj ..."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def rank(self) -> int:
        """As configured; where ranks fall, of the directions that are left."""
        first = self.layer.lora_A[TRAINED]
        if isinstance(first, StrengthLinear):
            return max(1, int(first.strengths.detach().count_nonzero()))
        return int(self.layer.r[TRAINED])

    @property
    def scale(self) -> float:
        return float(self.layer.scaling[TRAINED])

    @property
    def parameters(self) -> tuple[torch.nn.Parameter, ...]:
        """What is trained of it: both factors, with DoRA the magnitudes, and strengths."""
        parts = (self.layer.lora_A, self.layer.lora_B, self.layer.lora_magnitude_vector)
        held = [part[TRAINED].weight for part in parts if TRAINED in part]
        firsts = self.layer.lora_A.values()
        held += [first.strengths for first in firsts if isinstance(first, StrengthLinear)]
        return tuple(parameter for parameter in held if parameter.requires_grad)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """B (experts, out, directions) and A (experts, directions, in) of what it adds, unscaled,
        in fp64 on the CPU, where they take no memory that training holds.

        Directions are its rank; twice that where a second adapter takes off what it began at.
        """
        names = [name for name in (TRAINED, BEGINNING) if name in self.layer.lora_A]
        parts = [self._factors_of(name) for name in names]
        return torch.cat([b for b, _ in parts], dim=2), torch.cat([a for _, a in parts], dim=1)

    def _factors_of(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.layer.lora_A[name]
        b, a = self.layer.lora_B[name].weight, first.weight
        if isinstance(first, StrengthLinear):
            left = first.strengths.detach().flatten().abs().topk(self.rank).indices
            b, a = b[:, left], first.folded()[left]
        b, a = b.detach().cpu().double(), a.detach().cpu().double()
        # PEFT lays the experts of B side by side within each direction, and those of A in rows.
        stacked_b = b.reshape(b.shape[0], -1, self.num_experts).permute(2, 0, 1)
        return stacked_b, a.reshape(self.num_experts, -1, a.shape[-1])


def list_adapters(model: PeftModel) -> list[Adapter]:
    """Every adapter of the model, in its order."""
    return list(_adapters(model))


def _adapters(model: PeftModel) -> Iterator[Adapter]:
    for place, module in lora_layers(model):
        stacked = getattr(module, "parameter_name", None)
        if stacked is not None:
            # Wrappers of two parameters of one module lie in each other.
            place = f"{place.replace('.base_layer', '')}.{stacked}"
        yield Adapter(name=place, layer=module, num_experts=getattr(module, "num_experts", 1))
