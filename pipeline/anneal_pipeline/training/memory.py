"""Running out of memory: how it shows, and how many rows may go through the model at once."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch

from anneal_pipeline.device import used_memory_bytes
from anneal_pipeline.memory.allocator import give_back_holes

_MESSAGES = (
    "can't allocate memory",  # PyTorch's CPU allocator
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)


class MemoryRanOutError(Exception):
    """On some rank; raised on all of them, with the gradients of the step dropped."""


@dataclass(kw_only=True)
class RowLimit:
    """The most rows per forward pass; only ever lowered."""

    rows: int
    may_halve: bool
    """False: running out of memory is the end."""

    def halve(self, *, rows: int) -> bool:
        """Go below `rows`, which was too many; False when that is not possible."""
        if rows <= 1 or not self.may_halve:
            return False
        self.rows = rows // 2
        return True


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)


def memory_in_use(device: torch.device) -> int:
    """Bytes as `used_memory_bytes` counts them, without the holes of the C library's heap."""
    gc.collect()
    if device.type == "cpu":
        give_back_holes()
    return used_memory_bytes(device)


def free_memory(device: torch.device) -> None:
    """Give back what the failed pass held; call it outside the `except` block that caught it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
