"""Base against tuned: the baseline before training, the comparison after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.data.prepare import PreparedData
from anneal_pipeline.data.prepared import read_rows
from anneal_pipeline.errors import StopRequestedError
from anneal_pipeline.evaluation.answers import Answerer, stops_of
from anneal_pipeline.evaluation.perplexity import LOSS, RESPONSE_PERPLEXITY, Evaluator
from anneal_pipeline.evaluation.questions import Question, question_of_prompt, question_of_row
from anneal_pipeline.evaluation.report import BASE, TUNED, AnswerPair, ComparisonReport
from anneal_pipeline.evaluation.sections import Sections
from anneal_pipeline.model.beginning import base_alone
from anneal_pipeline.observer import STAGE_EVALUATION, Observer
from anneal_pipeline.training.positions import learned_positions
from anneal_pipeline.training.state import Evaluated, RunState


@dataclass(frozen=True, kw_only=True)
class Comparison:
    config: PipelineConfig
    model_dir: Path
    data: PreparedData
    evaluator: Evaluator
    tokenizer: PreTrainedTokenizerBase
    observer: Observer
    clock: Callable[[], float]

    def measure(self, subject: str, *, state: RunState, stage: str) -> bool:
        """Measure base or tuned on the held-out split, unless done; False if asked to stop."""
        split = self.data.held_out
        step = 0 if subject == BASE else state.weights_step
        if split is None or state.evaluation(subject=subject, split=split, step=step):
            return True
        began = self.clock()
        if subject == BASE:
            with base_alone(self.evaluator.model):
                measured = self.evaluator.measure(self.data.splits[split], stage=stage)
        else:
            measured = self.evaluator.measure(self.data.splits[split], stage=stage)
        if measured is None:
            return False
        done = Evaluated(step=step, subject=subject, split=split, metrics=measured.metrics)
        state.evaluations.append(done)
        if self.evaluator.ranks.is_first:
            seconds = self.clock() - began
            self.observer.on_evaluation(
                measured.report(step=step, subject=subject, split=split, seconds=seconds)
            )
        return True

    def metrics(self, subject: str, *, state: RunState) -> dict[str, float]:
        """What was asked for in `evaluation.metrics`, with the loss; empty if not measured."""
        split = self.data.held_out
        step = 0 if subject == BASE else state.weights_step
        done = state.evaluation(subject=subject, split=split, step=step) if split else None
        if done is None:
            return {}
        wanted = (LOSS, RESPONSE_PERPLEXITY, *self.config.evaluation.metrics)
        return {name: done.metrics[name] for name in dict.fromkeys(wanted) if name in done.metrics}

    def questions(self) -> list[Question]:
        """The job's own prompts, and the first held-out rows that leave room for an answer."""
        asked = [question_of_prompt(prompt) for prompt in self.config.evaluation.prompts]
        return asked + list(islice(self._held_out(), self.config.evaluation.num_generations))

    def _held_out(self) -> Iterator[Question]:
        """Rows of plain text ask nothing; what was cut for training may not fit as a whole."""
        if self.data.held_out is None:
            return
        room = self.config.training.sequence_length
        positions = learned_positions(self.evaluator.model)
        room = room if positions is None else min(room, positions)
        for row in read_rows(self.data.folder / self.data.held_out):
            if "messages" not in row:
                continue
            question = question_of_row(
                row, self.tokenizer, stop_ids=self.data.report.stop_token_ids
            )
            if len(question.tokens(self.tokenizer)) < room:
                yield question

    def answers(self) -> tuple[AnswerPair, ...] | None:
        """Every question answered by tuned and, with a baseline, by base; None if stopped."""
        questions, with_base = self.questions(), self.config.evaluation.baseline
        total = len(questions) * (2 if with_base else 1)
        base: Sequence[str | None] | None = [None] * len(questions)
        tuned = self._answerer(done=0, total=total).answer(questions)
        if tuned is not None and with_base:
            with base_alone(self.evaluator.model):
                base = self._answerer(done=len(questions), total=total).answer(questions)
        if tuned is None or base is None:
            return None
        return tuple(
            AnswerPair(prompt=q.prompt, reference=q.reference, base=b, tuned=t)
            for q, b, t in zip(questions, base, tuned, strict=True)
        )

    def _answerer(self, *, done: int, total: int) -> Answerer:
        def report(answered: int) -> None:
            self.observer.on_stage(
                STAGE_EVALUATION, done=done + answered, total=total, unit="answers"
            )

        model = self.evaluator.model
        return Answerer(
            model=model,
            tokenizer=self.tokenizer,
            stop_ids=stops_of(model, self.tokenizer, trained=self.data.report.stop_token_ids),
            limit=self.evaluator.limit,
            should_stop=self.observer.should_stop,
            on_progress=report,
            on_halved=self.evaluator.on_halved,
        )

    def write_report(self, folder: Path, *, state: RunState) -> None:
        """Answer the questions and write what was found; nothing if asked to stop on the way."""
        answers = self.answers()
        if answers is None:
            return
        split = self.data.held_out
        watched = [e for e in state.evaluations if e.subject == TUNED]
        base, tuned = (self.metrics(subject, state=state) for subject in (BASE, TUNED))
        sections = Sections(
            config=self.config,
            model=self.evaluator.model,
            model_dir=self.model_dir,
            observer=self.observer,
        )
        change = tuned[LOSS] / base[LOSS] - 1.0 if base.get(LOSS) and LOSS in tuned else None
        try:
            adapters = sections.adapters(state, loss_change=change)
            rounding = sections.rounding(state)
        except StopRequestedError:
            return
        report = ComparisonReport(
            model=self.config.model.uri,
            split=split,
            num_rows=len(self.data.splits[split]) if split else 0,
            num_tokens=self.data.report.splits[split].num_response_tokens if split else 0,
            base=base,
            tuned=tuned,
            answers=answers,
            losses=tuple(state.curve),
            evaluations=tuple((e.step, e.metrics[LOSS]) for e in watched),
            adapters=adapters,
            rounding=rounding,
        )
        report.write(folder)
