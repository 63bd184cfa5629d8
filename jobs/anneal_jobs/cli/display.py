"""What a person sees while `anneal run` works: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from anneal_pipeline.memory.plan import size_text
from anneal_pipeline.observer import (
    EVENT_DIAGNOSIS,
    EVENT_RECOVERED,
    EVENT_WARNING,
    STAGE_TRAINING,
    CheckpointReport,
    EvaluationReport,
    NullObserver,
    StepReport,
)

_LINE_SECONDS = 10.0
_BYTES = "bytes"
_STAGE_TITLES = {
    "download": "fetching inputs",
    "data": "preparing data",
    "model": "loading model",
    "baseline": "measuring base model",
    "evaluation": "measuring tuned model",
    "export": "exporting",
    "upload": "uploading",
    "register": "registering",
}


def duration(seconds: float) -> str:
    """1h 5m, 6m 10s, 42s."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {rest}s" if minutes else f"{rest}s"


def step_line(report: StepReport) -> str:
    return (
        f"step {report.step}/{report.total_steps}  loss {report.loss:.3f}  "
        f"{report.tokens_per_second:.0f} tokens/s  ETA {duration(report.eta_seconds)}"
    )


def evaluation_line(report: EvaluationReport) -> str:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in report.metrics.items())
    return f"{report.subject} model on {report.num_rows} {report.split} rows: {figures}"


def _amount(done: int, *, total: int, unit: str) -> str:
    """3/8 batches, 900 rows, 256 MiB/1.20 GiB."""
    if unit == _BYTES:
        return f"{size_text(done)}/{size_text(total)}" if total else size_text(done)
    return f"{done}/{total} {unit}" if total else f"{done} {unit}"


class LineDisplay(NullObserver):
    """One line per stage, event and evaluation, and one per so many seconds of work."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._console = console
        self._clock = clock
        self._last_stage: str | None = None
        self._last_line = float("-inf")

    def on_stage(self, stage: str, *, done: int, total: int, unit: str) -> None:
        if stage not in _STAGE_TITLES:
            self._last_stage = stage
            return
        now = self._clock()
        if stage != self._last_stage:
            self._say(_STAGE_TITLES[stage])
        elif now - self._last_line >= _LINE_SECONDS and done:
            self._say(f"{_STAGE_TITLES[stage]} {_amount(done, total=total, unit=unit)}")
        else:
            return
        self._last_stage, self._last_line = stage, now

    def on_step(self, report: StepReport) -> None:
        now = self._clock()
        if now - self._last_line >= _LINE_SECONDS or report.step in (1, report.total_steps):
            self._last_line = now
            self._say(step_line(report))

    def on_evaluation(self, report: EvaluationReport) -> None:
        self._say(evaluation_line(report))

    def on_checkpoint(self, report: CheckpointReport) -> None:
        self._say(f"checkpoint {report.name}")

    def on_event(self, name: str, message: str, fields: Mapping[str, Any]) -> None:
        self._say(f"warning: {message}" if name == EVENT_WARNING else message)

    def _say(self, line: str) -> None:
        self._console.print(Text(line))


class BarDisplay(NullObserver):
    """A live bar; use as a context."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            transient=True,
        )
        self._task: TaskID = self._progress.add_task("starting", total=None, detail="")
        self._last_step: StepReport | None = None

    def __enter__(self) -> BarDisplay:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def on_stage(self, stage: str, *, done: int, total: int, unit: str) -> None:
        if stage == STAGE_TRAINING:
            return
        title = _STAGE_TITLES.get(stage, stage)
        detail = _amount(done, total=total, unit=unit) if total else ""
        self._progress.update(
            self._task, description=title, completed=done, total=total or None, detail=detail
        )

    def on_step(self, report: StepReport) -> None:
        self._last_step = report
        self._show_step(report)

    def _show_step(self, report: StepReport) -> None:
        self._progress.update(
            self._task,
            description="training",
            completed=report.step,
            total=report.total_steps,
            detail=step_line(report),
        )

    def on_evaluation(self, report: EvaluationReport) -> None:
        self._console.print(Text(evaluation_line(report)))
        if self._last_step is not None:  # the next step may take long: this one is what is known
            self._show_step(self._last_step)

    def on_event(self, name: str, message: str, fields: Mapping[str, Any]) -> None:
        is_odd = name in (EVENT_WARNING, EVENT_RECOVERED, EVENT_DIAGNOSIS)
        style = "yellow" if is_odd else ""
        self._console.print(Text(message, style=style))
