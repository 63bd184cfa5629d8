"""What a run tells the world: one `Observer` that feeds MLflow, progress, storage and a display.

No call blocks on a network: each listener has a queue and a thread of its own.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from anneal_jobs.event_log import EventLog
from anneal_jobs.progress import ProgressReporter
from anneal_jobs.redaction import redact
from anneal_jobs.run_state import RunState
from anneal_jobs.stage_memory import MemoryReading, StageMemory, describe
from anneal_jobs.storage.outputs import OutputUploader
from anneal_jobs.tracking.parameters import write_tags
from anneal_jobs.tracking.writer import Action, RunWriter
from anneal_pipeline import observer as pipeline
from anneal_pipeline.observer import CheckpointReport, EvaluationReport, Observer, StepReport

log = logging.getLogger(__name__)

STAGE_DOWNLOAD = "download"
STAGE_UPLOAD = "upload"
STAGE_REGISTER = "register"
_STAGE_NAMES = {
    pipeline.STAGE_DATA: "prepare",
    pipeline.STAGE_MODEL: "load",
    pipeline.STAGE_BASELINE: "evaluate-base",
    pipeline.STAGE_TRAINING: "train",
    pipeline.STAGE_EVALUATION: "evaluate",
    pipeline.STAGE_EXPORT: "export",
}
_TAG_CHECKPOINT = "anneal.checkpoint"
_WARNINGS = frozenset({pipeline.EVENT_WARNING, pipeline.EVENT_RECOVERED, pipeline.EVENT_DIAGNOSIS})
_TAGGED = frozenset(
    {
        pipeline.EVENT_RECOVERED,
        pipeline.EVENT_DIAGNOSIS,
        pipeline.EVENT_CHECKPOINT_REJECTED,
        pipeline.EVENT_EARLY_STOP,
        pipeline.EVENT_MEMORY_PLANNED,
        pipeline.EVENT_BEST_RESTORED,
        pipeline.EVENT_RANKS_SETTLED,
    }
)
"""Events that change or explain the numbers of a run, and so stay with them."""
_MEASURED = {
    pipeline.EVENT_ADAPTERS_MEASURED: "adapters",
    pipeline.EVENT_ROUNDING_MEASURED: "quantization",
}
"""Events with numbers of their own, and what these begin with in MLflow."""
_TAGS_KEY = "eventTags"
_REPORT_SUFFIXES = (".html", ".json", ".md")


@dataclass(kw_only=True)
class RunObserver:
    """The observer of rank 0."""

    state: RunState
    stop_file: Path
    writer: RunWriter | None
    reporter: ProgressReporter | None
    uploader: OutputUploader | None
    display: Observer | None
    workspace: Path
    events: EventLog
    num_ranks: int = 1
    """Ranks that share this pod's memory."""
    memory: StageMemory = field(init=False)
    _tags: Counter[str] = field(default_factory=Counter, init=False)
    """How many events have had the same key: MLflow keeps only the last value of a tag."""

    def __post_init__(self) -> None:
        self.memory = StageMemory(
            num_processes=self.num_ranks,
            on_reading=self._add_memory,
            on_near_limit=self._warn_of_memory,
        )

    def on_stage(self, stage: str, *, done: int, total: int, unit: str) -> None:
        self.memory.enter(_STAGE_NAMES.get(stage, stage))
        self.state.set_stage(_STAGE_NAMES.get(stage, stage), done=done, total=total, unit=unit)
        if self.display is not None:
            self.display.on_stage(stage, done=done, total=total, unit=unit)

    def on_step(self, report: StepReport) -> None:
        self.state.set_step(report)
        self.memory.watch()
        log.info("%s", throughput_line(report))
        self.events.write("step", step=report.step, fields=asdict(report))
        if self.writer is not None:
            self.writer.add(_step_metrics(report), step=report.step)
        if self.display is not None:
            self.display.on_step(report)

    def on_evaluation(self, report: EvaluationReport) -> None:
        self.state.add_evaluation(report)
        figures = " ".join(f"{name}={value:.4g}" for name, value in report.metrics.items())
        log.info("evaluation of %s on %s: %s", report.subject, report.split, figures)
        self.events.write("evaluation", step=report.step, fields=asdict(report))
        if self.writer is not None:
            prefix = f"{report.split}/{report.subject}"
            values = {f"{prefix}/{name}": value for name, value in report.metrics.items()}
            self.writer.add(values, step=report.step)
        if self.display is not None:
            self.display.on_evaluation(report)

    def on_checkpoint(self, report: CheckpointReport) -> None:
        self.state.set_checkpoint(report)
        log.info("checkpoint %s (%s), %d bytes", report.name, report.cause, report.num_bytes)
        self.events.write("checkpoint", step=report.step, fields=asdict(report))
        if self.writer is not None:
            self.writer.submit(_tag_action(_TAG_CHECKPOINT, report.name))
        if self.display is not None:
            self.display.on_checkpoint(report)

    def on_event(self, name: str, message: str, fields: Mapping[str, Any]) -> None:
        message = redact(message)
        self.state.add_event(name, message)
        log.log(logging.WARNING if name in _WARNINGS else logging.INFO, "%s", message)
        self.events.write(name, step=self.state.step, fields={**fields, "message": message})
        if self.writer is not None and name == pipeline.EVENT_MODEL_READY:
            self.writer.add(_model_metrics(fields), step=0, is_always_sent=True)
        if self.writer is not None and "backTo" in fields:
            self.writer.go_back(step=fields["step"], back_to=fields["backTo"])
        if self.writer is not None and name in _MEASURED:
            values = {f"{_MEASURED[name]}/{key}": v for key, v in fields["metrics"].items()}
            self.writer.add(values, step=fields["step"], is_always_sent=True)
        if self.writer is not None and name in _TAGGED:
            self.writer.submit(_tag_action(self._own_tag(name, fields), message))
        if self.display is not None:
            self.display.on_event(name, message, fields)

    def on_output(self, path: Path) -> None:
        if self.uploader is not None:
            self.uploader.add(path)
        if self.writer is not None:
            for file in reports_of(path, workspace=self.workspace):
                self.writer.submit(_artefact_action(file, workspace=self.workspace))
        if self.display is not None:
            self.display.on_output(path)

    def should_stop(self) -> bool:
        return self.stop_file.exists() or (self.reporter is not None and self.reporter.is_stale)

    def _own_tag(self, name: str, fields: Mapping[str, Any]) -> str:
        key = tag_of_event(name, fields)
        self._tags[key] += 1
        return key if self._tags[key] == 1 else f"{key}.{self._tags[key]}"

    def _add_memory(self, reading: MemoryReading) -> None:
        log.info("memory at the end of stage %s: %s", reading.stage, describe(reading))
        if self.writer is not None:
            self.writer.add(reading.metrics(), step=self.state.step or 0, is_always_sent=True)

    def _warn_of_memory(self, message: str) -> None:
        self.on_event(pipeline.EVENT_WARNING, message, {"kind": "memory"})

    def save_state(self) -> Mapping[str, Any]:
        kept = self.writer.save_state() if self.writer is not None else {}
        return {**kept, _TAGS_KEY: dict(self._tags)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        # An event that was lost with the steps since then comes again, under the same tag.
        self._tags |= Counter(state.get(_TAGS_KEY, {}))
        if self.writer is not None:
            self.writer.load_state(state)


@dataclass(kw_only=True)
class StopObserver(pipeline.NullObserver):
    """The observer of every other rank: it passes the wish to stop on, and keeps a log."""

    stop_file: Path
    num_ranks: int
    _memory: StageMemory = field(init=False)

    def __post_init__(self) -> None:
        # The first rank measures and warns for all; the heap is each one's own.
        self._memory = StageMemory(
            num_processes=self.num_ranks, on_reading=lambda _: None, on_near_limit=lambda _: None
        )

    def on_event(self, name: str, message: str, fields: Mapping[str, Any]) -> None:
        log.info("%s", redact(message))

    def should_stop(self) -> bool:
        self._memory.watch()
        return self.stop_file.exists()


def tag_of_event(name: str, fields: Mapping[str, Any]) -> str:
    """The key of an event on its MLflow run: by kind, and by what it is about or its step.

    What it is about is the row of a diagnosis, with its case, or the name of a checkpoint.
    """
    row = ".".join(fields[key] for key in ("row", "case") if fields.get(key))
    about = row or fields.get("checkpoint")
    which = about or (f"step-{fields['step']:06d}" if "step" in fields else "")
    parts = ("anneal", name, str(fields.get("kind", "")), str(which))
    return ".".join(part for part in parts if part)


def reports_of(path: Path, *, workspace: Path) -> list[Path]:
    """Small readable files that MLflow shows beside the run: evaluation and data reports."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [
        file
        for file in files
        if file.relative_to(workspace).parts[0] in ("evaluation", "data")
        and file.name.startswith("report.")
        and file.suffix in _REPORT_SUFFIXES
    ]


def throughput_line(report: StepReport) -> str:
    """One step for the eyes: how it learns, how fast, in how much memory, how long still."""
    return (
        f"step {report.step}/{report.total_steps} loss={report.loss:.4f} "
        f"lr={report.learning_rate:.3g} grad_norm={report.grad_norm:.3g} "
        f"tokens_per_second={report.tokens_per_second:.0f} "
        f"trained_tokens_per_second={_trained_rate(report):.0f} "
        f"step_seconds={report.step_seconds:.3g} data_seconds={report.data_seconds:.3g} "
        f"gradient_seconds={report.gradient_seconds:.3g} "
        f"update_seconds={report.update_seconds:.3g} "
        f"memory_megabytes={report.memory_bytes / 1e6:.0f} eta_seconds={report.eta_seconds:.0f}"
        + ("" if report.mean_rank is None else f" mean_rank={report.mean_rank:.3g}")
    )


def _trained_rate(report: StepReport) -> float:
    return report.num_trained_tokens / report.step_seconds if report.step_seconds else 0.0


def _step_metrics(report: StepReport) -> dict[str, float]:
    values = {
        "train/loss": report.loss,
        "train/learning_rate": report.learning_rate,
        "train/grad_norm": report.grad_norm,
        "train/epoch": report.epoch,
        "train/tokens": report.num_tokens,
        "train/tokens_per_second": report.tokens_per_second,
        "train/trained_tokens_per_second": _trained_rate(report),
        "train/step_seconds": report.step_seconds,
        "train/data_seconds": report.data_seconds,
        "train/gradient_seconds": report.gradient_seconds,
        "train/update_seconds": report.update_seconds,
        "train/memory_megabytes": report.memory_bytes / 1e6,
        "train/eta_seconds": report.eta_seconds,
    }
    if report.mean_rank is not None:
        values["train/mean_rank"] = report.mean_rank
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _model_metrics(fields: Mapping[str, Any]) -> dict[str, float]:
    """What quantisation saved, against 16 bits, and what of the model is trained."""
    return {
        "model/trainable_share": fields["trainable"] / fields["parameters"],
        "model/compression_ratio": fields["compression"],
        "model/base_megabytes": fields["baseBytes"] / 1e6,
    }


def _tag_action(key: str, value: str) -> Action:
    def write(client: MlflowClient, run_id: str) -> None:
        write_tags(client, run_id, {key: value})

    return Action(name=f"tag {key}", write=write)


def _artefact_action(file: Path, *, workspace: Path) -> Action:
    folder = file.relative_to(workspace).parent.as_posix()

    def write(client: MlflowClient, run_id: str) -> None:
        client.log_artifact(run_id, str(file), folder)

    return Action(name=f"artefact {file.name}", write=write)
