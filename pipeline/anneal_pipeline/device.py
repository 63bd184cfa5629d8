"""Which device a rank computes on, in which type, and how much memory it has used."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def choose_device(local_rank: int) -> torch.device:
    """The accelerator of this rank where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device("cpu")


def compute_dtype(wanted: str, *, device: torch.device) -> torch.dtype:
    """Resolve `tuning.quantization.computeDtype`.

    auto is bfloat16 on a GPU that has it and float16 on an older one; float32 on CPU, where
    resuming to the last bit is promised and bfloat16 products are seldom faster.
    """
    if wanted != "auto":
        return _DTYPES[wanted]
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def used_memory_bytes(device: torch.device) -> int:
    """Peak memory of the accelerator, or the resident set now on CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:  # no procfs outside Linux: the peak is the best there is
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()
