"""What the report says of the model itself, measured after training and told to the observer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from peft import PeftModel
from safetensors import SafetensorError

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.efficiency.rounding import Rounding, measure_rounding
from anneal_pipeline.efficiency.use import AdapterUse, measure_use
from anneal_pipeline.errors import StopRequestedError
from anneal_pipeline.evaluation.adapter_section import AdapterSection
from anneal_pipeline.observer import (
    EVENT_ADAPTERS_MEASURED,
    EVENT_ROUNDING_MEASURED,
    EVENT_WARNING,
    STAGE_EVALUATION,
    Observer,
)
from anneal_pipeline.training.state import RunState

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Sections:
    config: PipelineConfig
    model: PeftModel
    model_dir: Path
    """The files of its base."""
    observer: Observer

    def adapters(self, state: RunState, *, loss_change: float | None) -> AdapterSection | None:
        """How well the adapters were used, told to the observer too; None if not to be measured.

        `loss_change` is that of held-out rows from base to tuned, as a share. Raises
        StopRequestedError between two adapters.
        """

        def measure() -> AdapterUse:
            return measure_use(
                self.model,
                self.config,
                gradients=state.gradients,
                num_clipped=state.num_clipped,
                on_adapter=partial(self._tell, unit="adapters"),
            )

        use = self._measured(measure, what="the adapters")
        if use is None:
            return None
        section = AdapterSection.of(use, self.config, loss_change=loss_change)
        self.observer.on_event(
            EVENT_ADAPTERS_MEASURED,
            ". ".join((use.summary(), *section.advice)),
            {"step": state.step, "metrics": use.metrics()},
        )
        return section

    def rounding(self, state: RunState) -> Rounding | None:
        """What the base lost in 4 bits, told to the observer too; None if it is in none.

        Raises StopRequestedError between two layers.
        """

        def measure() -> Rounding | None:
            return measure_rounding(
                self.model, self.model_dir, on_layer=partial(self._tell, unit="layers")
            )

        rounding = self._measured(measure, what="the 4-bit base")
        if rounding is not None:
            self.observer.on_event(
                EVENT_ROUNDING_MEASURED,
                rounding.summary(),
                {"step": state.step, "metrics": rounding.metrics()},
            )
        return rounding

    def _measured(self, measure: Callable[[], _T], *, what: str) -> _T | None:
        """None, and a warning, where it fails: no report is worth a trained run."""
        try:
            return measure()
        # torch.linalg.LinAlgError is a RuntimeError
        except (RuntimeError, MemoryError, OSError, SafetensorError) as error:
            self.observer.on_event(
                EVENT_WARNING,
                f"The evaluation report has no section on {what}, because measuring failed "
                f"({str(error) or type(error).__name__}); the adapter itself is exported",
                {"stage": STAGE_EVALUATION},
            )
            return None

    def _tell(self, done: int, total: int, *, unit: str) -> None:
        self.observer.on_stage(STAGE_EVALUATION, done=done, total=total, unit=unit)
        if self.observer.should_stop():
            raise StopRequestedError
