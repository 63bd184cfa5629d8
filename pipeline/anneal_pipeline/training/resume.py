"""Taking up a run from its newest good checkpoint, or saying why that would be another run."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch

from anneal_pipeline.checkpoint.manifest import ignore_chunk
from anneal_pipeline.checkpoint.store import CheckpointStore, SavedCheckpoint
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.errors import CheckpointError
from anneal_pipeline.observer import EVENT_RESUMED, EVENT_WARNING, Observer
from anneal_pipeline.training.changes import (
    BASE_DIGEST,
    DATASET_CONTENT,
    Change,
    find_changes,
    refuse_changes,
    watches_another_metric,
)
from anneal_pipeline.training.optimizer import AdapterOptimizer
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.state import (
    RunState,
    load_state,
    read_config,
    read_observer_state,
    read_state,
    write_state,
)

INITIAL_NAME = "initial"
"""Folder beside the local copies of checkpoints, with the state before the first step."""
LIBRARIES = (
    *("torch", "transformers", "peft", "bitsandbytes", "safetensors"),  # weights and steps
    *("tokenizers", "jinja2", "datasets", "pyarrow"),  # rows and their tokens
    "numpy",  # which rows make up a step
)
OWN_NAME = "anneal"
"""The distribution that this package is a part of; no module has its name."""


def library_versions() -> dict[str, str]:
    """Anneal's own version and those of the libraries that decide what a run computes."""
    found = {name: version(name) for name in LIBRARIES if find_spec(name) is not None}
    return {OWN_NAME: version(OWN_NAME), **found}


def run_facts(
    *,
    world_size: int,
    micro_batch_size: int,
    base_digest: str,
    device: torch.device,
    compute: torch.dtype,
) -> dict[str, Any]:
    """What a bit-equal resume needs unchanged, beside the config and the data."""
    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_gpu else device.type,
        "computeDtype": str(compute).removeprefix("torch."),
        "worldSize": world_size,
        "microBatchSize": micro_batch_size,
        "numThreads": torch.get_num_threads(),
        "machine": platform.machine(),
        "cpuCapability": torch.backends.cpu.get_cpu_capability(),
        BASE_DIGEST: base_digest,
    }


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A run that can be gone on with, as its checkpoint has it."""

    checkpoint: SavedCheckpoint
    state: RunState
    config: Mapping[str, Any]


def find_run(
    checkpoints: CheckpointStore, *, ranks: Ranks, on_chunk: Callable[[int], None]
) -> SavedRun | None:
    """What all ranks resume from: the first rank chooses, the others fetch the same."""
    saved = share_checkpoint(
        lambda: checkpoints.latest(on_chunk=on_chunk),
        checkpoints=checkpoints,
        ranks=ranks,
        on_chunk=on_chunk,
    )
    if saved is None:
        return None
    with ranks.together():
        return SavedRun(
            checkpoint=saved, state=read_state(saved.folder), config=read_config(saved.folder)
        )


def share_checkpoint(
    find: Callable[[], SavedCheckpoint | None],
    *,
    checkpoints: CheckpointStore,
    ranks: Ranks,
    on_chunk: Callable[[int], None] = ignore_chunk,
) -> SavedCheckpoint | None:
    """What the first rank finds, as every rank's own verified copy."""
    found = None
    with ranks.together():
        if ranks.is_first:
            found = find()
    name = ranks.share(lambda: found.manifest.name if found else None)
    if name is None:
        return None
    with ranks.together():
        found = found or checkpoints.fetch(name, on_chunk=on_chunk)
        if found is None:
            raise CheckpointError(f"checkpoint {name} is good on rank 0 and damaged on this rank")
    return found


def restore(
    saved: SavedRun,
    *,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: AdapterOptimizer,
    config: PipelineConfig,
    dataset_digest: str,
    facts: Mapping[str, Any],
    observer: Observer,
) -> RunState:
    """Load a checkpoint into model and optimizer and return the state of its run.

    A checkpoint of another run is refused before anything is loaded. The state before the first
    step is kept in INITIAL_NAME, so that a recovery can go back to it as in a run never stopped.
    """
    state, folder, manifest = saved.state, saved.checkpoint.folder, saved.checkpoint.manifest
    changes = find_changes(
        manifest,
        config=config,
        dataset_digest=dataset_digest,
        libraries=library_versions(),
        facts=facts,
        saved_config=saved.config,
        saved_facts=state.facts,
    )
    refuse_changes(changes, checkpoint=manifest.name, accepted=config.checkpoint.accept_changes)
    if any(change.path == DATASET_CONTENT for change in changes):
        state.skipped_rows = []  # they were numbers of other rows
        state.num_skipped_with_steps = 0
    if watches_another_metric(changes):
        state.best_step = state.best_value = state.best_checkpoint = None
    initial = folder.with_name(INITIAL_NAME)
    shutil.rmtree(initial, ignore_errors=True)
    write_state(
        initial,
        state=RunState(
            evaluations=[done for done in state.evaluations if done.step == 0],
            scaler=dict(optimizer.scaler.state_dict()),
        ),
        parameters=parameters,
        optimizer=optimizer.adamw,
        allocator=optimizer.allocator,
        observer_state={},
        config=config.to_data(),
    )
    load_state(folder, state, parameters=parameters, optimizer=optimizer)
    observer.load_state(read_observer_state(folder))
    _warn_of_differences(changes, state, facts=facts, observer=observer)
    state.facts = dict(facts)
    before = (*state.lineage, manifest.config_hash)
    state.lineage = [h for h in dict.fromkeys(before) if h != config.mathematical_hash()]
    observer.on_event(
        EVENT_RESUMED,
        f"Resuming from step {state.step} of checkpoint {manifest.name}",
        {"step": state.step, "checkpoint": manifest.name},
    )
    return state


def _warn_of_differences(
    accepted: Sequence[Change], state: RunState, *, facts: Mapping[str, Any], observer: Observer
) -> None:
    changed = [str(change) for change in accepted]
    changed += [
        f"{key} {state.facts.get(key)} -> {now}"
        for key, now in facts.items()
        if key != BASE_DIGEST and key in state.facts and state.facts[key] != now
    ]
    if changed:
        observer.on_event(
            EVENT_WARNING,
            f"Resumed under other conditions ({', '.join(changed)}): the result will be close to, "
            "but not bit-equal with, that of an uninterrupted run",
            {"changed": changed},
        )
