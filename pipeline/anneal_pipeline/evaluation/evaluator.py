"""The evaluator of a run: what it measures, with how many rows at once, and what it tells of."""

from __future__ import annotations

from peft import PeftModel

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.evaluation.perplexity import ROWS_PER_GROUP, Evaluator
from anneal_pipeline.observer import EVENT_RECOVERED, Observer
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.memory import RowLimit
from anneal_pipeline.training.ranks import Ranks


def make_evaluator(
    config: PipelineConfig,
    *,
    model: PeftModel,
    path: LogitsPath,
    pad_id: int,
    micro_batch_size: int,
    observer: Observer,
    ranks: Ranks,
) -> Evaluator:
    """`micro_batch_size` is that of training, by which memory was planned."""

    def report(stage: str, done: int, total: int) -> None:
        if ranks.is_first:
            observer.on_stage(stage, done=done, total=total, unit="batches")

    def report_halving(rows: int, *, rank: int = 0) -> None:
        where = "there" if ranks.world_size == 1 else f"there on rank {rank}"
        observer.on_event(
            EVENT_RECOVERED,
            f"Memory ran out in an evaluation; going on with {rows} rows per forward pass {where}",
            {"kind": "oom", "evaluationBatchSize": rows, "rank": rank},
        )

    training = config.training
    wanted = [*config.evaluation.metrics]
    if training.early_stopping is not None:
        wanted.append(training.early_stopping.metric)
    return Evaluator(
        model=model,
        path=path,
        ranks=ranks,
        pad_id=pad_id,
        # Without gradients twice the rows of a training step need no more than that step does.
        limit=RowLimit(
            rows=min(ROWS_PER_GROUP, 2 * micro_batch_size),
            may_halve=training.recovery.oom == "recover",
        ),
        wanted=wanted,
        should_stop=observer.should_stop,
        on_progress=report,
        on_halved=report_halving,
    )
