"""Rooms of so many bytes, the plans that fill them, and what a run took of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.unit.pipeline.kit import RecordingObserver, make_config

from anneal_pipeline import micro_batch
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.memory.estimate import planning
from anneal_pipeline.memory.fit import MARGIN, Setting
from anneal_pipeline.memory.plan import MemoryPlan
from anneal_pipeline.memory.room import Room
from anneal_pipeline.memory.trace import Place
from anneal_pipeline.micro_batch import MicroBatch, RoomOf
from anneal_pipeline.observer import EVENT_MEMORY_PLANNED
from anneal_pipeline.stages import PipelineResult
from anneal_pipeline.training.ranks import Ranks

LIBRARIES = 500 << 20
PLACE = Place(compute=torch.float32, in_4_bit=False, on_gpu=False)

Start = Callable[..., PipelineResult]


@dataclass
class Listener(RecordingObserver):
    """Keeps the facts of what was planned too."""

    plans: list[dict[str, Any]] = field(default_factory=list)

    def on_event(self, name: str, message: str, fields: Any) -> None:
        super().on_event(name, message, fields)
        if name == EVENT_MEMORY_PLANNED:
            self.plans.append(dict(fields))


def config_of(**training: Any) -> PipelineConfig:
    return make_config(training=training)


def room_of_bytes(free: int) -> RoomOf:
    return lambda ranks: Room(limit=free + LIBRARIES, libraries=LIBRARIES)


def room_for(rows: int, *, longest: int, model_dir: Path) -> RoomOf:
    """Room in which the plan of so many rows leaves its margin, and that of more does not."""
    return room_of_bytes(int(plan_of(rows, longest, model_dir).peak * (1 + MARGIN)) + 1)


def plan_of(rows: int, longest: int, model_dir: Path) -> MemoryPlan:
    plans = planning(config_of(), folder=model_dir, place=PLACE)
    return plans(Setting(rows=rows, length=longest, checkpointing=True))


def planned(observer: Listener, kind: str = "planned") -> list[dict[str, Any]]:
    return [plan for plan in observer.plans if plan["kind"] == kind]


def rows_taken(root: Path) -> int:
    """As config.json of the output folder names it."""
    written = json.loads((root / "out" / "config.json").read_text())
    return int(written["training"]["microBatchSize"])


def measuring(monkeypatch: pytest.MonkeyPatch, answers: Sequence[int | Exception | None]) -> None:
    """Let passes take these bytes, one after another."""
    left = list(answers)

    def measure(*_: Any, **__: Any) -> int | None:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(micro_batch, "measure_pass", measure)


def state_of(root: Path) -> dict[str, Any]:
    """Of the newest checkpoint."""
    newest = max((root / "checkpoints").glob("step-*/state.json"), key=lambda path: path.parent)
    state: dict[str, Any] = json.loads(newest.read_text())
    return state


def adapter_of(root: Path) -> dict[str, torch.Tensor]:
    folder = root / "out" / "artifacts" / "adapter"
    return load_file(folder / "adapter_model.safetensors")


def micro_batch_of(config: PipelineConfig, *, longest: int, room: int, on_gpu: bool) -> MicroBatch:
    device = torch.device("cuda" if on_gpu else "cpu")
    return MicroBatch(
        config=config,
        length=longest,
        ranks=Ranks(rank=0, world_size=1, device=device),
        room_of=room_of_bytes(int(room * (1 + MARGIN)) + 1),
        observer=RecordingObserver(),
    )
