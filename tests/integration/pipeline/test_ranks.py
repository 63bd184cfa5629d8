"""Two ranks on the CPU: the gradients of one, and one opinion about memory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

RANK = """
import json, os, sys
from pathlib import Path
import torch
import torch.distributed
from safetensors.torch import save_file
from tests.unit.pipeline import kit
from anneal_pipeline.config.training import TrainingConfig
from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.model.adapters import trainable_parameters
from anneal_pipeline.model.loading import load_tuned_model
from anneal_pipeline.training.batches import collate, micro_batches
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.memory import MemoryRanOutError
from anneal_pipeline.training.optimizer import AdapterOptimizer
from anneal_pipeline.training.ranks import Ranks

torch.set_num_threads(1)
model_dir, out = Path(sys.argv[1]), Path(sys.argv[2])
rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
if world_size > 1:
    torch.distributed.init_process_group("gloo")
config = kit.make_config(
    tuning={"lora": {"rank": 4, "dropout": 0.0}}, training={"gradientCheckpointing": False}
)
tuned = load_tuned_model(config, folder=model_dir, device=torch.device("cpu"))
tuned.model.train()
parameters = trainable_parameters(tuned.model)
for index, parameter in enumerate(parameters.values()):
    torch.manual_seed(index)
    parameter.data.normal_(std=0.05)
lengths = [5, 40, 10, 35, 15, 30, 20]
torch.manual_seed(3)
split = PreparedSplit(
    ids=torch.randint(4, 300, (sum(lengths),), dtype=torch.int32),
    is_response=torch.tensor([int(i > n // 3) for n in lengths for i in range(n)]),
    offsets=torch.tensor([0, *lengths]).cumsum(0),
)
ranks = Ranks(rank=rank, world_size=world_size, device=torch.device("cpu"))
optimizer = AdapterOptimizer(
    TrainingConfig(max_grad_norm=1e6), model=tuned.model, compute=torch.float32, ranks=ranks
)
path = LogitsPath(tuned.model)
groups = micro_batches(range(len(lengths)), 2)[rank::world_size]
batches = [collate(split, rows, pad_id=0, train_all=False) for rows in groups]
outcome = optimizer.gather(path, batches)
save_file({n: p.grad for n, p in parameters.items()}, out / f"{world_size}-{rank}.safetensors")
optimizer.take_back()

forward = type(tuned.model.get_base_model().base_model).forward
def hungry(self, *args, **options):
    if rank == world_size - 1:
        torch.empty(1 << 50)
    return forward(self, *args, **options)
type(tuned.model.get_base_model().base_model).forward = hungry
try:
    optimizer.gather(path, batches)
    ran_out = False
except MemoryRanOutError:
    ran_out = all(p.grad is None for p in parameters.values())
facts = {"loss": outcome.loss, "norm": outcome.grad_norm, "ranOut": ran_out}
(out / f"{world_size}-{rank}.json").write_text(json.dumps(facts))
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def results(
    kit: ModuleType, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Facts and gradients by world size and rank."""
    out = tmp_path_factory.mktemp("ranks")
    running = []
    for world_size in (1, 2):
        port = str(free_port())
        for rank in range(world_size):
            env = {
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            command = [sys.executable, "-c", RANK, str(model_dir), str(out)]
            running.append(subprocess.Popen(command, env=env))
    assert [process.wait(timeout=300) for process in running] == [0, 0, 0]
    return {
        path.stem: (json.loads(path.read_text()), load_file(path.with_suffix(".safetensors")))
        for path in out.glob("*.json")
    }


def test_mean_of_means_two_ranks_have_the_gradients_of_one(results: dict[str, Any]) -> None:
    facts, want = results["1-0"]
    for name in ("2-0", "2-1"):
        ours, got = results[name]
        assert ours["loss"] == pytest.approx(facts["loss"], rel=1e-5)
        assert ours["norm"] == pytest.approx(facts["norm"], rel=1e-5)
        for key, tensor in want.items():
            scale = float(tensor.abs().max())
            torch.testing.assert_close(got[key], tensor, rtol=1e-5, atol=1e-5 * scale)


def test_memory_that_runs_out_on_one_rank_is_the_same_news_on_all(
    results: dict[str, Any],
) -> None:
    assert {name: facts["ranOut"] for name, (facts, _) in results.items()} == {
        "1-0": True,
        "2-0": True,
        "2-1": True,
    }
