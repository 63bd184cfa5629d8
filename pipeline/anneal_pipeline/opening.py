"""How a run begins: data prepared, model loaded, and the newest checkpoint taken up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from anneal_pipeline.checkpoint.manifest import CheckpointInfo
from anneal_pipeline.checkpoint.store import CheckpointStore
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.steps import StepPlan, plan_steps
from anneal_pipeline.data.files import DatasetFiles
from anneal_pipeline.data.prepare import PreparedData, prepare_data
from anneal_pipeline.data.tokens import generation_eos, stop_token_ids
from anneal_pipeline.errors import NOTHING_TO_WATCH, StopRequestedError, UserError
from anneal_pipeline.evaluation.evaluator import make_evaluator
from anneal_pipeline.evaluation.perplexity import Evaluator
from anneal_pipeline.memory.while_loading import named_while_loading
from anneal_pipeline.micro_batch import MicroBatch, RoomOf
from anneal_pipeline.model.adapters import kept_parameters
from anneal_pipeline.model.folder import check_model_folder, model_digest
from anneal_pipeline.model.four_bit import BaseForm, choose_base_form
from anneal_pipeline.model.loading import (
    TunedModel,
    choose_compute,
    load_tokenizer,
    load_tuned_model,
)
from anneal_pipeline.model.packable import require_packable
from anneal_pipeline.model.weight_progress import each_weight
from anneal_pipeline.observer import (
    EVENT_MODEL_READY,
    EVENT_WARNING,
    STAGE_MODEL,
    Observer,
)
from anneal_pipeline.reading import Reading
from anneal_pipeline.training.diagnoses.facts import Planned
from anneal_pipeline.training.eight_bit import check_optimizer
from anneal_pipeline.training.loss import LogitsPath, whole_logits_notice
from anneal_pipeline.training.optimizer import AdapterOptimizer
from anneal_pipeline.training.rank_allocator import make_allocator
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.resume import (
    SavedRun,
    find_run,
    library_versions,
    restore,
    run_facts,
)
from anneal_pipeline.training.sequences import StepSequences
from anneal_pipeline.training.state import RunState


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What `run_pipeline` was given."""

    config: PipelineConfig
    workspace: Path
    scratch: Path
    """A local folder of this rank that is gone after the run."""
    model_dir: Path
    dataset_files: DatasetFiles | None
    checkpoints: CheckpointStore
    observer: Observer
    ranks: Ranks
    room_of: RoomOf
    clock: Callable[[], float]


@dataclass(kw_only=True)
class Opened:
    """Everything a run computes with, standing where the run stands."""

    inputs: Inputs
    plan: StepPlan
    data: PreparedData
    sequences: StepSequences
    tokenizer: PreTrainedTokenizerBase
    tuned: TunedModel
    path: LogitsPath
    evaluator: Evaluator
    optimizer: AdapterOptimizer
    state: RunState
    planned: Planned | None
    resumed_from: str | None = None

    def checkpoint_info(self, state: RunState) -> CheckpointInfo:
        return CheckpointInfo(
            step=state.step,
            config_hash=self.inputs.config.mathematical_hash(),
            dataset_digest=self.data.report.digest,
            libraries=library_versions(),
            metrics={"loss": state.losses[-1][1]} if state.losses else {},
            recoveries=state.interventions,
        )


def open_inputs(inputs: Inputs) -> Opened:
    """Check and prepare everything; what is wrong with the job shows here, before any training."""
    with inputs.ranks.together():
        check_model_folder(inputs.model_dir, uri=inputs.config.model.uri)
        form = choose_base_form(inputs.config.tuning, device=inputs.ranks.device)
        choose_compute(inputs.config, folder=inputs.model_dir, device=inputs.ranks.device)
        check_optimizer(inputs.config.training, device=inputs.ranks.device)
        tokenizer = load_tokenizer(inputs.model_dir, new_tokens=inputs.config.tuning.new_tokens)
    data = _prepare(inputs, tokenizer)
    _check_early_stopping(inputs.config, data)
    sequences = StepSequences.of(inputs.config.training, data.train.lengths())
    saved = _saved_run(inputs)
    micro_batch = _micro_batch(inputs, sequences)
    rows = micro_batch.of_run(saved) if saved is not None else None
    rows = rows or micro_batch.plan(folder=inputs.model_dir, form=form)
    with inputs.ranks.together():
        tuned = _load_model(inputs, form)
        if sequences.packing is not None:
            require_packable(tuned.model, uri=inputs.config.model.uri)
        path = LogitsPath(tuned.model)
    rows = micro_batch.correct(path, model=tuned.model) or rows
    planned = micro_batch.planned()
    _tell_whole_logits(inputs, path, rows=rows, length=micro_batch.length, tuned=tuned)
    plan = plan_steps(inputs.config, num_sequences=len(sequences), micro_batch_size=rows)
    opened = Opened(
        inputs=inputs,
        plan=plan,
        data=data,
        sequences=sequences,
        tokenizer=tokenizer,
        tuned=tuned,
        path=path,
        evaluator=make_evaluator(
            inputs.config,
            model=tuned.model,
            path=path,
            pad_id=int(tokenizer.pad_token_id),
            micro_batch_size=plan.micro_batch_size,
            observer=inputs.observer,
            ranks=inputs.ranks,
        ),
        optimizer=AdapterOptimizer(
            inputs.config.training,
            model=tuned.model,
            compute=tuned.compute,
            ranks=inputs.ranks,
            allocator=make_allocator(
                inputs.config.tuning.lora, model=tuned.model, total_steps=plan.total_steps
            ),
        ),
        state=RunState(
            facts=_facts(inputs, tuned, micro_batch_size=rows),
            is_memory_short=micro_batch.is_short,
        ),
        planned=planned,
    )
    if saved is not None:
        _take_up(opened, saved)
        opened.state.is_memory_short = micro_batch.is_short
    return opened


