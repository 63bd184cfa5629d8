"""Taking up a run from its newest good checkpoint, or saying why that would be another run."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed

from anneal_pipeline.checkpoint.store import CheckpointStore, SavedCheckpoint
from anneal_pipeline.errors import RUN_CHANGED, CheckpointError, UserError
from anneal_pipeline.observer import EVENT_RESUMED, EVENT_WARNING, Observer
from anneal_pipeline.training.optimizer import AdapterOptimizer
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.state import (
    RunState,
    load_moments,
    load_weights,
    read_observer_state,
    read_state,
)

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "safetensors")


def library_versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES if find_spec(name) is not None}


def run_facts(*, world_size: int, micro_batch_size: int, base_digest: str) -> dict[str, Any]:
    """What a bit-equal resume needs unchanged, beside the config and the data."""
    return {
        "worldSize": world_size,
        "microBatchSize": micro_batch_size,
        "numThreads": torch.get_num_threads(),
        "machine": platform.machine(),
        "cpuCapability": torch.backends.cpu.get_cpu_capability(),
        "baseDigest": base_digest,
    }


def find_checkpoint(checkpoints: CheckpointStore, *, ranks: Ranks) -> SavedCheckpoint | None:
    """The checkpoint all ranks resume from: the first rank chooses, the others fetch the same."""
    found = checkpoints.latest() if ranks.is_first else None
    if ranks.world_size == 1:
        return found
    names = [found.manifest.name if found else None]
    torch.distributed.broadcast_object_list(names, src=0, device=ranks.device)
    if ranks.is_first or names[0] is None:
        return found
    fetched = checkpoints.fetch(names[0])
    if fetched is None:
        raise CheckpointError(f"checkpoint {names[0]} is good on rank 0 and damaged on this rank")
    return fetched


def check_same_run(saved: SavedCheckpoint, *, config_hash: str, dataset_digest: str) -> None:
    """Refuse a checkpoint of another configuration or other data."""
    changed = []
    if saved.manifest.config_hash != config_hash:
        changed.append("the model, dataset, tuning or training section of the configuration")
    if saved.manifest.dataset_digest != dataset_digest:
        changed.append("the prepared training data")
    if changed:
        raise UserError(
            RUN_CHANGED,
            f"Checkpoint {saved.manifest.name} belongs to another run: {' and '.join(changed)} "
            "changed since; put the old values back, set checkpoint.resume to Never, or use a new "
            "output folder",
        )


def restore(
    saved: SavedCheckpoint,
    *,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: AdapterOptimizer,
    facts: Mapping[str, Any],
    observer: Observer,
) -> RunState:
    """Load a checkpoint into model and optimizer and return the state of its run."""
    state = read_state(saved.folder)
    load_weights(saved.folder, parameters)
    load_moments(saved.folder, parameters, optimizer.adamw)
    if state.scaler:
        optimizer.scaler.load_state_dict(dict(state.scaler))
    observer.load_state(read_observer_state(saved.folder))
    _warn_of_differences(saved, state, facts=facts, observer=observer)
    state.facts = dict(facts)
    observer.on_event(
        EVENT_RESUMED,
        f"Resuming from step {state.step} of checkpoint {saved.manifest.name}",
        {"step": state.step, "checkpoint": saved.manifest.name},
    )
    return state


def _warn_of_differences(
    saved: SavedCheckpoint, state: RunState, *, facts: Mapping[str, Any], observer: Observer
) -> None:
    before = {**saved.manifest.libraries, **state.facts}
    now = {**library_versions(), **facts}
    changed = [f"{key} {before[key]} -> {now[key]}" for key in now if before.get(key) != now[key]]
    if changed:
        observer.on_event(
            EVENT_WARNING,
            f"Resumed under other conditions ({', '.join(changed)}): the result will be close to, "
            "but not bit-equal with, that of an uninterrupted run",
            {"changed": changed},
        )
