"""Readings of this process's GPUs through a stand-in for NVML, the driver's library."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from anneal_jobs.tracking.gpu_metrics import GpuSampler
from anneal_jobs.tracking.system_metrics import SystemSampler

FIRST, SECOND = "1111-aaaa", "2222-bbbb"


class NVMLError(Exception):
    """As pynvml names it."""


class FakeNvml(SimpleNamespace):
    """A machine with GPUs, of which this process sees some; each tells what it is made to."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(
        self, uuids: Sequence[str] = (f"GPU-{FIRST}", f"GPU-{SECOND}"), **told: Any
    ) -> None:
        super().__init__(uuids=uuids, told=told, is_open=False)

    def nvmlInit(self) -> None:
        self._answer("init", None)
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self._answer("shutdown", None)
        self.is_open = False

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        if uuid not in self.uuids:
            raise NVMLError("Not Found")
        return self.uuids.index(uuid)

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
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda number: SimpleNamespace(uuid=(FIRST, SECOND)[number]),
    )


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


@pytest.mark.usefixtures("gpus")
def test_one_gpu_that_is_not_found_costs_its_own_readings_and_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sampler = sampler_of(FakeNvml(uuids=[f"GPU-{FIRST}"]), monkeypatch)
    assert sampler is not None
    assert {name.split("_")[1] for name in sampler.sample()} == {"0"}
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert f"GPU 1 ({SECOND})" in warning.getMessage()


@pytest.mark.usefixtures("gpus")
def test_a_part_of_a_gpu_is_found_by_the_prefix_of_its_kind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sampler = sampler_of(FakeNvml(uuids=[f"MIG-{FIRST}", f"MIG-{SECOND}"]), monkeypatch)
    assert sampler is not None
    assert sampler.sample()["system/gpu_1_utilization_percentage"] == 81.0
    assert not caplog.records


@pytest.mark.usefixtures("gpus")
def test_where_no_gpu_is_found_nvml_does_not_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(uuids=[])
    assert sampler_of(nvml, monkeypatch) is None
    assert not nvml.is_open


@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_torch_cannot_tell_of_costs_the_readings_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(number: int) -> None:
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    nvml = FakeNvml()
    assert sampler_of(nvml, monkeypatch) is None
    assert not nvml.is_open
    assert "CUDA driver initialization failed" in caplog.text


@pytest.mark.usefixtures("gpus")
def test_a_driver_that_is_gone_at_the_end_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = sampler_of(FakeNvml(shutdown=NVMLError("GPU is lost")), monkeypatch)
    assert sampler is not None
    sampler.close()


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
