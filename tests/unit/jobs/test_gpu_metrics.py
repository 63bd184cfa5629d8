"""Readings of this process's GPUs through a stand-in for NVML, the driver's library."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from anneal_jobs.tracking import gpu_metrics
from anneal_jobs.tracking.gpu_metrics import GpuSampler
from anneal_jobs.tracking.system_metrics import SystemSampler

UUIDS = ["1111-aaaa", "2222-bbbb"]


class NVMLError(Exception):
    """As pynvml names it."""


class FakeNvml(SimpleNamespace):
    """A machine with GPUs, of which this process sees some; each tells what it is made to."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, **told: Any) -> None:
        super().__init__(told=told, is_open=False)

    def nvmlInit(self) -> None:
        self._answer("init", None)
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return UUIDS.index(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=self._answer("utilization", 80 + handle), memory=3)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(used=20_000_000_000, total=80_000_000_000)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return int(self._answer("power", 350_000))

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        return 700_000

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 55 + sensor

    def _answer(self, name: str, usual: Any) -> Any:
        answer = self.told.get(name, usual)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpu_metrics, "visible_uuids", lambda: UUIDS)


def sampler_of(nvml: FakeNvml | None, monkeypatch: pytest.MonkeyPatch) -> GpuSampler | None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return GpuSampler.open()


@pytest.mark.usefixtures("gpus")
def test_every_gpu_of_the_process_has_mlflows_names(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    sampler = sampler_of(nvml, monkeypatch)
    assert sampler is not None
    want = {
        "utilization_percentage": 80.0,
        "memory_usage_megabytes": 20_000.0,
        "memory_usage_percentage": 25.0,
        "power_usage_watts": 350.0,
        "power_usage_percentage": 50.0,
        "temperature_celsius": 55.0,
    }
    reading = sampler.sample()
    first = {f"system/gpu_0_{name}": value for name, value in want.items()}
    assert {name: reading[name] for name in first} == first
    assert reading["system/gpu_1_utilization_percentage"] == 81.0
    assert len(reading) == 2 * len(want)
    sampler.close()
    assert not nvml.is_open


@pytest.mark.usefixtures("gpus")
def test_what_a_gpu_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(power=NVMLError("Not Supported"), utilization=NVMLError("Not Supported"))
    sampler = sampler_of(nvml, monkeypatch)
    assert sampler is not None
    assert sorted(name for name in sampler.sample() if "gpu_0" in name) == [
        "system/gpu_0_memory_usage_megabytes",
        "system/gpu_0_memory_usage_percentage",
        "system/gpu_0_temperature_celsius",
    ]


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    "nvml", [None, FakeNvml(init=NVMLError("Driver Not Loaded"))], ids=["no package", "no driver"]
)
def test_without_nvml_nothing_is_said(
    nvml: FakeNvml | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sampler_of(nvml, monkeypatch) is None
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_without_a_gpu_nvml_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    nvml = FakeNvml(init=AssertionError("asked"))
    assert sampler_of(nvml, monkeypatch) is None


@pytest.mark.usefixtures("gpus")
def test_a_reading_of_the_machine_has_its_gpus_and_nvml_is_closed_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Listening:
        def __init__(self) -> None:
            self.readings: list[Mapping[str, float]] = []

        def add(self, values: Mapping[str, float], *, step: int, is_always_sent: bool) -> None:
            self.readings.append(values)

    nvml, writer = FakeNvml(), Listening()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    sampler = SystemSampler(cast(Any, writer), step=lambda: 3, interval_seconds=3600.0)
    sampler.start()
    sampler.close()
    [reading] = writer.readings
    assert reading["system/gpu_0_power_usage_watts"] == 350.0
    assert reading["system/cpu_utilization_percentage"] >= 0
    assert not nvml.is_open
