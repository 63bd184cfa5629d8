"""Which device a rank computes on, in which type, and how much memory it has used."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

from anneal_pipeline.errors import QUANTIZATION_UNAVAILABLE, UserError
from anneal_pipeline.memory.room import PROC, resident_bytes

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


_BFLOAT16_WORDS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""What x86 and ARM call their instructions for it in /proc/cpuinfo."""


def cpu_has_bfloat16(proc: Path = PROC) -> bool | None:
    """Whether the CPU multiplies bfloat16 in hardware; None where nothing tells."""
    path = proc / "cpuinfo"
    if not path.is_file():
        return None
    return not _BFLOAT16_WORDS.isdisjoint(path.read_text().split())


def gpu_has_bfloat16() -> bool:
    """Whether the current GPU multiplies bfloat16 in hardware."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def has_bfloat16(device: torch.device) -> bool | None:
    """Whether `device` multiplies bfloat16 in hardware; None where nothing tells."""
    return gpu_has_bfloat16() if device.type == "cuda" else cpu_has_bfloat16()


def choose_device(local_rank: int) -> torch.device:
    """The accelerator of this rank where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device("cpu")


def compute_dtype(
    wanted: str,
    *,
    device: torch.device,
    trained_in: str | None = None,
    trains_whole: bool = False,
) -> torch.dtype:
    """Resolve `tuning.quantization.computeDtype`; `trained_in` is the type of the base's weights.

    `trains_whole`: modules of the base are trained, in the type that it is loaded in. auto is
    bfloat16 on a GPU that has it and float16 on an older one; float32 on CPU, where resuming to the
    last bit is promised. bfloat16 is faster on CPUs with instructions for it (docs/benchmarks.md).
    """
    return _DTYPES[
        resolve_compute(
            wanted,
            kind=device.type,
            has_bfloat16=device.type != "cuda" or gpu_has_bfloat16(),
            trained_in=trained_in,
            trains_whole=trains_whole,
        )
    ]


def resolve_compute(
    wanted: str,
    *,
    kind: str,
    has_bfloat16: bool,
    trained_in: str | None,
    trains_whole: bool = False,
) -> str:
    """The rule behind `compute_dtype`, for a device of `kind`."""
    overflows = trained_in == "bfloat16"
    if wanted == "auto":
        if kind == "cpu":
            return "float32"
        if has_bfloat16:
            return "bfloat16"
        # A model trained in bfloat16 reaches numbers that float16 does not have (above 65,504).
        return "float32" if overflows or trains_whole else "float16"
    if wanted == "bfloat16" and not has_bfloat16:
        raise _unfit(wanted, "this GPU does not have it; use auto")
    if wanted == "float16" and kind == "cpu":
        raise _unfit(wanted, "it is for GPUs; use auto or float32 on a CPU")
    if wanted == "float16" and overflows:
        raise _unfit(wanted, "the model was trained in bfloat16 and overflows in it; use auto")
    if wanted == "float16" and trains_whole:
        why = "it cannot hold the gradients of tuning.lora.modulesToSave"
        raise _unfit(wanted, f"{why}; use auto or float32, or remove these modules")
    return wanted


def _unfit(wanted: str, why: str) -> UserError:
    return UserError(
        QUANTIZATION_UNAVAILABLE,
        f"tuning.quantization.computeDtype {wanted} cannot be used: {why}",
    )


def used_memory_bytes(device: torch.device) -> int:
    """Peak memory of the accelerator, or the resident set now on CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # No procfs outside Linux: the peak is the best there is.
    return resident_bytes() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
