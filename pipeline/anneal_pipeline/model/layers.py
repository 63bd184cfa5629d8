"""Weights that an adapter can sit on, by name, role and size."""

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


def kinds(names: Iterable[str]) -> str:
    """The last parts of names, each once with its count."""
    found = Counter(name.rsplit(".", 1)[-1] for name in names)
    return ", ".join(f"{kind} ({count})" for kind, count in sorted(found.items()))
