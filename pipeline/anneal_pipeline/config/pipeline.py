"""The whole configuration of one pipeline run.

Its JSON is what the operator hands to the trainer, what MLflow logs as config.json, and what a
checkpoint's config hash is made of.
"""

import hashlib
import json

from anneal_pipeline.config.checkpoint import CheckpointConfig
from anneal_pipeline.config.dataset import DatasetConfig
from anneal_pipeline.config.evaluation import EvaluationConfig
from anneal_pipeline.config.export import ExportConfig
from anneal_pipeline.config.model import ModelConfig
from anneal_pipeline.config.schema import Schema
from anneal_pipeline.config.training import TrainingConfig
from anneal_pipeline.config.tuning import TuningConfig

MATHEMATICAL_SECTIONS = ("model", "dataset", "tuning", "training")
"""The parts that decide the trained numbers; only they enter a checkpoint's config hash."""


class PipelineConfig(Schema):
    """Model, data, method: everything the pipeline itself needs to know."""

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

    def mathematical_hash(self) -> str:
        """Return the SHA-256 of what decides the trained numbers, as 64 hex digits."""
        data = self.to_data()
        part = {section: data[section] for section in MATHEMATICAL_SECTIONS}
        return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()
