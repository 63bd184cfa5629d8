"""What is saved on the way, so that an interruption costs little."""

from typing import Annotated, Literal

from pydantic import Field

from anneal_pipeline.config.schema import Schema
from anneal_pipeline.config.values import NumSteps

DEFAULT_CHECKPOINT_SHARE = 0.1
"""Share of all steps between checkpoints where everySteps is not set."""
ACCEPTED_CHANGE = r"^(model|dataset|tuning|training|evaluation|libraries)(\.[A-Za-z0-9_-]+)*$"


class CheckpointConfig(Schema):
    """Checkpoints: everything an exact resume needs."""

    every_steps: NumSteps | None = None
    """Optimiser steps between checkpoints. Default: every 10 % of all steps."""
    keep: int = Field(default=3, ge=1, le=100)
    """How many of the newest checkpoints are kept; the best one is kept beside them."""
    milestones: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field(
        default=(25, 50, 75, 100), max_length=100
    )
    """Percentages of all steps at which an adapter of its own is written and never deleted; an
    empty list writes none."""
    resume: Literal["Auto", "Never"] = "Auto"
    """Whether a new attempt goes on from the newest good checkpoint."""
    accept_changes: tuple[Annotated[str, Field(pattern=ACCEPTED_CHANGE, max_length=100)], ...] = (
        Field(default=(), max_length=50)
    )
    """What may differ from the run a checkpoint belongs to: a section or a field of the
    configuration (training, training.learningRate), dataset.content, model.content, libraries, or
    one library (libraries.torch, and libraries.anneal for Anneal itself). Everything else that
    differs is refused; of evaluation, only when it is made, and only with
    training.earlyStopping."""
    grace_seconds: int = Field(default=120, ge=15, le=3600)
    """Time an interrupted attempt gets to save a checkpoint, at most what the profile allows."""
