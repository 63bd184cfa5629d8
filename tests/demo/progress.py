"""Shows a running job: a live bar on a terminal, a plain line per change elsewhere."""

from collections.abc import Iterable

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from job import Job
from terminal import Terminal, duration

_LINE_EVERY_PERCENT = 10


def show(jobs: Iterable[Job], *, terminal: Terminal) -> Job:
    """Show each reading as it comes and return the last one."""
    return _show_live(jobs, terminal=terminal) if terminal.is_live else _show_lines(jobs, terminal)


def facts(job: Job) -> str:
    """Stage, step, loss and time left in one line, as far as they are known."""
    progress = job.progress
    parts = [str(progress.get("stage") or "")]
    if progress.get("step") is not None:
        parts.append(f"step {progress['step']}/{progress.get('totalSteps') or '?'}")
    if progress.get("loss") is not None:
        parts.append(f"loss {progress['loss']:.3f}")
    if progress.get("etaSeconds") and not job.is_over:
        parts.append(f"{duration(progress['etaSeconds'])} left")
    return "  ".join(part for part in parts if part)


class _Elapsed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(duration(task.elapsed or 0.0), style="green")


def _show_live(jobs: Iterable[Job], *, terminal: Terminal) -> Job:
    columns = (
        TextColumn("    {task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[facts]}", markup=False),
        _Elapsed(),
    )
    said = ""
    job = None
    with Progress(*columns, console=terminal.console, transient=True, refresh_per_second=2) as bar:
        task = bar.add_task("Pending", total=100, facts="")
        for job in jobs:
            if job.waits_for and job.waits_for != said:
                said = job.waits_for
                terminal.say(f"    {said}")
            bar.update(
                task,
                description=f"{job.phase:<10}",
                completed=job.progress.get("percent") or 0,
                facts=facts(job),
            )
    assert job is not None
    return job


def _show_lines(jobs: Iterable[Job], terminal: Terminal) -> Job:
    shown: tuple[object, ...] = ()
    said = ""
    job = None
    for job in jobs:
        if job.waits_for and job.waits_for != said:
            said = job.waits_for
            terminal.say(f"    {said}")
        percent = int(job.progress.get("percent") or 0)
        mark = (job.phase, job.progress.get("stage"), percent // _LINE_EVERY_PERCENT)
        if mark != shown:
            shown = mark
            terminal.say(f"    {job.phase:<10} {percent:>3}%  {facts(job)}".rstrip())
    assert job is not None
    return job
