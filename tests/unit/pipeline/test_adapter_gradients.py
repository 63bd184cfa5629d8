"""Gradients of the adapters: read without being changed, and kept as sums."""

from __future__ import annotations

from statistics import fmean, pstdev

import pytest
import torch
from tests.unit.pipeline.adapted import adapted, backward

from anneal_pipeline.efficiency.adapters import list_adapters
from anneal_pipeline.efficiency.gradients import GradientStatistics, GradientWatch
from anneal_pipeline.model.adapters import trainable_parameters


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_sample_is_the_root_mean_square_before_clipping(family: str) -> None:
    model = adapted(family)
    backward(model)
    adapters = list_adapters(model)
    want = {
        adapter.name: float(
            torch.cat([p.grad.flatten() for p in adapter.parameters if p.grad is not None])
            .square()
            .mean()
            .sqrt()
        )
        for adapter in adapters
    }
    norm = float(torch.nn.utils.clip_grad_norm_(trainable_parameters(model).values(), 1e-3))
    clipped = {name: p.grad.clone() for name, p in trainable_parameters(model).items()}
    found = GradientWatch(adapters, max_norm=1e-3).samples(grad_norm=norm)
    assert found == pytest.approx(want, rel=1e-4)
    assert all(torch.equal(p.grad, clipped[n]) for n, p in trainable_parameters(model).items())


def test_magnitudes_of_dora_are_read_too() -> None:
    adapter = list_adapters(adapted(useDora=True))[0]
    assert len(adapter.parameters) == 3


def test_where_no_gradient_came_it_is_zero() -> None:
    adapters = list_adapters(adapted())
    found = GradientWatch(adapters, max_norm=1.0).samples(grad_norm=0.0)
    assert set(found.values()) == {0.0}
    assert len(found) == len(adapters)


def test_a_model_without_anything_to_train_is_refused() -> None:
    model = adapted()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="No trainable parameters found"):
        GradientWatch(list_adapters(model), max_norm=1.0)


def test_sums_give_the_statistics_of_all_steps_by_module_and_together() -> None:
    adapter, other = list_adapters(adapted())[:2]
    watch = GradientWatch([adapter, other], max_norm=1e9)
    sums: dict[str, list[float]] = {}
    seen: dict[str, list[float]] = {adapter.name: [], other.name: []}
    for step in range(1, 6):
        for number, one in enumerate((adapter, other), start=1):
            for parameter in one.parameters:
                parameter.grad = torch.full_like(parameter, float(step * number))
            seen[one.name].append(float(step * number))
        sums = watch.added(sums, grad_norm=1.0)
    for name, values in seen.items():
        found = GradientStatistics.of([sums[name]])
        assert found is not None
        assert found.num_samples == 5
        assert (found.least, found.largest) == pytest.approx((values[0], values[-1]), rel=1e-6)
        assert found.mean == pytest.approx(fmean(values), rel=1e-6)
        assert found.std == pytest.approx(pstdev(values), rel=1e-6)
    together = GradientStatistics.of(sums.values())
    everything = [value for values in seen.values() for value in values]
    assert together is not None
    assert together.mean == pytest.approx(fmean(everything), rel=1e-6)
    assert together.std == pytest.approx(pstdev(everything), rel=1e-6)
    assert GradientStatistics.of([[0.0]]) is None
