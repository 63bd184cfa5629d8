"""Trained rows of an otherwise frozen table, without work for the other rows.

PEFT copies the whole table with the trained rows put into it, each time it is used, and so computes
the gradient of the whole table: with the output head that is once for every piece of logits. Here
the frozen table answers first; an embedding's trained rows are put in the place of the frozen ones,
and to the logits of a head comes what its rows have moved since. Both give the numbers of PEFT, but
for rounding, and those of the base to the bit before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch.nn import functional


class TrainedRows(TrainableTokensLayer):  # type: ignore[misc]
    """An embedding, or an output head, of which some rows are trained."""

    def forward_adapters(
        self, x: torch.Tensor, active_adapters: Sequence[str], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Answer for `x`: token ids (...) of an embedding, hidden states (..., width) of a head."""
        table = self.base_layer
        is_known = isinstance(table, (torch.nn.Embedding, torch.nn.Linear))
        if self.disable_adapters or self.merged or not active_adapters or not is_known:
            answer: torch.Tensor = super().forward_adapters(x, active_adapters, *args, **kwargs)
            return answer
        self._check_overlapping_tokens(list(active_adapters))
        result: torch.Tensor = table(x)
        for name in active_adapters:
            index = torch.tensor(self.token_indices[name], device=x.device)
            rows = self.trainable_tokens_delta[name]
            if isinstance(table, torch.nn.Embedding):
                scale = self._get_embed_scale()  # Gemma's; it is in the result already
                result = _with_own_rows(result, x, index=index, rows=rows, scale=scale)
            else:
                moved = rows - self.trainable_tokens_original[name]
                result = result.index_add(-1, index, functional.linear(x, moved.to(result.dtype)))
        return result


def compute_trained_rows_alone(tuned: torch.nn.Module) -> None:
    """Let every table of `tuned` of which rows are trained answer as TrainedRows."""
    for module in tuned.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = TrainedRows


def _with_own_rows(
    result: torch.Tensor,
    ids: torch.Tensor,
    *,
    index: torch.Tensor,
    rows: torch.Tensor,
    scale: torch.Tensor | None,
) -> torch.Tensor:
    """What was looked up, with the trained `rows` where `ids` are those of `index`, a rising one.

    Every position looks into the few rows, so that nothing waits to know how many are theirs.
    """
    place = torch.searchsorted(index, ids).clamp(max=len(index) - 1)
    own = functional.embedding(place, rows).to(result.dtype)
    if scale is not None:
        own = own * scale.to(own.dtype)
    return torch.where((index[place] == ids).unsqueeze(-1), own, result)
