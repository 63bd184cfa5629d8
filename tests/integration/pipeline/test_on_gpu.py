"""What only a GPU can show; skipped without one. Nobody has run it on one yet."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.benchmarks.memory import SMALL, write_model

from anneal_pipeline.device import used_memory_bytes
from anneal_pipeline.model.adapters import trainable_parameters
from anneal_pipeline.model.loading import TunedModel, load_tuned_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
MIB = 1 << 20


def load(kit: ModuleType, folder: Path) -> TunedModel:
    config = kit.make_config(tuning={"method": "qlora"})
    return load_tuned_model(config, folder=folder, device=torch.device("cuda", 0))


def test_adapters_lie_on_the_device_of_their_base_and_a_trial_pass_runs(
    kit: ModuleType, tmp_path: Path
) -> None:
    tuned = load(kit, kit.write_model(tmp_path, hidden=64))
    assert {p.device for p in tuned.model.parameters()} == {torch.device("cuda", 0)}
    assert {p.dtype for p in trainable_parameters(tuned.model).values()} == {torch.float32}
    ids = torch.arange(16, device="cuda").unsqueeze(0)
    assert torch.isfinite(tuned.model(input_ids=ids).logits).all()


def test_memory_that_is_reported_is_within_a_tenth_of_what_nvidia_smi_says(
    kit: ModuleType, tmp_path: Path
) -> None:
    """What loading adds: the driver's own context is there before, and in none of our figures."""
    write_model(tmp_path, {**SMALL, "vocab_size": 300_000})
    torch.ones(1, device="cuda")
    before = nvidia_smi_bytes(), torch.cuda.memory_reserved()
    tuned = load(kit, tmp_path)
    driver = nvidia_smi_bytes() - before[0]
    assert torch.cuda.memory_reserved() - before[1] == pytest.approx(driver, rel=0.1)
    assert 0 < used_memory_bytes(tuned.device) <= torch.cuda.memory_reserved()


def nvidia_smi_bytes() -> int:
    done = subprocess.run(
        ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout) * MIB
