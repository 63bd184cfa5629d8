"""The whole configuration of one pipeline run.

Its JSON is what the operator hands to the trainer, what MLflow logs as config.json, and what a
checkpoint's config hash is made of.
"""

import hashlib
import json
from typing import ClassVar, Self

from pydantic import model_validator

from anneal_pipeline.config.checkpoint import CheckpointConfig
from anneal_pipeline.config.dataset import DatasetConfig
from anneal_pipeline.config.evaluation import EvaluationConfig
from anneal_pipeline.config.export import ExportConfig
from anneal_pipeline.config.model import ModelConfig
from anneal_pipeline.config.schema import CelRule, Schema
from anneal_pipeline.config.training import TrainingConfig
from anneal_pipeline.config.tuning import TuningConfig

MATHEMATICAL_SECTIONS = ("model", "dataset", "tuning", "training")
"""The parts that decide the trained numbers; only they enter a checkpoint's config hash."""


class PipelineConfig(Schema):
    """Model, data, method: everything the pipeline itself needs to know."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="!has(self.training) || !has(self.training.loraPlusRatio) || !has(self.tuning)"
            " || !has(self.tuning.lora) || !has(self.tuning.lora.rankAllocation)",
            message="training.loraPlusRatio excludes tuning.lora.rankAllocation, whose adapters do "
            "not begin with B at zero; remove one of them",
        ),
    )

    model: ModelConfig
    """The base model."""
    dataset: DatasetConfig
    """The training data."""
    tuning: TuningConfig = TuningConfig()
    """The tuning method."""
    training: TrainingConfig = TrainingConfig()
    """The training loop."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation of tuned against base."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    export: ExportConfig = ExportConfig()
    """Exports of the tuned model."""

    @model_validator(mode="after")
    def _rates_fit_the_adapters(self) -> Self:
        if (
            self.training.lora_plus_ratio is not None
            and self.tuning.lora.rank_allocation is not None
        ):
            raise ValueError(
                "training.loraPlusRatio excludes tuning.lora.rankAllocation, whose adapters do not "
                "begin with B at zero; remove one of them"
            )
        return self

    def mathematical_hash(self) -> str:
        """Return the SHA-256 of what decides the trained numbers, as 64 hex digits."""
        data = self.to_data()
        part = {section: data[section] for section in MATHEMATICAL_SECTIONS}
        return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()
