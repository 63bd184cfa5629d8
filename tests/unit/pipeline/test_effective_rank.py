"""How many directions an adapter uses, without its full product ever being made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.pipeline.adapted import adapted
from tests.unit.pipeline.families import FAMILIES
from torch._subclasses.fake_tensor import FakeTensorMode

from anneal_pipeline.efficiency.adapters import Adapter, list_adapters
from anneal_pipeline.efficiency.effective_rank import effective_rank, rank_use, singular_values
from anneal_pipeline.model.beginning import TRAINED


def random_matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("out", "rank", "into"), [(40, 8, 30), (5, 8, 30), (40, 8, 5)])
def test_singular_values_are_those_of_the_product(out: int, rank: int, into: int) -> None:
    b, a = random_matrix(3, out, rank), random_matrix(3, rank, into, seed=1)
    found = singular_values(b, a)
    want = torch.linalg.svdvals(b @ a)[:, : found.shape[-1]]
    assert torch.allclose(found, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("values", "want"),
    [
        pytest.param([3.0, 3.0, 3.0, 3.0], 4.0, id="equal ones all count"),
        pytest.param([5.0, 0.0, 0.0, 0.0], 1.0, id="one direction"),
        pytest.param([0.0, 0.0, 0.0, 0.0], 0.0, id="nothing"),
        pytest.param([7.0, 7.0, 1e-9, 0.0], 2.0, id="noise does not count"),
    ],
)
def test_the_effective_rank_counts_what_has_weight(values: list[float], want: float) -> None:
    found = float(effective_rank(torch.tensor(values, dtype=torch.float64)))
    assert found == pytest.approx(want, abs=1e-6)


def delta(adapter: Adapter) -> torch.Tensor:
    """What PEFT adds to the weight, in its layout."""
    made: torch.Tensor = adapter.layer.get_delta_weight(TRAINED)  # type: ignore[operator]
    return made.detach().double()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"useRslora": True}])
def test_factors_give_what_peft_adds_in_every_family(family: str, options: dict[str, Any]) -> None:
    for adapter in list_adapters(adapted(family, **options)):
        b, a = adapter.factors()
        product, added = adapter.scale * (b @ a), delta(adapter).reshape(adapter.num_experts, -1)
        norms = product.flatten(1).norm(dim=1)
        assert torch.allclose(norms, added.norm(dim=1), rtol=1e-5), adapter.name
        use = rank_use(adapter)
        assert use.update_norm == pytest.approx(float(added.norm()), rel=1e-5)
        assert 1 < use.effective <= use.directions == adapter.rank


def test_names_are_those_of_the_base_and_experts_have_their_parameters() -> None:
    names = {adapter.name for adapter in list_adapters(adapted("mixtral"))}
    assert "model.layers.0.self_attn.q_proj" in names
    assert {
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.experts.down_proj",
    } < names
    kinds = {adapter.kind for adapter in list_adapters(adapted("mixtral"))}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}


def test_an_adapter_of_rank_one_is_found_out() -> None:
    adapter = next(iter(list_adapters(adapted())))
    b = adapter.layer.lora_B[TRAINED].weight
    with torch.no_grad():
        b.copy_(b[:, :1].expand_as(b))
    assert rank_use(adapter).effective == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        b.zero_()
    assert rank_use(adapter).share == 0.0


def test_each_module_has_its_own_rank() -> None:
    found = {
        a.kind: rank_use(a).directions for a in list_adapters(adapted(rankPattern={"q_proj": 2}))
    }
    assert (found["q_proj"], found["v_proj"]) == (2, 4)


def test_what_pissa_began_at_is_no_use() -> None:
    """Both adapters add nothing before training, and one direction after a change in one."""
    adapter = next(iter(list_adapters(adapted(initialization="pissa"))))
    trained, beginning = (
        adapter.layer.lora_B[TRAINED].weight,
        adapter.layer.lora_B["beginning"].weight,
    )
    with torch.no_grad():
        trained.copy_(-beginning)
    assert rank_use(adapter).effective == 0.0
    with torch.no_grad():
        trained[:, 1] += 0.01
    use = rank_use(adapter)
    assert use.directions == 2 * adapter.rank
    assert use.effective == pytest.approx(1.0, abs=1e-3)


def test_adapters_on_a_gpu_are_measured_on_the_cpu() -> None:
    """Their memory is that of training, and singular values are small work."""
    with FakeTensorMode():
        layer = torch.nn.Module()
        layer.lora_A = torch.nn.ModuleDict({TRAINED: torch.nn.Linear(8, 2, device="cuda")})
        layer.lora_B = torch.nn.ModuleDict({TRAINED: torch.nn.Linear(2, 8, device="cuda")})
        adapter = Adapter(name="q_proj", layer=layer, num_experts=1)  # type: ignore[arg-type]
        assert {factor.device.type for factor in adapter.factors()} == {"cpu"}
