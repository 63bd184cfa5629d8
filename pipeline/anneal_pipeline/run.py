"""The parts of one run put together, and its stages in order.

`open_run` prepares the data, loads the model and restores a checkpoint; `Run` has one method per
stage that follows, each returning whether it came to its end before a stop was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from anneal_pipeline.checkpoint.manifest import CheckpointInfo
from anneal_pipeline.checkpoint.store import CheckpointStore
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.steps import StepPlan, plan_steps
from anneal_pipeline.data.files import DatasetFiles
from anneal_pipeline.data.prepare import PreparedData, prepare_data
from anneal_pipeline.data.tokens import stop_token_ids
from anneal_pipeline.evaluation.compare import Comparison
from anneal_pipeline.evaluation.perplexity import Evaluator
from anneal_pipeline.evaluation.report import BASE, TUNED
from anneal_pipeline.export.adapter import verify_adapter, write_adapter, write_artifact_manifest
from anneal_pipeline.model.adapters import trainable_parameters
from anneal_pipeline.model.folder import check_model_folder, model_digest
from anneal_pipeline.model.loading import TunedModel, load_tokenizer, load_tuned_model
from anneal_pipeline.observer import (
    EVENT_MODEL_READY,
    STAGE_BASELINE,
    STAGE_EVALUATION,
    STAGE_EXPORT,
    STAGE_MODEL,
    Observer,
)
from anneal_pipeline.training.loop import Trainer
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.optimizer import AdapterOptimizer
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.resume import (
    check_same_run,
    find_checkpoint,
    library_versions,
    restore,
    run_facts,
)
from anneal_pipeline.training.state import RunState

EVALUATION_BATCH = 16
"""Rows per forward pass of an evaluation, at most; without gradients they need little memory."""
VERIFY_TOKENS = 64


@dataclass(kw_only=True)
class Run:
    config: PipelineConfig
    workspace: Path
    plan: StepPlan
    data: PreparedData
    tokenizer: PreTrainedTokenizerBase
    tuned: TunedModel
    trainer: Trainer
    comparison: Comparison
    observer: Observer
    ranks: Ranks

    @property
    def state(self) -> RunState:
        return self.trainer.state

    def measure_base(self) -> bool:
        if not self.config.evaluation.baseline:
            return True
        self._begin(STAGE_BASELINE)
        return self.comparison.measure(BASE, state=self.state)

    def train(self) -> bool:
        return self.trainer.run()

    def compare(self) -> bool:
        """Measure the tuned model, answer the prompts, write the report."""
        self._begin(STAGE_EVALUATION)
        if not self.comparison.measure(TUNED, state=self.state):
            return False
        folder = self.workspace / "evaluation"
        if self.ranks.is_first:
            self.comparison.write_report(folder, state=self.state)
        if self.ranks.any(self.observer.should_stop()):
            return False
        if self.ranks.is_first:
            self.observer.on_output(folder)
        return True

    def export(self) -> tuple[Path, str | None]:
        """Write `artifacts/`; its digest is known on the first rank."""
        self._begin(STAGE_EXPORT)
        artifacts = self.workspace / "artifacts"
        folder = artifacts / "adapter"
        digest = None
        if self.ranks.is_first:
            self._write_adapter(folder)
            if self.config.export.verify:
                ids, _ = self.data.train.row(0)
                sample = ids[:VERIFY_TOKENS].long().unsqueeze(0).to(self.tuned.device)
                verify_adapter(folder, model=self.tuned.model, ids=sample)
            digest = write_artifact_manifest(artifacts)
            self.observer.on_output(artifacts)
        self.ranks.barrier()
        return folder, digest

    def write_milestone(self, percent: int, state: RunState) -> None:
        folder = self.workspace / "milestones" / f"checkpoint-{percent}pct"
        self._write_adapter(folder)
        facts = {
            "progressPercent": percent,
            "step": state.step,
            "epoch": state.step / self.plan.steps_per_epoch,
            "loss": state.losses[-1][1],
            "learningRate": self.trainer.optimizer.adamw.param_groups[0]["lr"],
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        (folder / "training_state.json").write_text(json.dumps(facts, indent=2) + "\n")
        self.observer.on_output(folder)

    def _write_adapter(self, folder: Path) -> None:
        write_adapter(
            folder,
            model=self.tuned.model,
            base=self.config.model,
            tokenizer=self.tokenizer,
            stop_ids=self.data.report.stop_token_ids,
        )

    def _begin(self, stage: str) -> None:
        if self.ranks.is_first:
            self.observer.on_stage(stage, done=0, total=0, unit="batches")


def open_run(
    config: PipelineConfig,
    *,
    workspace: Path,
    scratch: Path,
    model_dir: Path,
    dataset_files: DatasetFiles | None,
    checkpoints: CheckpointStore,
    observer: Observer,
    device: torch.device,
    rank: int,
    world_size: int,
    clock: Callable[[], float],
) -> Run:
    ranks = Ranks(rank=rank, world_size=world_size, device=device)
    check_model_folder(model_dir, uri=config.model.uri)
    tokenizer = load_tokenizer(model_dir)
    data = _prepare(
        config,
        files=dataset_files,
        folder=workspace / "data",
        tokenizer=tokenizer,
        model_dir=model_dir,
        observer=observer,
        ranks=ranks,
    )
    plan = plan_steps(config, num_train_rows=len(data.train), world_size=world_size)
    tuned = _load_model(config, model_dir=model_dir, observer=observer, ranks=ranks)
    path = LogitsPath(tuned.model)
    pad_id = int(tokenizer.pad_token_id)
    evaluator = Evaluator(
        model=tuned.model,
        path=path,
        ranks=ranks,
        pad_id=pad_id,
        batch_size=EVALUATION_BATCH,
        wanted=config.evaluation.metrics,
        should_stop=observer.should_stop,
        on_progress=lambda done, total: observer.on_stage(
            STAGE_EVALUATION, done=done, total=total, unit="batches"
        ),
    )
    optimizer = AdapterOptimizer(
        config.training,
        parameters=trainable_parameters(tuned.model),
        compute=tuned.compute,
        ranks=ranks,
    )
    facts = run_facts(
        world_size=world_size,
        micro_batch_size=plan.micro_batch_size,
        base_digest=model_digest(model_dir),
    )
    state = RunState(facts=facts)
    last_checkpoint = None
    config_hash = config.mathematical_hash()
    saved = (
        find_checkpoint(checkpoints, ranks=ranks) if config.checkpoint.resume == "Auto" else None
    )
    if saved is not None:
        check_same_run(saved, config_hash=config_hash, dataset_digest=data.report.digest)
        state = restore(
            saved,
            parameters=trainable_parameters(tuned.model),
            optimizer=optimizer,
            facts=facts,
            observer=observer,
        )
        last_checkpoint = saved.manifest.name

    def info_of(state: RunState) -> CheckpointInfo:
        return CheckpointInfo(
            step=state.step,
            config_hash=config_hash,
            dataset_digest=data.report.digest,
            libraries=library_versions(),
            metrics={"loss": state.losses[-1][1]} if state.losses else {},
        )

    trainer = Trainer(
        config=config,
        plan=plan,
        tuned=tuned,
        path=path,
        optimizer=optimizer,
        evaluator=evaluator,
        data=data,
        state=state,
        checkpoints=checkpoints,
        checkpoint_info=info_of,
        on_milestone=lambda percent, state: run.write_milestone(percent, state),
        observer=observer,
        ranks=ranks,
        pad_id=pad_id,
        scratch=scratch,
        clock=clock,
        last_checkpoint=last_checkpoint,
    )
    comparison = Comparison(
        config=config,
        data=data,
        evaluator=evaluator,
        tokenizer=tokenizer,
        observer=observer,
        clock=clock,
    )
    run = Run(
        config=config,
        workspace=workspace,
        plan=plan,
        data=data,
        tokenizer=tokenizer,
        tuned=tuned,
        trainer=trainer,
        comparison=comparison,
        observer=observer,
        ranks=ranks,
    )
    return run


def _prepare(
    config: PipelineConfig,
    *,
    files: DatasetFiles | None,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    model_dir: Path,
    observer: Observer,
    ranks: Ranks,
) -> PreparedData:
    """Prepare the data on the first rank; the others then find it done."""
    stop_ids = stop_token_ids(tokenizer, _generation_eos(model_dir))

    def prepare() -> PreparedData:
        return prepare_data(
            config,
            files=files,
            folder=folder,
            tokenizer=tokenizer,
            stop_ids=stop_ids,
            observer=observer,
        )

    if not ranks.is_first:
        ranks.barrier()
        return prepare()
    try:
        return prepare()
    finally:
        ranks.barrier()


def _generation_eos(model_dir: Path) -> int | list[int] | None:
    if not (model_dir / "generation_config.json").is_file():
        return None
    eos: int | list[int] | None = GenerationConfig.from_pretrained(model_dir).eos_token_id
    return eos


def _load_model(
    config: PipelineConfig, *, model_dir: Path, observer: Observer, ranks: Ranks
) -> TunedModel:
    if ranks.is_first:
        observer.on_stage(STAGE_MODEL, done=0, total=1, unit="models")
    tuned = load_tuned_model(config, folder=model_dir, device=ranks.device)
    if ranks.is_first:
        observer.on_stage(STAGE_MODEL, done=1, total=1, unit="models")
        observer.on_event(
            EVENT_MODEL_READY,
            tuned.summary(),
            {"trainable": tuned.num_trainable, "parameters": tuned.num_parameters},
        )
    return tuned
