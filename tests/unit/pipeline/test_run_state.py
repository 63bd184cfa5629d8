"""What a checkpoint keeps of the way a run has come."""

from pathlib import Path

import torch

from anneal_pipeline.training.runaway import LOOK_BACK
from anneal_pipeline.training.state import CURVE_POINTS, RunState, read_state, write_state


def run_of(steps: int) -> RunState:
    state = RunState()
    for step in range(1, steps + 1):
        state.step = step
        state.add_loss(float(step), total_steps=steps)
    return state


def test_losses_kept_do_not_grow_with_the_run_and_their_curve_spans_it(tmp_path: Path) -> None:
    state = run_of(4 * CURVE_POINTS)
    assert state.losses == [
        (step, float(step))
        for step in range(4 * CURVE_POINTS - LOOK_BACK + 1, 4 * CURVE_POINTS + 1)
    ]
    assert len(state.curve) == CURVE_POINTS
    assert state.curve[:2] == [(4, 2.5), (8, 6.5)]
    weight = torch.nn.Parameter(torch.zeros(1))
    write_state(
        tmp_path / "saved",
        state=state,
        parameters={"weight": weight},
        optimizer=torch.optim.AdamW([weight]),
        observer_state={},
        config={},
    )
    assert read_state(tmp_path / "saved") == state


def test_a_short_run_has_every_step_on_its_curve() -> None:
    state = run_of(CURVE_POINTS // 2)
    assert state.curve == state.losses
