"""`anneal estimate`: what a job needs in memory, without its weights and without its data."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

# What a trainer imports too: the size of this process is that of its libraries.
import anneal_pipeline.stages as _stages  # noqa: F401
from anneal_jobs.cli import terminal
from anneal_jobs.cli.job_file import JobFile
from anneal_jobs.cli.options import OutputForm
from anneal_jobs.cli.quantity import bytes_of
from anneal_jobs.errors import UsageError
from anneal_jobs.storage.model import fetch_tokenizer
from anneal_jobs.storage.s3 import S3Settings
from anneal_jobs.storage.source import SourceAccess
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.device import resolve_compute
from anneal_pipeline.memory.estimate import Estimate, Wish, estimate, planning
from anneal_pipeline.memory.fit import Setting, Verdict
from anneal_pipeline.memory.lighter import lighter_bases
from anneal_pipeline.memory.plan import MemoryPlan, size_text
from anneal_pipeline.memory.rank_limit import RankLimit, find_rank_limit, plans_by_rank
from anneal_pipeline.memory.room import Room, limit_on_cpu, resident_bytes
from anneal_pipeline.memory.trace import Place
from anneal_pipeline.model.folder import check_model_config
from anneal_pipeline.model.four_bit import choose_base_form
from anneal_pipeline.model.loading import trained_in

RAY_BYTES = 1600 << 20
"""What a pod holds beside its ranks, the driver and Ray's own processes: anonymous memory measured
in the pod of `make demo` (docs/benchmarks.md)."""


@dataclass(frozen=True, kw_only=True)
class EstimateOptions:
    """What the command line adds to the file."""

    memory: int | None
    """Bytes of a pod."""
    gpu_memory: int | None
    """Bytes of a GPU."""
    s3_endpoint: str | None


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is planned, and for which memory."""

    config: PipelineConfig
    folder: Path
    """With the model's config.json."""
    place: Place
    wish: Wish
    room: Room

    def setting(self) -> Setting:
        """What the job takes as it stands, whether that fits or not."""
        plan_of = planning(self.config, folder=self.folder, place=self.place)
        return estimate(self.wish, room=self.room, plan_of=plan_of, lighter=()).setting

    def estimate(self) -> Estimate:
        plan_of = planning(self.config, folder=self.folder, place=self.place)
        lighter = lighter_bases(
            self.config, folder=self.folder, place=self.place, device=torch.device("cpu")
        )
        return estimate(self.wish, room=self.room, plan_of=plan_of, lighter=lighter)


def estimate_job(job: JobFile, options: EstimateOptions) -> Estimate:
    """Plan the job for the machine it names, or for this one."""
    with _subject(job, options) as subject:
        return subject.estimate()


def limit_rank(job: JobFile, options: EstimateOptions) -> RankLimit:
    """The highest rank for the job, with the micro-batch that it takes as it stands.

    UsageError where neither the options nor the job nor this machine tell a limit.
    """
    with _subject(job, options) as subject:
        if subject.room.limit is None:
            option = "--gpu-memory" if subject.place.on_gpu else "--memory"
            raise UsageError(
                "anneal estimate --max-rank: nothing tells how much memory there is; name it, for "
                f"example with {option} 24Gi"
            )
        setting = subject.setting()
        return find_rank_limit(
            setting=setting,
            room=subject.room,
            plan_of=plans_by_rank(
                subject.config, setting=setting, folder=subject.folder, place=subject.place
            ),
        )


@contextmanager
def _subject(job: JobFile, options: EstimateOptions) -> Iterator[_Subject]:
    compute, config = job.spec.compute, job.spec.pipeline()
    on_gpu = _is_on_gpu(job, options)
    ranks = compute.ranks_per_worker or compute.gpus_per_worker or 1
    access = SourceAccess(
        s3=S3Settings(
            endpoint=options.s3_endpoint, region=os.environ.get("AWS_REGION", "us-east-1")
        )
    )
    form = choose_base_form(config.tuning, device=torch.device("cpu"))
    with tempfile.TemporaryDirectory(prefix="anneal-estimate-") as scratch:
        folder = fetch_tokenizer(config.model, to=Path(scratch), access=access)
        check_model_config((folder / "config.json").read_bytes(), uri=config.model.uri)
        kind = resolve_compute(
            config.tuning.quantization.compute_dtype,
            kind="cuda" if on_gpu else "cpu",
            has_bfloat16=True,
            trained_in=trained_in(folder),
            trains_whole=bool(config.tuning.lora.modules_to_save),
        )
        place = Place(compute=getattr(torch, kind), in_4_bit=form.in_4_bit, on_gpu=on_gpu)
        room = _gpu_room(options) if on_gpu else _cpu_room(job, options, ranks=ranks)
        wish = Wish.of(
            config,
            length=config.training.sequence_length,
            world_size=ranks * compute.workers,
            fills_gpu=on_gpu and room.limit is not None,
        )
        yield _Subject(config=config, folder=folder, place=place, wish=wish, room=room)


