"""What the ranks of a run agree on; alone, a rank agrees with itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This rank among `world_size`, joined by the default process group when there are several."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up numbers over all ranks (fp64)."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        summed: list[float] = tensor.tolist()
        return summed

    def any(self, flag: bool) -> bool:  # one value, its meaning is the caller's
        return self.sum([float(flag)])[0] > 0

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Add up gradients over all ranks in place; a rank without any adds zeros."""
        if self.world_size == 1:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([grad.flatten() for grad in grads])
        torch.distributed.all_reduce(flat)
        for parameter, part in zip(
            parameters, torch.split(flat, [g.numel() for g in grads]), strict=True
        ):
            parameter.grad = part.view_as(parameter)

    def barrier(self) -> None:
        if self.world_size > 1:
            torch.distributed.barrier()
