"""Loss scaling, for products in float16, which has nothing below 6e-8 and nothing above 65,504.

The loss goes back multiplied by a scale, and the gradients are divided by it before they are used.
Gradients that overflow leave a step out and halve the scale; 2,000 good steps double it, which is
torch.amp.GradScaler. No overflow of the scaling, and so none of its business, is a loss that is no
number, because the scale comes after it, and what still overflows at a scale of SCALE_MIN.
"""

from __future__ import annotations

import math

import torch

FIRST_SCALE = 2.0**16
SCALE_MIN = 1.0
"""Below it the loss would be made smaller, which no model that float16 can train needs."""


def make_scaler(device: torch.device, *, compute: torch.dtype) -> torch.amp.GradScaler:
    """One that does nothing unless products run in float16."""
    is_half = compute == torch.float16
    scaler = torch.amp.GradScaler(device.type, init_scale=FIRST_SCALE, enabled=is_half)
    # It makes its scale with the first loss, which a rank without a row never has.
    scaler.scale(torch.zeros((), device=device))
    return scaler


def has_overflowed(scaler: torch.amp.GradScaler, *, loss: float, grad_norm: float) -> bool:
    """Whether a smaller scale may help; all ranks have the same numbers and scale."""
    if math.isfinite(grad_norm) or not math.isfinite(loss):
        return False
    return scaler.is_enabled() and scaler.get_scale() > SCALE_MIN


def forget_gradients(scaler: torch.amp.GradScaler) -> None:
    """Be ready for other gradients, with the scale as it is: these were no step."""
    if scaler.is_enabled():
        scaler.update(scaler.get_scale())
