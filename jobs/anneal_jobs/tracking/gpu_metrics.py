"""Load of the GPUs of this process, under the names MLflow's own charts look for.

NVML numbers the GPUs of the machine, and a process may see a few of them: they are found by their
UUIDs and counted as PyTorch counts them. Where there is no NVML or no GPU there is nothing to say.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch

log = logging.getLogger(__name__)
_MEGABYTE = 1e6


class GpuSampler:
    """Keeps NVML open between readings."""

    def __init__(self, nvml: Any, handles: Mapping[int, Any]) -> None:
        self._nvml = nvml
        self._handles = handles
        """By PyTorch's number."""

    @classmethod
    def open(cls) -> GpuSampler | None:
        """Readings of the GPUs this process sees; None where there are none.

        A GPU that is not found, and a driver that fails, are told in the log and never raised.
        """
        if not torch.cuda.is_available() or torch.version.cuda is None:
            return None
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            log.debug("no readings of GPUs: %s", error)
            return None
        handles: dict[int, Any] = {}
        try:
            for number, uuid in enumerate(visible_uuids()):
                handle = _find(pynvml, uuid)
                if handle is None:
                    log.warning("no readings of GPU %d (%s): NVML does not know it", number, uuid)
                else:
                    handles[number] = handle
        except RuntimeError as error:
            log.warning("no readings of GPUs: PyTorch does not tell which it uses: %s", error)
        sampler = cls(pynvml, handles)
        if not handles:
            sampler.close()
            return None
        return sampler

    def sample(self) -> dict[str, float]:
        """One reading; what a GPU does not tell (power of some virtual ones) is left out."""
        values: dict[str, float] = {}
        for number, handle in self._handles.items():
            for figures in (self._utilisation, self._memory, self._power, self._temperature):
                named = self._told(figures, handle)
                values |= {f"system/gpu_{number}_{name}": value for name, value in named.items()}
        return values

    def close(self) -> None:
        with suppress(self._nvml.NVMLError):  # the driver may be gone; there is nothing to keep
            self._nvml.nvmlShutdown()

    def _told(self, figures: Callable[[Any], dict[str, float]], handle: Any) -> dict[str, float]:
        try:
            return figures(handle)
        except self._nvml.NVMLError:
            return {}

    def _utilisation(self, handle: Any) -> dict[str, float]:
        rates = self._nvml.nvmlDeviceGetUtilizationRates(handle)
        return {"utilization_percentage": float(rates.gpu)}

    def _memory(self, handle: Any) -> dict[str, float]:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        return {
            "memory_usage_megabytes": memory.used / _MEGABYTE,
            "memory_usage_percentage": 100.0 * memory.used / memory.total,
        }

    def _power(self, handle: Any) -> dict[str, float]:
        milliwatts = self._nvml.nvmlDeviceGetPowerUsage(handle)
        limit = self._nvml.nvmlDeviceGetEnforcedPowerLimit(handle)
        return {
            "power_usage_watts": milliwatts / 1000.0,
            "power_usage_percentage": 100.0 * milliwatts / limit,
        }

    def _temperature(self, handle: Any) -> dict[str, float]:
        """MLflow has no reading of it; the name is made as its others are."""
        degrees = self._nvml.nvmlDeviceGetTemperature(handle, self._nvml.NVML_TEMPERATURE_GPU)
        return {"temperature_celsius": float(degrees)}


def _find(nvml: Any, uuid: str) -> Any | None:
    """The handle of a GPU or, with MIG, of a part of one; PyTorch leaves the prefix out."""
    for prefix in ("GPU", "MIG"):
        with suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetHandleByUUID(f"{prefix}-{uuid}")
    return None


def visible_uuids() -> list[str]:
    """Of the GPUs that CUDA_VISIBLE_DEVICES leaves to this process, in PyTorch's order."""
    count = torch.cuda.device_count()
    return [str(torch.cuda.get_device_properties(number).uuid) for number in range(count)]
