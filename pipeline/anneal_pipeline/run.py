"""The stages of an opened run, in order; each says whether it ended before a stop was asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from anneal_pipeline.assembly import make_trainer
from anneal_pipeline.data.files import TRAIN
from anneal_pipeline.data.prepared import read_rows
from anneal_pipeline.evaluation.compare import Comparison
from anneal_pipeline.evaluation.perplexity import LOSS
from anneal_pipeline.evaluation.questions import check_prompts
from anneal_pipeline.evaluation.report import BASE, TUNED
from anneal_pipeline.export.adapter import verify_adapter, write_adapter, write_artifact_manifest
from anneal_pipeline.observer import (
    EVENT_WARNING,
    STAGE_BASELINE,
    STAGE_EVALUATION,
    STAGE_EXPORT,
    STAGE_MODEL,
)
from anneal_pipeline.opening import Inputs, Opened, open_inputs
from anneal_pipeline.training.diagnoses.held_out import against_base
from anneal_pipeline.training.diagnoses.vocabulary import of_vocabulary
from anneal_pipeline.training.loop import Trainer
from anneal_pipeline.training.positions import check_lengths, learned_positions
from anneal_pipeline.training.schedule import learning_rate
from anneal_pipeline.training.state import RunState
from anneal_pipeline.training.vocabulary import check_token_ids, unseen_warning

VERIFY_TOKENS = 64


@dataclass(kw_only=True)
class Run:
    opened: Opened
    trainer: Trainer
    comparison: Comparison

    @property
    def inputs(self) -> Inputs:
        return self.opened.inputs

    @property
    def state(self) -> RunState:
        return self.trainer.state

    def measure_base(self) -> bool:
        if not self.inputs.config.evaluation.baseline:
            return True
        self._begin(STAGE_BASELINE)
        return self.comparison.measure(BASE, state=self.state, stage=STAGE_BASELINE)

    def train(self) -> bool:
        return self.trainer.run()

    def compare(self) -> bool:
        """Measure the tuned model, answer the prompts, write the report."""
        self._begin(STAGE_EVALUATION)
        if not self.comparison.measure(TUNED, state=self.state, stage=STAGE_EVALUATION):
            return False
        self._compare_with_base()
        folder = self.inputs.workspace / "evaluation"
        ranks, observer = self.inputs.ranks, self.inputs.observer
        ranks.first_does(lambda: self.comparison.write_report(folder, state=self.state))
        if ranks.any(observer.should_stop()):
            return False
        if ranks.is_first:
            observer.on_output(folder)
        return True

    def _compare_with_base(self) -> None:
        state, watch = self.state, self.trainer.watch
        base, tuned = (self.comparison.metrics(subject, state=state) for subject in (BASE, TUNED))
        is_same = watch.split == self.opened.data.held_out
        found = against_base(
            base,
            tuned,
            config=self.inputs.config,
            losses=[loss for _, loss in state.losses],
            watched=watch.points(LOSS, state=state) if is_same else (),
        )
        self.trainer.events.diagnose(found, state=state)

    def export(self) -> tuple[Path, str | None]:
        """Write `artifacts/`; its digest is known on the first rank."""
        self._begin(STAGE_EXPORT)
        artifacts = self.inputs.workspace / "artifacts"
        folder = artifacts / "adapter"
        digest = None
        with self.inputs.ranks.together():
            if self.inputs.ranks.is_first:
                self._write_adapter(folder)
                if self.inputs.config.export.verify:
                    self._verify(folder)
                digest = write_artifact_manifest(artifacts)
                self.inputs.observer.on_output(artifacts)
        return folder, digest

    def _verify(self, folder: Path) -> None:
        tuned = self.opened.tuned
        ids, _ = self.opened.data.train.row(0)
        sample = ids[:VERIFY_TOKENS].long().unsqueeze(0).to(tuned.device)
        verify_adapter(folder, model=tuned.model, ids=sample)

    def write_milestone(self, percent: int, state: RunState) -> None:
        """An adapter folder of its own for a share of the way, with where the run stood."""
        folder = self.inputs.workspace / "milestones" / f"checkpoint-{percent}pct"
        self._write_adapter(folder)
        training = self.inputs.config.training
        rate = learning_rate(
            training,
            plan=self.opened.plan,
            step=state.step - 1,
            peak=training.learning_rate * state.rate_factor,
        )
        facts = {
            "progressPercent": percent,
            "step": state.step,
            "epoch": state.step / self.opened.plan.steps_per_epoch,
            "loss": state.losses[-1][1] if state.losses else None,
            "learningRate": rate,
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        (folder / "training_state.json").write_text(json.dumps(facts, indent=2) + "\n")
        self.inputs.observer.on_output(folder)

    def _write_adapter(self, folder: Path) -> None:
        write_adapter(
            folder,
            model=self.opened.tuned.model,
            base=self.inputs.config.model,
            tokenizer=self.opened.tokenizer,
            stop_ids=self.opened.data.report.stop_token_ids,
        )

    def _begin(self, stage: str) -> None:
        if self.inputs.ranks.is_first:
            self.inputs.observer.on_stage(stage, done=0, total=0, unit="batches")


def _check_rows(opened: Opened) -> None:
    """Whether the model can take them at all, and has what it is to learn from them.

    The job's own prompts come after training, and are looked at now.
    """
    model, splits = opened.tuned.model, opened.data.splits.values()
    check_token_ids(splits, num_embeddings=_num_embeddings(opened))
    check_prompts(
        opened.inputs.config.evaluation.prompts,
        tokenizer=opened.tokenizer,
        num_positions=learned_positions(model),
    )
    tokens = list(opened.inputs.config.tuning.new_tokens)
    ids = dict(zip(tokens, opened.tokenizer.convert_tokens_to_ids(tokens), strict=True))
    for warning in (
        check_lengths(splits, model=model),
        unseen_warning(opened.data.train, ids),
    ):
        if warning is not None and opened.inputs.ranks.is_first:
            opened.inputs.observer.on_event(EVENT_WARNING, warning, {"stage": STAGE_MODEL})


def _num_embeddings(opened: Opened) -> int:
    number: int = opened.tuned.model.get_input_embeddings().weight.shape[0]
    return number


def open_run(inputs: Inputs) -> Run:
    opened = open_inputs(inputs)
    _check_rows(opened)
    trainer = make_trainer(
        opened, on_milestone=lambda percent, state: run.write_milestone(percent, state)
    )
    rows = read_rows(opened.data.folder / TRAIN)
    trainer.events.diagnose(
        of_vocabulary(opened.tokenizer, rows=rows, num_embeddings=_num_embeddings(opened)),
        state=opened.state,
    )
    comparison = Comparison(
        config=inputs.config,
        model_dir=inputs.model_dir,
        data=opened.data,
        evaluator=opened.evaluator,
        tokenizer=opened.tokenizer,
        observer=inputs.observer,
        clock=inputs.clock,
    )
    run = Run(opened=opened, trainer=trainer, comparison=comparison)
    return run
