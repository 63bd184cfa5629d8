"""The trainer of an opened run, put together from its parts."""

from __future__ import annotations

from collections.abc import Callable

from anneal_pipeline.model.adapters import kept_parameters
from anneal_pipeline.opening import Opened
from anneal_pipeline.training.batches import Collator
from anneal_pipeline.training.best import BestCheckpoint
from anneal_pipeline.training.early_stopping import EarlyStopping
from anneal_pipeline.training.events import Events
from anneal_pipeline.training.held_out import HeldOutWatch, watched_metric
from anneal_pipeline.training.loop import Trainer
from anneal_pipeline.training.memory import RowLimit
from anneal_pipeline.training.out_of_memory import MicroBatchHalving
from anneal_pipeline.training.recovery import Recovery
from anneal_pipeline.training.saver import Saver
from anneal_pipeline.training.state import RunState
from anneal_pipeline.training.step_report import StepReporter
from anneal_pipeline.training.way_back import WayBack


def make_trainer(opened: Opened, *, on_milestone: Callable[[int, RunState], None]) -> Trainer:
    """`on_milestone` is called on the first rank with the percentage reached."""
    inputs = opened.inputs
    saver, watch, collate = _saver(opened), _watch(opened), _collator(opened)
    events = Events(observer=inputs.observer, ranks=inputs.ranks)
    best = BestCheckpoint(
        metric=watch.metric, saver=saver, allocator=opened.optimizer.allocator, events=events
    )
    limit = RowLimit(
        rows=opened.plan.micro_batch_size,
        may_halve=inputs.config.training.recovery.oom == "recover",
    )
    return Trainer(
        config=inputs.config,
        plan=opened.plan,
        tuned=opened.tuned,
        path=opened.path,
        optimizer=opened.optimizer,
        limit=limit,
        sequences=opened.sequences,
        collate=collate,
        state=opened.state,
        saver=saver,
        watch=watch,
        best=best,
        early_stopping=_early_stopping(opened, watch=watch, events=events),
        halving=MicroBatchHalving(
            config=inputs.config,
            split=opened.data.train,
            limit=limit,
            events=events,
            ranks=inputs.ranks,
        ),
        recovery=_recovery(opened, collate=collate, saver=saver, best=best, events=events),
        planned=opened.planned,
        reporter=StepReporter(
            plan=opened.plan,
            allocator=opened.optimizer.allocator,
            observer=inputs.observer,
            ranks=inputs.ranks,
            clock=inputs.clock,
        ),
        on_milestone=on_milestone,
        observer=inputs.observer,
        events=events,
        ranks=inputs.ranks,
        clock=inputs.clock,
    )


def _saver(opened: Opened) -> Saver:
    inputs = opened.inputs
    return Saver(
        config=inputs.config,
        parameters=kept_parameters(opened.tuned.model),
        optimizer=opened.optimizer,
        evaluation_limit=opened.evaluator.limit,
        checkpoints=inputs.checkpoints,
        checkpoint_info=opened.checkpoint_info,
        observer=inputs.observer,
        ranks=inputs.ranks,
        scratch=inputs.scratch,
        clock=inputs.clock,
        last_checkpoint=opened.resumed_from,
    )


def _recovery(
    opened: Opened, *, collate: Collator, saver: Saver, best: BestCheckpoint, events: Events
) -> Recovery:
    config, ranks = opened.inputs.config, opened.inputs.ranks
    return Recovery(
        config=config,
        data=opened.data,
        parameters=saver.parameters,
        optimizer=opened.optimizer,
        path=opened.path,
        collate=collate,
        way_back=WayBack(
            config=config,
            parameters=saver.parameters,
            optimizer=opened.optimizer,
            checkpoints=saver.checkpoints,
            initial=saver.initial,
            best=best,
            ranks=ranks,
        ),
        events=events,
        ranks=ranks,
    )


def _watch(opened: Opened) -> HeldOutWatch:
    inputs = opened.inputs
    return HeldOutWatch(
        schedule=inputs.config.evaluation.schedule,
        plan=opened.plan,
        splits=opened.data.splits,
        evaluator=opened.evaluator,
        metric=watched_metric(inputs.config.training),
        observer=inputs.observer,
        ranks=inputs.ranks,
        clock=inputs.clock,
    )


def _collator(opened: Opened) -> Collator:
    return Collator(
        split=opened.data.train,
        pad_id=int(opened.tokenizer.pad_token_id),
        train_all=opened.inputs.config.training.loss_on == "all",
        is_packed=opened.sequences.packing is not None,
    )


def _early_stopping(opened: Opened, *, watch: HeldOutWatch, events: Events) -> EarlyStopping | None:
    config, allocator = opened.inputs.config.training.early_stopping, opened.optimizer.allocator
    if config is None:
        return None
    return EarlyStopping(
        config=config,
        watch=watch,
        total_steps=opened.plan.total_steps,
        judged_since=0 if allocator is None else allocator.schedule.end,
        events=events,
    )
