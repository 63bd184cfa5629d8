from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anneal_jobs.stage_memory import (
    MemoryReading,
    StageMemory,
    describe,
    is_short,
    near_limit,
    read_memory,
)

GIBIBYTE = 1 << 30
READING = MemoryReading(
    stage="train",
    timestamp=1.0,
    process_bytes=3 * GIBIBYTE,
    process_peak_bytes=4 * GIBIBYTE,
    host_used_bytes=5 * GIBIBYTE,
    host_limit_bytes=8 * GIBIBYTE,
)


def test_each_stage_is_read_once_when_it_ends_and_the_baseline_first() -> None:
    readings: list[MemoryReading] = []
    memory = StageMemory(num_processes=1, on_reading=readings.append, on_near_limit=lambda _: None)
    memory.enter("load")
    weights = torch.ones(32 << 20)
    memory.enter("load")
    memory.enter("train")
    assert [reading.stage for reading in readings] == ["start", "load"]
    baseline, loaded = readings
    assert loaded.process_bytes - baseline.process_bytes == pytest.approx(weights.nbytes, rel=0.2)
    assert loaded.timestamp >= baseline.timestamp
    assert loaded.process_peak_bytes >= loaded.process_bytes * 0.99


def test_a_container_is_measured_by_its_working_set(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{8 * GIBIBYTE}\n")
    (tmp_path / "memory.current").write_text(f"{6 * GIBIBYTE}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {GIBIBYTE}\n")
    reading = read_memory("train", cgroup_root=tmp_path)
    assert (reading.host_used_bytes, reading.host_limit_bytes) == (5 * GIBIBYTE, 8 * GIBIBYTE)


@pytest.mark.parametrize("limit", [None, "max"])
def test_without_a_limit_it_is_the_machine(tmp_path: Path, limit: str | None) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("1\n")
        (tmp_path / "memory.stat").write_text("")
    reading = read_memory("train", cgroup_root=tmp_path)
    assert reading.host_limit_bytes > GIBIBYTE
    assert 0 < reading.host_used_bytes < reading.host_limit_bytes


def test_close_to_the_limit_is_told_with_numbers_and_remedy() -> None:
    assert near_limit(READING) is None
    container = replace(READING, host_used_bytes=int(7.5 * GIBIBYTE))
    assert near_limit(container) == (
        "The container has used 7.5 of 8.0 GiB (94%) in stage train; a longer row may not fit: "
        "lower training.microBatchSize or training.sequenceLength, set "
        "training.gradientCheckpointing, or ask for more memory"
    )
    accelerator = replace(
        READING,
        accelerator_peak_bytes=23 * GIBIBYTE,
        accelerator_total_bytes=24 * GIBIBYTE,
    )
    assert str(near_limit(accelerator)).startswith("The accelerator has used 23.0 of 24.0 GiB")


def test_the_peak_of_the_run_is_one_series_over_all_stages() -> None:
    later = replace(READING, stage="export", process_bytes=GIBIBYTE, process_peak_bytes=6 << 30)
    peaks = [reading.metrics()["memory/peak/process_megabytes"] for reading in (READING, later)]
    assert peaks == [4 * GIBIBYTE / 1e6, 6 * GIBIBYTE / 1e6]


def test_it_is_told_once() -> None:
    told: list[str] = []
    memory = StageMemory(num_processes=1, on_reading=lambda _: None, on_near_limit=told.append)
    full = replace(READING, host_used_bytes=8 * GIBIBYTE)
    memory.watch(full)
    memory.watch(full)
    assert len(told) == 1


def test_an_accelerator_has_points_and_free_memory_of_its_own() -> None:
    assert sorted(READING.metrics()) == [
        "memory/peak/process_megabytes",
        "memory/train/host_used_megabytes",
        "memory/train/process_megabytes",
        "memory/train/process_peak_megabytes",
    ]
    reading = replace(
        READING, accelerator_reserved_bytes=GIBIBYTE, accelerator_total_bytes=3 * GIBIBYTE
    )
    assert "memory/train/accelerator_peak_megabytes" in reading.metrics()
    assert "memory/peak/accelerator_megabytes" in reading.metrics()
    assert describe(reading)["accelerator_free_bytes"] == 2 * GIBIBYTE


@pytest.mark.parametrize(
    ("process", "ranks", "limit", "want"),
    [(3, 1, 8, False), (5, 1, 8, True), (3, 2, 8, True), (5, 1, 0, False)],
)
def test_memory_is_short_when_all_ranks_hold_half_of_the_limit(
    process: int, ranks: int, limit: int, want: bool
) -> None:
    reading = replace(READING, process_bytes=process * GIBIBYTE, host_limit_bytes=limit * GIBIBYTE)
    assert is_short(reading, num_processes=ranks) is want
