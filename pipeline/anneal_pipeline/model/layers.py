"""A weight that an adapter can sit on; without torch, for the memory plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from anneal_pipeline.model.roles import Role


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A weight that an adapter can sit on."""

    name: str
    role: Role
    in_features: int
    out_features: int
    num_experts: int = 0
    """0: an ordinary linear layer. Else: a parameter that stacks so many matrices."""

    @property
    def max_rank(self) -> int:
        """The rank of the whole matrix; more than this an adapter cannot use."""
        return min(self.in_features, self.out_features)

    @property
    def num_parameters(self) -> int:
        return self.in_features * self.out_features * max(1, self.num_experts)

    def num_adapter_parameters(self, rank: int) -> int:
        return rank * (self.in_features + self.out_features) * max(1, self.num_experts)


def kinds(names: Iterable[str]) -> str:
    """The last parts of names, each once with its count."""
    found = Counter(name.rsplit(".", 1)[-1] for name in names)
    return ", ".join(f"{kind} ({count})" for kind, count in sorted(found.items()))
