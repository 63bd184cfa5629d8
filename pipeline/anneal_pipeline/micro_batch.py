"""How many sequences go through the model at once: by the memory plan, corrected by one pass.

Decided before any weights are loaded, so that a job that cannot fit ends there, with the setting
that would. Where the plan comes near to what there is, one pass over full rows is measured before
training begins, and the plan set right by it. A run that is taken up again asks neither: it goes on
with what its checkpoint says, so that it ends as the run that was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.config.steps import AUTO_MICRO_BATCH_MAX_ON_GPU, auto_micro_batch_size
from anneal_pipeline.errors import DOES_NOT_FIT, StopRequestedError, UserError
from anneal_pipeline.memory.allocator import return_freed_blocks
from anneal_pipeline.memory.estimate import Estimate, LighterBase, Wish, estimate, planning
from anneal_pipeline.memory.fit import PlanOf, Setting, choose
from anneal_pipeline.memory.full_batch import full_batch
from anneal_pipeline.memory.lighter import lighter_bases
from anneal_pipeline.memory.plan import MemoryPlan, size_text
from anneal_pipeline.memory.room import Room, room_on_cpu
from anneal_pipeline.memory.trace import Place, PlanUnknownError
from anneal_pipeline.memory.trial import measure_pass
from anneal_pipeline.model.four_bit import BaseForm
from anneal_pipeline.model.loading import choose_compute
from anneal_pipeline.observer import (
    EVENT_MEMORY_PLANNED,
    EVENT_WARNING,
    STAGE_MODEL,
    Observer,
)
from anneal_pipeline.training.diagnoses.facts import Planned
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.memory import free_memory, is_out_of_memory
from anneal_pipeline.training.out_of_memory import suggest_less_memory
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.resume import SavedRun

MEASURED_MARGIN = 0.05
"""Left free once a pass was measured: rows of other lengths are laid out otherwise."""

RoomOf = Callable[[Ranks], Room]


def room_of_rank(ranks: Ranks) -> Room:
    """What there is for this rank now; the ranks of a pod share its memory, each has its GPU."""
    if ranks.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(ranks.device)
        return Room(limit=free, libraries=0)
    return room_on_cpu(num_processes=ranks.world_size)


@dataclass(kw_only=True)
class MicroBatch:
    """Found by the first rank for all."""

    config: PipelineConfig
    length: int
    """Tokens of the longest sequence."""
    ranks: Ranks
    room_of: RoomOf
    observer: Observer
    is_short: bool = False
    """Whether the plan takes so much that it should not be relied on alone."""
    _found: Estimate | None = field(init=False, default=None)
    _plan_of: PlanOf = field(init=False)
    _num_plans: int = field(init=False, default=0)

    def of_run(self, saved: SavedRun) -> int | None:
        """Sequences per forward pass of the run so far; None where the job asks for others now."""
        self._be_short(saved.state.is_memory_short)
        asked = saved.config.get("training", {}).get("microBatchSize")
        if asked != self.config.training.micro_batch_size:
            return None
        rows: int | None = saved.state.facts.get("microBatchSize")
        return rows

    def plan(self, *, folder: Path, form: BaseForm) -> int:
        """Sequences per forward pass; UserError where not even one fits."""
        room = self._least_room()
        rows, is_short = self.ranks.share(lambda: self._planned(folder, form=form, room=room))
        self._be_short(is_short)
        return rows

    def planned(self) -> Planned | None:
        """What the run was planned by, after it was corrected; None where it has no plan."""
        return self.ranks.share(self._told)

    def _told(self) -> Planned | None:
        found = self._found
        if found is None:
            return None
        rows = more = found.setting.rows
        if self.ranks.device.type == "cuda":
            usual = auto_micro_batch_size(
                self.config.training.batch_size,
                world_size=self.ranks.world_size,
                at_most=AUTO_MICRO_BATCH_MAX_ON_GPU,
            )
            more = found.rows_with_room(usual=usual, share=self._wish.share, plan_of=self._plan_of)
        return Planned(num_bytes=found.needed, rows=rows, rows_with_room=more)

    def correct(self, path: LogitsPath, *, model: PeftModel) -> int | None:
        """The same after a pass was measured; None where there was no need to."""
        return self.ranks.share(lambda: self._corrected(path, model=model))

    def _be_short(self, is_short: bool) -> None:  # a fact, its meaning is its name
        self.is_short = is_short
        if is_short and self.ranks.device.type == "cpu":
            return_freed_blocks()

    def _least_room(self) -> Room:
        """That of the rank which has least: each may have a GPU of its own."""
        own = self.room_of(self.ranks)
        numbers = range(self.ranks.world_size)
        free = -1 if own.free is None else own.free
        every = self.ranks.sum([float(free) if n == self.ranks.rank else 0.0 for n in numbers])
        known = [round(number) for number in every if number >= 0]
        limit = min(known) + own.taken if known else None
        return replace(own, limit=limit)

    def _planned(self, folder: Path, *, form: BaseForm, room: Room) -> tuple[int, bool]:
        usual = self._wish_of(fills_gpu=False).setting.rows
        if room.free is None:
            return usual, False
        wish = self._wish
        place = self._place(folder, form=form)
        plan_of = planning(self.config, folder=folder, place=place)
        self._plan_of = partial(self._report_and_plan, plan_of)
        try:
            found = estimate(
                wish,
                room=room,
                plan_of=self._plan_of,
                lighter=self._lighter(folder, place=place),
            )
        except PlanUnknownError as error:
            self._warn(
                f"Going on with {usual} rows per forward pass without a plan: {error}; "
                "set training.microBatchSize lower if memory runs out"
            )
            return usual, False
        if not found.fits:
            raise UserError(DOES_NOT_FIT, found.refusal())
        self._found = found
        self._tell_plan(found)
        return found.setting.rows, found.is_short

    def _lighter(self, folder: Path, *, place: Place) -> Iterator[LighterBase]:
        device = self.ranks.device
        for base in lighter_bases(self.config, folder=folder, place=place, device=device):
            yield replace(base, plan_of=partial(self._report_and_plan, base.plan_of))

    def _report_and_plan(self, plan_of: PlanOf, setting: Setting) -> MemoryPlan:
        """Each plan takes seconds."""
        self._look_for_a_stop()
        plan = plan_of(setting)
        self._num_plans += 1
        self.observer.on_stage(STAGE_MODEL, done=self._num_plans, total=0, unit="memory plans")
        return plan

    @property
    def _wish(self) -> Wish:
        return self._wish_of(fills_gpu=self.ranks.device.type == "cuda")

    def _wish_of(self, *, fills_gpu: bool) -> Wish:
        return Wish.of(
            self.config,
            length=self.length,
            world_size=self.ranks.world_size,
            fills_gpu=fills_gpu,
        )

    def _place(self, folder: Path, *, form: BaseForm) -> Place:
        compute = choose_compute(self.config, folder=folder, device=self.ranks.device)
        on_gpu = self.ranks.device.type == "cuda"
        return Place(compute=compute, in_4_bit=form.in_4_bit, on_gpu=on_gpu)

    def _corrected(self, path: LogitsPath, *, model: PeftModel) -> int | None:
        found = self._found
        # Whether the head is what its config tells shows with real weights only: until then the
        # plan counts logits of labelled tokens alone.
        if found is None or (path.selects and not found.is_step_short):
            return None
        measured = self._measure(found.setting, path, model=model)
        if measured is None:
            return None
        setting, taken = measured
        planned = self._plan_of(setting).of_pass
        # What ran out of memory is not tried again, whatever the figures say.
        most = found.wanted if setting == found.setting else setting
        choice = choose(
            most,
            share=self._wish.share,
            may_lower=self._wish.may_lower,
            room=found.room.free,
            plan_of=lambda other: self._plan_of(other).with_pass_scaled(taken / planned),
            margin=MEASURED_MARGIN,
        )
        self.observer.on_event(
            EVENT_MEMORY_PLANNED,
            f"A pass of {_rows(setting)} took {size_text(taken)} where {size_text(planned)} were "
            f"planned: {choice.setting.rows} rows per forward pass",
            {
                "kind": "measured",
                "microBatchSize": choice.setting.rows,
                "measuredBytes": taken,
                "plannedBytes": planned,
            },
        )
        self._found = replace(found, choice=choice)
        return choice.setting.rows

    def _measure(
        self, setting: Setting, path: LogitsPath, *, model: PeftModel
    ) -> tuple[Setting, int] | None:
        """The setting that went through, and its bytes; None where these cannot be measured."""
        while True:
            taken, ran_out = None, False
            self._look_for_a_stop()
            batch = full_batch(
                rows=setting.rows,
                length=setting.length,
                num_ids=model.get_input_embeddings().weight.shape[0],
                is_packed=self.config.training.packing,
                device=self.ranks.device,
            )
            try:
                taken = measure_pass(path, batch, model=model)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if setting.rows == 1 or not self._wish.may_lower:
                    raise self._ran_out(setting) from error
                ran_out = True
            if not ran_out:
                return None if taken is None else (setting, taken)
            free_memory(self.ranks.device)
            setting = replace(setting, rows=setting.rows // 2)

    def _ran_out(self, setting: Setting) -> UserError:
        ways = suggest_less_memory(self.config, rows=setting.rows, length=setting.length)
        return UserError(
            DOES_NOT_FIT, f"Memory ran out in a measured pass of {_rows(setting)}; {ways}"
        )

    def _look_for_a_stop(self) -> None:
        if self.observer.should_stop():
            raise StopRequestedError

    def _tell_plan(self, found: Estimate) -> None:
        limit = found.room.limit or 0
        if found.setting.rows < found.wanted.rows and self.config.training.micro_batch_size:
            self._warn(
                f"training.microBatchSize {found.wanted.rows} does not fit: going on with "
                f"{found.setting.rows} rows per forward pass and more accumulation, the batch of "
                f"{self.config.training.batch_size} and the number of steps stay"
            )
        if found.is_loading_tight:
            self._warn(
                "Memory may run out while the model is loaded: that needs about "
                f"{size_text(found.plan.loading + found.room.taken)} of {size_text(limit)}; if it "
                "does, give the job more memory or hold the base in less (tuning.method qlora, "
                "tuning.quantization.computeDtype bfloat16)"
            )
        self.observer.on_event(
            EVENT_MEMORY_PLANNED,
            f"A step of {_rows(found.setting)} needs about "
            f"{size_text(found.plan.step + found.room.taken)}, loading the model "
            f"{size_text(found.plan.loading + found.room.taken)}, of {size_text(limit)}",
            {
                "kind": "planned",
                "microBatchSize": found.setting.rows,
                "tokens": found.setting.length,
                "limitBytes": limit,
                "librariesBytes": found.room.libraries,
                **{f"{name}Bytes": size for name, size in asdict(found.plan).items()},
            },
        )

    def _warn(self, message: str) -> None:
        self.observer.on_event(EVENT_WARNING, message, {"kind": "memory"})


def _rows(setting: Setting) -> str:
    rows = "1 row" if setting.rows == 1 else f"{setting.rows} rows"
    return f"{rows} of up to {setting.length} tokens"
