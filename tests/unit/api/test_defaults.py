"""The defaults that docs/requirements.md promises."""

from __future__ import annotations

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.steps import plan_steps

CONFIG = PipelineConfig.parse({"model": {"uri": "s3://m/x"}, "dataset": {"uri": "s3://d/x"}})


def test_defaults_of_the_adapters() -> None:
    lora = CONFIG.tuning.lora
    assert (lora.rank, lora.alpha, lora.dropout, lora.bias) == (16, 32, 0.05, "none")
    assert (lora.target_modules, lora.initialization) == (("all-linear",), "default")


def test_defaults_of_training() -> None:
    training = CONFIG.training
    assert (training.learning_rate, training.batch_size) == (2e-4, 16)
    assert (training.max_grad_norm, training.sequence_length) == (1.0, 2048)
    assert training.gradient_checkpointing
    assert training.recovery.oom == training.recovery.nan == training.recovery.divergence
    assert training.recovery.oom == "recover"


def test_length_of_a_run_that_says_none() -> None:
    """Three epochs, of which 3 % are warm-up."""
    plan = plan_steps(CONFIG, num_sequences=1600, micro_batch_size=8)
    assert (plan.total_steps, plan.steps_per_epoch, plan.warmup_steps) == (300, 100, 9)


def test_defaults_of_checkpoints_and_evaluations() -> None:
    """Every tenth of a run is saved, three are kept, every epoch is evaluated."""
    plan = plan_steps(CONFIG, num_sequences=1600, micro_batch_size=8)
    assert (plan.checkpoint_steps, plan.evaluation_steps) == (30, 100)
    assert (CONFIG.checkpoint.keep, CONFIG.training.early_stopping) == (3, None)
