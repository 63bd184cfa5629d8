"""How many of its directions an adapter uses, from the singular values of its product B A.

The full product (out x in) is never made: with B = Qb Rb and A^T = Qa Ra its singular values are
those of the small core Rb Ra^T. The effective rank is that of Roy and Vetterli (2007, The effective
rank): the exponential of the entropy of the singular values taken as shares. k equal ones give k, a
single one gives 1, weak ones count for little; no threshold has to be chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from anneal_pipeline.efficiency.adapters import Adapter

_ROUNDING = 1e-10
"""Of the factors' norms: products below are what is left of two that cancel, in fp64."""


@dataclass(frozen=True, kw_only=True)
class RankUse:
    """Of one adapter; of stacked experts the mean over them."""

    directions: int
    """What B A can have at most: the rank, or twice that where its beginning is taken off."""
    effective: float
    """0 where the adapter adds nothing."""
    update_norm: float
    """Frobenius norm of what the adapter adds to its weight, scaled as it acts."""

    @property
    def share(self) -> float:
        return self.effective / self.directions


def singular_values(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Of b @ a, largest first, with b (..., out, r) and a (..., r, in): (..., at most r)."""
    left = torch.linalg.qr(b, mode="r").R
    right = torch.linalg.qr(a.mT, mode="r").R
    values: torch.Tensor = torch.linalg.svdvals(left @ right.mT)
    return values


def effective_rank(values: torch.Tensor) -> torch.Tensor:
    """Of singular values (..., r); 0 where all are 0."""
    total = values.sum(-1, keepdim=True)
    shares = torch.where(total > 0, values / total, 0.0)
    entropy = torch.special.entr(shares).sum(-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), 0.0)


@torch.no_grad()
def rank_use(adapter: Adapter) -> RankUse:
    b, a = adapter.factors()
    values = singular_values(b, a)
    norms = torch.linalg.matrix_norm(b) * torch.linalg.matrix_norm(a)
    values = torch.where(values > _ROUNDING * norms[:, None], values, 0.0)
    return RankUse(
        directions=min(a.shape[1], b.shape[1], a.shape[2]),
        effective=float(effective_rank(values).mean()),
        update_norm=adapter.scale * float(values.norm()),
    )