def _is_on_gpu(job: JobFile, options: EstimateOptions) -> bool:
    if options.gpu_memory is not None:
        return True
    asked = job.spec.compute.gpus_per_worker
    if asked is not None:
        return asked > 0
    return options.memory is None and torch.cuda.is_available()


def _gpu_room(options: EstimateOptions) -> Room:
    limit = None
    if options.gpu_memory is not None:
        limit = options.gpu_memory
    elif torch.cuda.is_available():
        limit = int(torch.cuda.get_device_properties(0).total_memory)
    return Room(limit=limit, libraries=0, on_gpu=True)


def _cpu_room(job: JobFile, options: EstimateOptions, *, ranks: int) -> Room:
    """This rank's part of a pod, or of this machine, where a run needs no Ray."""
    if options.memory is not None:
        pod = options.memory
    elif job.spec.compute.memory is not None:
        pod = bytes_of(job.spec.compute.memory, source="spec.compute.memory")
    else:
        here = limit_on_cpu()
        limit = None if here is None else here // ranks
        return Room(limit=limit, libraries=resident_bytes())
    return Room(limit=pod // ranks, libraries=resident_bytes(), others=RAY_BYTES // ranks)


def show(found: Estimate, *, output: OutputForm) -> None:
    if output is OutputForm.JSON:
        terminal.print_data(json.dumps(data_of(found), indent=2))
        return
    terminal.print_data(headline(found))
    terminal.stdout().print(table_of(found.plan, room=found.room))
    if found.room.on_gpu:
        terminal.stderr().print(
            "What CUDA itself holds on the GPU, some hundred MiB, comes on top; no plan for a GPU "
            "was ever measured"
        )


def table_of(plan: MemoryPlan, *, room: Room) -> Table:
    """The parts of a step, what loading needs, and the greater of both against the limit."""
    table = Table(box=None, pad_edge=False)
    table.add_column("part")
    table.add_column("memory", justify="right")
    for name, size in parts_of(plan, room=room).items():
        table.add_row(name, size_text(size))
    table.add_row("a step in all", size_text(plan.step + room.taken))
    table.add_row("loading the model", size_text(plan.loading + room.taken))
    table.add_row("peak", size_text(plan.peak + room.taken), style="bold")
    if room.limit is not None:
        table.add_row("limit", size_text(room.limit))
    return table


def headline(found: Estimate) -> str:
    setting = found.setting
    rows = "1 sequence" if setting.rows == 1 else f"{setting.rows} sequences"
    kept = "recomputed" if setting.checkpointing else "kept"
    fewer = setting.rows < found.wanted.rows
    instead = f" ({found.wanted.rows} do not fit; the batch stays)" if fewer else ""
    tight = (
        "; so tight that the error of the plan decides"
        if found.choice.verdict is Verdict.IS_TIGHT
        else ""
    )
    return (
        f"{rows} of up to {setting.length} tokens per forward pass{instead}, activations "
        f"{kept}{tight}"
    )


def data_of(found: Estimate) -> dict[str, Any]:
    nearest = found.nearest
    return {
        "fits": None if found.room.limit is None else found.fits,
        "verdict": None if found.room.limit is None else found.choice.verdict.value,
        "peakBytes": found.needed,
        "loadingBytes": found.plan.loading + found.room.taken,
        "limitBytes": found.room.limit,
        "parts": dict(parts_of(found.plan, room=found.room)),
        "microBatchSize": found.setting.rows,
        "sequenceLength": found.setting.length,
        "gradientCheckpointing": found.setting.checkpointing,
        "nearest": nearest
        and {
            "microBatchSize": nearest.setting.rows,
            "sequenceLength": nearest.setting.length,
            "gradientCheckpointing": nearest.setting.checkpointing,
            "base": dict(nearest.base),
            "peakBytes": nearest.plan.peak + found.room.taken,
        },
    }


def parts_of(plan: MemoryPlan, *, room: Room) -> Mapping[str, int]:
    """Bytes by name, with what other things than the step hold."""
    ray = {"Ray": room.others} if room.others else {}
    return {"libraries": room.libraries, **ray, **plan.parts()}
