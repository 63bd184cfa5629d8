"""The page a person reads first when opening the run or the model version in MLflow."""

from __future__ import annotations

from collections.abc import Mapping

from anneal_jobs.loading_code import from_registry
from anneal_operator.api.run_config import RunConfig
from anneal_pipeline.stages import PipelineResult


def summary_of(config: RunConfig, result: PipelineResult) -> str:
    """Markdown: what was trained on what, how good it is, and how to load it."""
    pipeline = config.pipeline
    dataset = pipeline.dataset.uri or (
        pipeline.dataset.files.train if pipeline.dataset.files else ""
    )
    revision = f" at `{pipeline.model.revision}`" if pipeline.model.revision else ""
    lora = pipeline.tuning.lora
    lines = [
        f"## {config.job.namespace}/{config.job.name}",
        "",
        f"- Base model: `{pipeline.model.uri}`{revision}",
        f"- Dataset: `{dataset}`",
        f"- Method: {pipeline.tuning.method}, rank {lora.rank}, alpha {lora.alpha:g}",
        f"- Steps: {result.step} of {result.total_steps}, {result.train_seconds:.0f} s of training",
        f"- Files: `{config.output_uri}`",
        "",
        *_metrics_table(result.base_metrics, result.tuned_metrics),
        "",
        "### Load it",
        "",
        "```python",
        *from_registry(config, tracking_uri=None),
        "```",
    ]
    return "\n".join(lines)


def _metrics_table(base: Mapping[str, float], tuned: Mapping[str, float]) -> list[str]:
    rows = [f"| {name} | {base[name]:.4g} | {tuned[name]:.4g} |" for name in tuned if name in base]
    rows += [f"| {name} | | {tuned[name]:.4g} |" for name in tuned if name not in base]
    return ["| metric | base | tuned |", "|---|---|---|", *rows]
