"""Held-out losses that are no numbers, far above training, rising or above the base's.

The rows S25, S3 and S26.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.diagnosis import Diagnosis
from anneal_pipeline.evaluation.perplexity import LOSS, RESPONSE_PERPLEXITY
from anneal_pipeline.training.diagnoses.losses import SPIKE_NATS
from anneal_pipeline.training.runaway import WINDOW

HELD_OUT_FACTOR = 1.5
RISE_FACTOR = 1.2
WORSE_NATS = 0.02
"""Two percent of perplexity; less is what a handful of rows may differ by."""
BY_HEART = "the model learns the training rows by heart"


def of_evaluation(
    metrics: Mapping[str, float],
    *,
    step: int,
    epochs: float,
    losses: Sequence[float],
    earlier: Sequence[float],
) -> Iterator[Diagnosis]:
    """`losses` of training up to now, `earlier` held-out losses."""
    loss = metrics[LOSS]
    if not math.isfinite(loss):
        yield Diagnosis(
            row="S25",
            symptom=f"The held-out loss is {loss} at step {step}",
            cause="held-out rows make the model give no numbers",
            fix="look at data/validation/rows.jsonl for damaged rows",
        )
        return
    trained = _mean(losses)
    is_first = not earlier and epochs <= 1
    if is_first and loss > HELD_OUT_FACTOR * trained and loss > trained + SPIKE_NATS:
        yield Diagnosis(
            row="S3",
            symptom=f"The held-out loss is {loss:.2f} at step {step}, the training loss "
            f"{trained:.2f}, within the first epoch",
            cause="held-out rows are of another kind than the training rows",
            fix="split with dataset.split.stratifyBy, or name fitting dataset.files",
        )
    if earlier and loss > RISE_FACTOR * min(earlier) and trained < loss:
        yield Diagnosis(
            row="S26",
            symptom=f"The held-out loss rose from {min(earlier):.2f} to {loss:.2f} at step "
            f"{step}, while the training loss is {trained:.2f}",
            cause=BY_HEART,
            fix="set training.earlyStopping, train fewer epochs, or lower training.learningRate",
        )


def against_base(
    base: Mapping[str, float],
    tuned: Mapping[str, float],
    *,
    config: PipelineConfig,
    losses: Sequence[float],
    watched: Sequence[tuple[int, float]],
) -> Iterator[Diagnosis]:
    """The result against its base on the same rows; either is empty where it was not measured.

    `losses` of training, `watched` the steps and held-out losses on the way.
    """
    if not base or not tuned or not tuned[LOSS] > base[LOSS] + WORSE_NATS:
        return
    rate, trained, loss = config.training.learning_rate, _mean(losses), tuned[LOSS]
    lower = f"lower training.learningRate from {rate:g} to {rate / 3:.1g}"
    step, lowest = min(watched, key=lambda pair: pair[1], default=(0, math.inf))
    if lowest < base[LOSS]:
        cause = f"at step {step} it was {math.exp(lowest):.4g}, and since then {BY_HEART}"
        fix = f"set training.earlyStopping, whose restoreBest keeps that, or {lower}"
    elif trained < loss - SPIKE_NATS:
        cause = f"{BY_HEART}, whose loss is {trained:.2f} against {loss:.2f} on the held-out ones"
        fix = f"{lower}, train fewer epochs, or add rows"
    else:
        cause = (
            f"the training loss is {trained:.2f} too: steps so large forget what the base knew, or "
            "the rows are of another form than its own"
        )
        fix = f"{lower}, and read the rows in data/report.md"
    before, after = base[RESPONSE_PERPLEXITY], tuned[RESPONSE_PERPLEXITY]
    yield Diagnosis(
        row="S26",
        case="result",
        symptom=f"The tuned model is worse than its base on the held-out rows: response "
        f"perplexity {after:.4g} against {before:.4g}",
        cause=cause,
        fix=fix,
    )


def _mean(losses: Sequence[float]) -> float:
    """Of the last steps; no number before the first one."""
    return fmean(losses[-WINDOW:]) if losses else math.nan
