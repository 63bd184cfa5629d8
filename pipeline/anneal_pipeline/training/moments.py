"""What an optimizer remembers of earlier gradients, made before it is needed.

Optimizers make their moments in the first step that has a gradient: the one place where memory that
runs out would leave some weights moved and some not. Here they are made beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def prepare_moments(
    optimizer: torch.optim.Optimizer, parameters: Iterable[torch.nn.Parameter]
) -> None:
    """Make what is missing of the moments of `parameters`: zeros, as before the first step.

    Whole for a parameter or not at all, so that a failure for lack of memory can be tried again.
    """
    wanted = {id(parameter) for parameter in parameters}
    for group_index, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            if id(parameter) in wanted and not optimizer.state.get(parameter):
                _prepare(optimizer, parameter, group=group_index, index=index)


def _prepare(
    optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, *, group: int, index: int
) -> None:
    begin: Any = getattr(optimizer, "init_state", None)  # bitsandbytes: paged where they have to be
    if begin is None:
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),  # there fused AdamW wants it
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
        return
    try:
        begin(optimizer.param_groups[group], parameter, group, index)
    except BaseException:
        optimizer.state.pop(parameter, None)
        raise
