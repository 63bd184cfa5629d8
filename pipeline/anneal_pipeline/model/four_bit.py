"""Whether the base can be held in 4 bits here, told before anything of it is loaded."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from anneal_pipeline.config.tuning import LOFTQ, QuantizationConfig, TuningConfig
from anneal_pipeline.errors import QUANTIZATION_UNAVAILABLE, UserError

PACKAGE = "bitsandbytes"
CAPABILITY_MIN = (6, 0)
"""Of an NVIDIA GPU, for bitsandbytes' 4-bit kernels (Pascal)."""
CAPABILITY_MIN_CUDA_13 = (7, 5)
"""The same where PyTorch is built for CUDA 13, which has no compiler for older ones (Turing)."""
_ERROR_MAX = 0.2
"""Neither type is further off than half its widest gap: 0.15 of a block's largest number for NF4,
0.17 for FP4."""


@dataclass(frozen=True, kw_only=True)
class BaseForm:
    """How the base is held in this run."""

    in_4_bit: bool
    notice: str | None = None
    """Said when the run goes on otherwise than it was asked to."""

    @property
    def method(self) -> str:
        return "qlora" if self.in_4_bit else "lora"


def choose_base_form(tuning: TuningConfig, *, device: torch.device) -> BaseForm:
    """4 bits if asked for; where they cannot be had, refuse or go on as plain LoRA."""
    if tuning.method != "qlora":
        return BaseForm(in_4_bit=False)
    fault = find_fault(device, wanted=tuning.quantization)
    if fault is None:
        return BaseForm(in_4_bit=True)
    if tuning.fallback == "allow":
        began = ", begun as default," if tuning.lora.initialization == LOFTQ else ""
        return BaseForm(
            in_4_bit=False,
            notice=f"4-bit quantisation is not available: {fault}. Going on as plain LoRA{began} "
            "over the unquantised base, because tuning.fallback is allow: it needs about four "
            "times the memory for weights",
        )
    raise UserError(
        QUANTIZATION_UNAVAILABLE,
        f"4-bit quantisation (tuning.method qlora) is not available: {fault}; use a trainer image "
        "and a node that have it, set tuning.method to lora, or tuning.fallback to allow",
    )


def find_fault(device: torch.device, *, wanted: QuantizationConfig) -> str | None:
    """Why 4-bit does not work on `device` as wanted, found by trying it on a small weight."""
    if importlib.util.find_spec(PACKAGE) is None:
        return f"the package {PACKAGE} is not installed"
    if device.type == "cuda" and torch.version.cuda is not None:
        fault = _capability_fault(device, cuda=torch.version.cuda)
        if fault is not None:
            return fault
    try:
        error = _round_trip_error(device, wanted)
    except (ImportError, OSError, RuntimeError, AttributeError, NotImplementedError) as fault:
        first_line = next(iter(str(fault).strip().splitlines()), type(fault).__name__)
        return f"{first_line} ({_versions(device)})"
    if not error <= _ERROR_MAX:
        return f"its numbers are wrong by {error:.3g} of the largest ({_versions(device)})"
    return None


def _capability_fault(device: torch.device, *, cuda: str) -> str | None:
    """What an old GPU lacks; its kernels would end in a CUDA error, after which none works."""
    capability = torch.cuda.get_device_capability(device)
    least = CAPABILITY_MIN_CUDA_13 if int(cuda.split(".")[0]) >= 13 else CAPABILITY_MIN
    if capability >= least:
        return None
    return (
        f"{torch.cuda.get_device_name(device)} has compute capability {_dotted(capability)}, and "
        f"{PACKAGE} for CUDA {cuda} needs {_dotted(least)} or more"
    )


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _round_trip_error(device: torch.device, wanted: QuantizationConfig) -> float:
    functional = importlib.import_module(f"{PACKAGE}.functional")
    weight = torch.linspace(-1.0, 1.0, 64 * 64, device=device).view(64, 64)
    packed, state = functional.quantize_4bit(
        weight, compress_statistics=wanted.double_quant, quant_type=wanted.type
    )
    unpacked = functional.dequantize_4bit(packed, state)
    return float((unpacked - weight).abs().max())


def _versions(device: torch.device) -> str:
    """What has to fit together for 4-bit to work."""
    try:
        own = version(PACKAGE)
    except PackageNotFoundError:
        own = "of unknown version"
    said = f"{PACKAGE} {own}, torch {torch.__version__}"
    if device.type != "cuda":
        return f"{said}, {device.type}"
    capability = _dotted(torch.cuda.get_device_capability(device))
    name = torch.cuda.get_device_name(device)
    return f"{said} built for CUDA {torch.version.cuda}, {name} of capability {capability}"