def _saved_run(inputs: Inputs) -> SavedRun | None:
    if inputs.config.checkpoint.resume != "Auto":
        return None
    reading = _model_reading(inputs)
    return find_run(inputs.checkpoints, ranks=inputs.ranks, on_chunk=reading)


def _facts(inputs: Inputs, tuned: TunedModel, *, micro_batch_size: int) -> dict[str, Any]:
    with inputs.ranks.together():
        facts = run_facts(
            world_size=inputs.ranks.world_size,
            micro_batch_size=micro_batch_size,
            base_digest=model_digest(inputs.model_dir, on_chunk=_model_reading(inputs)),
            device=inputs.ranks.device,
            compute=tuned.compute,
        )
    return {**facts, "method": tuned.method}


def _micro_batch(inputs: Inputs, sequences: StepSequences) -> MicroBatch:
    return MicroBatch(
        config=inputs.config,
        length=int(max(sequences.batches.lengths)),
        ranks=inputs.ranks,
        room_of=inputs.room_of,
        observer=inputs.observer,
    )


def _tell_whole_logits(
    inputs: Inputs, path: LogitsPath, *, rows: int, length: int, tuned: TunedModel
) -> None:
    if path.selects or not inputs.ranks.is_first:
        return
    vocabulary = int(tuned.model.config.get_text_config().vocab_size)
    message, num_bytes = whole_logits_notice(rows=rows, length=length, vocabulary=vocabulary)
    fields = {"kind": "logits", "microBatchSize": rows, "tokens": length, "logitsBytes": num_bytes}
    inputs.observer.on_event(EVENT_WARNING, message, {**fields, "vocabulary": vocabulary})


def _check_early_stopping(config: PipelineConfig, data: PreparedData) -> None:
    if config.training.early_stopping is not None and data.held_out is None:
        raise UserError(
            NOTHING_TO_WATCH,
            "training.earlyStopping watches held-out rows, but none are held out; set "
            "dataset.split.validation above 0 or name dataset.files.validation, or remove "
            "training.earlyStopping",
        )


def _take_up(opened: Opened, saved: SavedRun) -> None:
    """Go on from the newest good checkpoint."""
    inputs = opened.inputs
    with inputs.ranks.together():
        opened.state = restore(
            saved,
            parameters=kept_parameters(opened.tuned.model),
            optimizer=opened.optimizer,
            config=inputs.config,
            dataset_digest=opened.data.report.digest,
            facts=opened.state.facts,
            observer=inputs.observer,
        )
    limit = opened.evaluator.limit
    limit.rows = min(limit.rows, opened.state.evaluation_batch_size or limit.rows)
    opened.resumed_from = saved.checkpoint.manifest.name


def _prepare(inputs: Inputs, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    """Prepare the data on the first rank; the others then find it done, or stop as it did."""
    stop_ids = stop_token_ids(tokenizer, generation_eos(inputs.model_dir))

    def prepare() -> PreparedData:
        return prepare_data(
            inputs.config,
            files=inputs.dataset_files,
            folder=inputs.workspace / "data",
            tokenizer=tokenizer,
            stop_ids=stop_ids,
            observer=inputs.observer,
        )

    data = None
    with inputs.ranks.together():
        if inputs.ranks.is_first:
            data = prepare()
    with inputs.ranks.together():
        return data or prepare()


def _model_reading(inputs: Inputs) -> Reading:
    return Reading(observer=inputs.observer, stage=STAGE_MODEL)


def _load_model(inputs: Inputs, form: BaseForm) -> TunedModel:
    first, observer = inputs.ranks.is_first, inputs.observer

    def tell(done: int, total: int, *, unit: str) -> None:
        if first:
            observer.on_stage(STAGE_MODEL, done=done, total=total, unit=unit)
        if observer.should_stop():
            raise StopRequestedError

    with (
        named_while_loading(folder=inputs.model_dir, uri=inputs.config.model.uri, form=form),
        each_weight(partial(tell, unit="weights")),
    ):
        tuned = load_tuned_model(
            inputs.config,
            folder=inputs.model_dir,
            device=inputs.ranks.device,
            form=form,
            on_layer=partial(tell, unit="layers"),
        )
    if first:
        facts = {
            "trainable": tuned.num_trainable,
            "parameters": tuned.num_parameters,
            "baseBytes": tuned.base_bytes,
            "compression": tuned.compression,
        }
        observer.on_event(EVENT_MODEL_READY, tuned.summary(), facts)
        for warning in tuned.warnings:
            observer.on_event(EVENT_WARNING, warning, {"stage": STAGE_MODEL})
    return tuned
