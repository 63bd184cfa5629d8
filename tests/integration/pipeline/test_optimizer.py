"""What a step moves: by the rate, by the ratio, by the decay, or nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from tests.integration.pipeline.unequal_rows import ALONE, NUM_ROWS

from anneal_pipeline.config.training import TrainingConfig
from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.model.loading import TunedModel
from anneal_pipeline.training.batches import collate
from anneal_pipeline.training.loss import LogitsPath
from anneal_pipeline.training.optimizer import AdapterOptimizer
from anneal_pipeline.training.state import RunState, load_moments, load_weights, write_state


@pytest.mark.parametrize("ratio", [None, 16.0])
def test_lora_plus_moves_b_by_the_ratio_and_saved_moments_go_back_to_their_owners(
    tuned: TunedModel,
    adapters: dict[str, torch.nn.Parameter],
    split: PreparedSplit,
    tmp_path: Path,
    ratio: float | None,
) -> None:
    """Pitfall: optimiser param-group order changes with modules_to_save."""
    config = TrainingConfig(lora_plus_ratio=ratio, weight_decay=0.0)
    path = LogitsPath(tuned.model)
    batch = collate(split, range(NUM_ROWS), pad_id=0, train_all=False)
    make = partial(AdapterOptimizer, config, model=tuned.model, compute=torch.float32, ranks=ALONE)
    optimizer = make()
    start = {name: p.detach().clone() for name, p in adapters.items()}
    optimizer.step(path, [batch], learning_rate=1e-3, step=1)
    for name, parameter in adapters.items():
        moved = (parameter.detach() - start[name]).abs()
        want = 1e-3 * (ratio or 1.0 if "lora_B" in name else 1.0)
        # the first step of Adam is the rate, wherever there is a gradient
        assert float(moved.max()) == pytest.approx(want, rel=1e-2), name
    folder = tmp_path / "state"
    write_state(
        folder,
        state=RunState(),
        parameters=adapters,
        optimizer=optimizer.adamw,
        observer_state={},
        config={},
    )
    results = []
    for attempt in (optimizer, make()):
        load_weights(folder, adapters)
        load_moments(folder, adapters, attempt.adamw)
        attempt.step(path, [batch], learning_rate=1e-3, step=2)
        results.append({name: p.detach().clone() for name, p in adapters.items()})
    assert [n for n in results[0] if not torch.equal(results[0][n], results[1][n])] == []


def test_a_step_that_is_no_number_moves_nothing(
    tuned: TunedModel,
    adapters: dict[str, torch.nn.Parameter],
    split: PreparedSplit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = collate(split, range(NUM_ROWS), pad_id=0, train_all=False)
    optimizer = AdapterOptimizer(
        TrainingConfig(), model=tuned.model, compute=torch.float32, ranks=ALONE
    )
    first = next(iter(adapters.values()))
    monkeypatch.setattr(first, "data", first.detach().clone().fill_(float("nan")))
    start = {name: p.detach().clone() for name, p in adapters.items()}
    outcome = optimizer.step(LogitsPath(tuned.model), [batch], learning_rate=1e-3, step=1)
    assert not outcome.is_finite
    for name, parameter in adapters.items():
        torch.testing.assert_close(parameter, start[name], rtol=0, atol=0, equal_nan=True)
        assert parameter.grad is None


def test_weight_decay_takes_its_share_of_the_rate_from_every_weight(
    tuned: TunedModel, adapters: dict[str, torch.nn.Parameter], split: PreparedSplit
) -> None:
    rate, decay = 1e-2, 0.5
    path = LogitsPath(tuned.model)
    batch = collate(split, range(NUM_ROWS), pad_id=0, train_all=False)
    start = {name: p.detach().clone() for name, p in adapters.items()}
    after: list[dict[str, torch.Tensor]] = []
    for config in (TrainingConfig(weight_decay=0.0), TrainingConfig(weight_decay=decay)):
        for name, parameter in adapters.items():
            parameter.data.copy_(start[name])
        optimizer = AdapterOptimizer(config, model=tuned.model, compute=torch.float32, ranks=ALONE)
        optimizer.step(path, [batch], learning_rate=rate, step=1)
        after.append({name: p.detach().clone() for name, p in adapters.items()})
    whole, decayed = after
    for name, weight in start.items():
        torch.testing.assert_close(
            whole[name] - decayed[name], rate * decay * weight, rtol=1e-3, atol=1e-7
        )
