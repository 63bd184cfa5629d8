"""How "is it better" is answered."""

from typing import Annotated, Literal

from pydantic import Field

from anneal_pipeline.config.schema import Schema
from anneal_pipeline.config.values import NumSteps, Uri

Metric = Literal[
    "perplexity",
    "responsePerplexity",
    "tokenAccuracy",
    "exactMatch",
    "f1",
    "rougeL",
    "bleu",
    "codeExecution",
    "toolCallAccuracy",
]

Prompt = Annotated[str, Field(min_length=1, max_length=8192)]


class EvaluationConfig(Schema):
    """Evaluation of the tuned model against its base, on rows that were not trained on."""

    every_steps: NumSteps | None = None
    """Optimiser steps between evaluations. Default: once per epoch."""
    schedule: Literal["fixed", "adaptive"] = "fixed"
    """fixed evaluates every everySteps; adaptive more often while the watched metric moves, up to
    four times, and less often while it rests, down to a quarter. Both after the last step."""
    baseline: bool = True
    """Whether the base model is evaluated too, on the same rows."""
    metrics: tuple[Metric, ...] = Field(default=("responsePerplexity",), min_length=1, max_length=9)
    """What is measured on the held-out rows."""
    prompts: tuple[Prompt, ...] = Field(default=(), max_length=64)
    """Prompts answered greedily by base and tuned, side by side in the report."""
    num_generations: int = Field(default=3, ge=0, le=64)
    """Held-out rows answered in the same way."""
    general_text: Uri | None = None
    """Plain text on which the tuned model should not have become worse. Default: off."""
