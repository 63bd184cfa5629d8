"""One run of the pipeline, from files and a config to files and a result.

Writes into `workspace`, which becomes the job's output folder: `config.json`, `data/`, `milestones/`,
`artifacts/`, `evaluation/`. Checkpoints go to the store. A stage whose inputs' hashes match a finished
one is not run again, so an attempt that finds the `data/` of an earlier one trains on exactly that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from anneal_pipeline.checkpoint.store import CheckpointStore
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.observer import Observer


@dataclass(frozen=True, kw_only=True)
class DatasetFiles:
    """Local copies of the dataset; their names appear in messages.

    With `validation` or `test` given the split is the user's own and is kept; otherwise `train` is
    split as `dataset.split` says.
    """

    train: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PipelineResult:
    interrupted: bool
    """True: asked to stop, `checkpoint` holds everything; the fields below it are empty."""
    step: int
    total_steps: int
    checkpoint: str | None
    """Name of the newest checkpoint."""
    train_seconds: float
    """Of this attempt."""
    dataset_digest: str
    config_hash: str
    base_metrics: Mapping[str, float]
    tuned_metrics: Mapping[str, float]
    adapter_dir: Path | None
    artefact_digest: str | None
    """SHA-256 of `artifacts/manifest.json`, in hex."""


def run_pipeline(
    config: PipelineConfig,
    *,
    workspace: Path,
    model_dir: Path,
    dataset_files: DatasetFiles,
    checkpoints: CheckpointStore,
    observer: Observer,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> PipelineResult:
    """Prepare data, load and adapt the model, train, evaluate, export.

    With `world_size` > 1 the default process group is initialised and all ranks share `workspace`.
    A `UserError` means the job as written cannot succeed; a planned stop returns `interrupted`.
    """
    raise NotImplementedError
