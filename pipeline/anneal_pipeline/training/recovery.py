"""What the loop does when the numbers go wrong, by `training.recovery`; every action is an event.

A loss that is no number: the rows that cause it alone are left out from then on; where none stands
out the whole step is left out and the learning rate halved. Damaged weights or a loss that ran
away: the `way_back`, with half the learning rate. Gradients that overflow in float16: the step
moves nothing and the loss scale is halved; at its least they are no numbers as any. After
MAX_INTERVENTIONS halvings, or too many rows left out, the run fails and says why. All decisions
follow from numbers that every rank has or was asked for, so that all ranks take the same, and a
resumed run repeats them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.data.prepare import PreparedData
from anneal_pipeline.errors import LOSS_DIVERGED, NON_FINITE_LOSS, TrainingFailedError
from anneal_pipeline.observer import EVENT_OVERFLOW, EVENT_RECOVERED
from anneal_pipeline.training.batches import Collator
from anneal_pipeline.training.diagnoses.gradients import OVERFLOWS_MANY
from anneal_pipeline.training.diagnoses.losses import HALF_FIX
from anneal_pipeline.training.events import Events
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.optimizer import AdapterOptimizer, StepOutcome
from anneal_pipeline.training.ranks import Ranks
from anneal_pipeline.training.row_places import row_places
from anneal_pipeline.training.runaway import WINDOW, has_run_away, means
from anneal_pipeline.training.state import RunState
from anneal_pipeline.training.way_back import WayBack

RATE_CUT = 0.5
MAX_INTERVENTIONS = 3
"""Halvings of the learning rate: an eighth of it is the least that is tried."""
SKIPPED_MIN, SKIPPED_SHARE = 8, 0.05
"""Rows that may be left out for themselves: this many or this share, whichever is more."""
NAMED_MAX = 10
"""Rows named in one message."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    config: PipelineConfig
    data: PreparedData
    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: AdapterOptimizer
    path: LogitsPath
    collate: Collator
    way_back: WayBack
    events: Events
    ranks: Ranks

    def after_non_finite(
        self, state: RunState, *, rows: Sequence[int], outcome: StepOutcome
    ) -> RunState | None:
        """Leave rows out of the step, or go back; the state gone back to, or None: try again."""
        facts = (
            f"Loss is {outcome.loss:g} and gradient norm {outcome.grad_norm:g} at step "
            f"{state.step + 1} with learning rate {self.rate(state):g}"
        )
        if self.config.training.recovery.nan != "recover":
            raise TrainingFailedError(
                NON_FINITE_LOSS,
                f"{facts}; lower training.learningRate, or look for damaged rows"
                f"{self._or_half_fix}",
            )
        if not self.weights_are_finite():
            return self.go_back(
                state, reason=NON_FINITE_LOSS, why=f"{facts}, and adapter weights are no numbers"
            )
        guilty = self._guilty_rows(rows, num_trained_tokens=outcome.num_trained_tokens)
        if guilty and len(guilty) < len(rows):
            self._leave_out(state, rows=guilty, why=facts, end="these rows cause it alone")
        elif self._is_half and math.isfinite(outcome.loss):
            raise TrainingFailedError(
                NON_FINITE_LOSS,
                f"{facts}, in float16 with a loss scale that has fallen to "
                f"{self.optimizer.scaler.get_scale():g}, and no row stands out; {HALF_FIX}",
            )
        else:
            self._lower_rate(state, reason=NON_FINITE_LOSS, why=facts)
            state.num_skipped_with_steps += len(rows)
            self._leave_out(state, rows=rows, why=facts, end="the learning rate is halved")
        return None

    def after_overflow(self, state: RunState) -> None:
        """Say that the step just done moved nothing, and keep it for the diagnoses."""
        state.overflows = [*state.overflows, state.step][-OVERFLOWS_MANY:]
        scale = self.optimizer.scaler.get_scale()
        self.events.tell(
            EVENT_OVERFLOW,
            f"Step {state.step} moves nothing: its gradients overflow in float16; the loss scale "
            f"is halved to {scale:g}",
            step=state.step,
            scale=scale,
        )

    def after_step(self, state: RunState, *, outcome: StepOutcome) -> RunState | None:
        """Look at what a step has done; the state gone back to, or None: all is well."""
        step, modes = state.step, self.config.training.recovery
        losses = [loss for _, loss in state.losses]
        if not self.weights_are_finite():
            reason, mode = NON_FINITE_LOSS, modes.nan
            why = (
                f"Adapter weights are no numbers after step {step}, whose gradient norm was "
                f"{outcome.grad_norm:g}"
            )
        elif has_run_away(losses):
            reason, mode = LOSS_DIVERGED, modes.divergence
            series = means(losses)
            why = (
                f"The loss ran away: its mean over {WINDOW} steps is {series[-1]:.3f} at step "
                f"{step}, after {min(series):.3f} at its lowest"
            )
        else:
            return None
        if mode != "recover":
            raise TrainingFailedError(
                reason, f"{why}; lower training.learningRate from {self.rate(state):g}"
            )
        return self.go_back(state, reason=reason, why=why)

    def pass_over(self, state: RunState, *, num_sequences: int) -> bool:
        """A step without a trained token moves nothing, but it is a step; True if ranks settle."""
        state.step += 1
        is_settled = self.optimizer.pass_over(step=state.step)
        self._tell(
            f"Step {state.step} trains nothing: none of its {num_sequences} rows has a token to "
            "train",
            kind="empty",
            step=state.step,
        )
        return is_settled

    @property
    def _is_half(self) -> bool:
        return bool(self.optimizer.scaler.is_enabled())

    @property
    def _or_half_fix(self) -> str:
        """Activations that overflow in float16 are no numbers before any scale is applied."""
        return f"; or {HALF_FIX}" if self._is_half else ""

    def rate(self, state: RunState) -> float:
        """The peak learning rate as it stands."""
        return self.config.training.learning_rate * state.rate_factor

    def weights_are_finite(self) -> bool:
        """On every rank: one whose memory is damaged takes the others back with it."""
        norm = torch.nn.utils.get_total_norm(list(self.parameters.values()))
        return not self.ranks.any(not torch.isfinite(norm))

    def _guilty_rows(self, rows: Sequence[int], *, num_trained_tokens: int) -> list[int]:
        """The rows that give no number by themselves, weighed as in their step.

        The ranks share the work.
        """
        flags = [0.0] * len(rows)
        divisor = max(1, num_trained_tokens)

        def weigh(losses: torch.Tensor) -> torch.Tensor:
            weighed: torch.Tensor = self.optimizer.scaler.scale(losses / divisor)
            return weighed

        with self.ranks.together():
            for index in self.ranks.share_of(range(len(rows))):
                batch = self.collate([(rows[index],)]).to(self.ranks.device)
                loss = torch.tensor(self.path.backward(batch, weigh=weigh))
                grads = [p.grad for p in self.parameters.values() if p.grad is not None]
                norm = torch.nn.utils.get_total_norm(grads)
                flags[index] = float(not (torch.isfinite(loss) and torch.isfinite(norm)))
                self.optimizer.drop()
        return [row for row, flag in zip(rows, self.ranks.sum(flags), strict=True) if flag]

    def _leave_out(self, state: RunState, *, rows: Sequence[int], why: str, end: str) -> None:
        state.skipped_rows = [*state.skipped_rows, *rows]
        places = row_places(self.data.folder / "train", rows=rows[:NAMED_MAX])
        more = f" and {len(rows) - NAMED_MAX} more" if len(rows) > NAMED_MAX else ""
        message = f"{why}; left out from now on: {', '.join(places)}{more} ({end})"
        allowed = max(SKIPPED_MIN, int(SKIPPED_SHARE * len(self.data.train)))
        # Whole steps are limited by how often the rate may be halved, however many rows they have.
        guilty = len(state.skipped_rows) - state.num_skipped_with_steps
        if guilty > allowed:
            raise TrainingFailedError(
                NON_FINITE_LOSS,
                f"{message}; that makes {guilty} rows, more than the {allowed} "
                "that may be left out: look at these rows, or lower training.learningRate",
            )
        self._tell(message, kind="nan", step=state.step + 1, rows=places, rate=self.rate(state))

    def _lower_rate(self, state: RunState, *, reason: str, why: str) -> None:
        if state.interventions >= MAX_INTERVENTIONS:
            raise TrainingFailedError(
                reason,
                f"{why}; the learning rate was halved {state.interventions} times already and it "
                f"did not help: start with training.learningRate below {self.rate(state):g}, and "
                f"look at the rows the events name{self._or_half_fix}",
            )
        state.interventions += 1
        state.rate_factor *= RATE_CUT

    def go_back(self, state: RunState, *, reason: str, why: str) -> RunState:
        """Load the newest healthy state from before, with half the learning rate."""
        self._lower_rate(state, reason=reason, why=why)
        restored = self.way_back.take(state)
        if restored is None:
            raise TrainingFailedError(
                reason,
                f"{why}; no checkpoint from before it is left to go back to: lower "
                "training.learningRate and start anew",
            )
        self._tell(
            f"{why}; back to step {restored.step} with learning rate {self.rate(restored):g}",
            kind="divergence" if reason == LOSS_DIVERGED else "nan",
            step=state.step,
            backTo=restored.step,
            rate=self.rate(restored),
        )
        return restored

    def _tell(self, message: str, **fields: Any) -> None:
        self.events.tell(EVENT_RECOVERED, message, **fields)
