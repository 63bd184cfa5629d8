"""The machine's load beside the run: under MLflow's names, with the step of its moment."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from itertools import count
from typing import Any, cast

import pytest

from anneal_jobs.tracking.gpu_metrics import GpuSampler
from anneal_jobs.tracking.system_metrics import SystemSampler, sample


def test_a_reading_has_the_names_of_mlflows_charts_and_numbers_that_can_be() -> None:
    reading = sample()
    assert set(reading) == {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/system_memory_usage_percentage",
        "system/process_memory_usage_megabytes",
        "system/disk_usage_megabytes",
        "system/disk_usage_percentage",
        "system/network_receive_megabytes",
        "system/network_transmit_megabytes",
    }
    assert all(math.isfinite(value) and value >= 0 for value in reading.values())
    shares = [value for name, value in reading.items() if name.endswith("_percentage")]
    assert max(shares[1:]) <= 100
    # In megabytes: a Python process has tens of them, and no million.
    assert 10 < reading["system/process_memory_usage_megabytes"] < 1e6


class Listening:
    """A writer that keeps the points and tells when there are two readings."""

    def __init__(self) -> None:
        self.heard: list[tuple[Mapping[str, float], int, bool]] = []
        self.has_two = threading.Event()

    def add(self, values: Mapping[str, float], *, step: int, is_always_sent: bool) -> None:
        self.heard.append((values, step, is_always_sent))
        if len(self.heard) == 2:
            self.has_two.set()


def test_readings_go_on_until_the_sampler_is_closed_each_with_its_step() -> None:
    writer, steps = Listening(), count(7)
    sampler = SystemSampler(cast(Any, writer), step=lambda: next(steps), interval_seconds=0.001)
    sampler.start()
    assert writer.has_two.wait(timeout=60)
    sampler.close()
    heard = list(writer.heard)
    assert [step for _, step, _ in heard] == list(range(7, 7 + len(heard)))
    assert all(is_always_sent for _, _, is_always_sent in heard)
    assert heard[0][0].keys() == sample().keys()


def test_a_run_shorter_than_the_interval_has_a_reading_too() -> None:
    writer = Listening()
    sampler = SystemSampler(cast(Any, writer), step=lambda: 3, interval_seconds=3600.0)
    sampler.start()
    sampler.close()
    assert [step for _, step, _ in writer.heard] == [3]


def test_a_machine_that_cannot_be_read_costs_its_readings_and_not_the_attempt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise OSError("driver answers nonsense")

    monkeypatch.setattr(GpuSampler, "open", fail)
    writer = Listening()
    sampler = SystemSampler(cast(Any, writer), step=lambda: 3, interval_seconds=3600.0)
    sampler.start()
    sampler.close()
    assert "driver answers nonsense" in caplog.text
    assert [step for _, step, _ in writer.heard] == []
