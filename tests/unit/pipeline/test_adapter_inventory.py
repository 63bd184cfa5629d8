"""What a model is made of adds up to the model, in every family."""

from __future__ import annotations

import pytest
from tests.unit.pipeline.adapted import adapted
from tests.unit.pipeline.families import FAMILIES, make_family

from anneal_pipeline.config.tuning import LoraConfig
from anneal_pipeline.efficiency.inventory import (
    ADAPTERS,
    BASE,
    EMBEDDINGS,
    HEAD,
    OTHER,
    TRANSFORMER,
    Inventory,
    Part,
    take_inventory,
)
from anneal_pipeline.model.adapters import count_parameters
from anneal_pipeline.model.targets import choose_targets


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_add_up_to_the_model_and_adapters_to_the_layers_they_sit_on(family: str) -> None:
    model, base = adapted(family), make_family(family)
    found = take_inventory(model, moments_in_8_bits=False)
    trainable, total = count_parameters(model)
    assert (found.trainable, found.total) == (trainable, total)
    assert found.group(BASE).total == sum(p.numel() for p in base.parameters())
    assert found.group(BASE).trainable == 0
    layers = choose_targets(base, LoraConfig.parse({"rank": 4, "dropout": 0.0})).layers
    sizes = {part.name: part.trainable for part in found.parts if part.group == ADAPTERS}
    assert sizes == {
        "adapters A": sum(4 * layer.in_features * max(1, layer.num_experts) for layer in layers),
        "adapters B": sum(4 * layer.out_features * max(1, layer.num_experts) for layer in layers),
    }
    assert found.gradient_bytes == 4 * trainable
    assert found.optimizer_bytes == 8 * trainable


def test_embeddings_layers_and_head_stand_apart() -> None:
    found = take_inventory(adapted("llama"), moments_in_8_bits=False)
    sizes = {part.name: part.total for part in found.parts if part.group == BASE}
    base = make_family("llama")
    assert sizes[EMBEDDINGS] == sizes[HEAD] == 64 * 32
    assert sizes[TRANSFORMER] == sum(p.numel() for p in base.parameters()) - 2 * 64 * 32


def test_a_tied_head_is_counted_once_with_the_embeddings() -> None:
    found = take_inventory(adapted("gpt2"), moments_in_8_bits=False)
    assert HEAD not in {part.name for part in found.parts}


def test_what_is_trained_beside_the_adapters_is_a_group_of_its_own() -> None:
    found = take_inventory(adapted("llama", modulesToSave=["lm_head"]), moments_in_8_bits=False)
    other = found.group(OTHER)
    assert (other.total, other.trainable, other.frozen) == (64 * 32, 64 * 32, 0)
    assert found.group(BASE).frozen == found.group(BASE).total


def test_magnitudes_of_dora_and_trained_biases_are_counted() -> None:
    found = take_inventory(adapted("llama", useDora=True), moments_in_8_bits=False)
    sizes = {part.name: part.trainable for part in found.parts}
    outputs = sum(
        layer.out_features for layer in choose_targets(make_family("llama"), LoraConfig()).layers
    )
    assert sizes["adapter magnitudes"] == outputs
    biased = take_inventory(adapted("gpt2", bias="all"), moments_in_8_bits=False)
    assert 0 < biased.group(BASE).trainable < biased.group(BASE).total


def test_moments_in_8_bits_are_smaller_where_matrices_are_large() -> None:
    model = adapted("mixtral", rank=16)
    whole, small = (
        take_inventory(model, moments_in_8_bits=in_8_bits).optimizer_bytes
        for in_8_bits in (False, True)
    )
    assert small < whole


def test_the_worked_example_of_the_specification() -> None:
    """7.2 billion numbers and 58 million of adapters in two bytes each, moments as well (LA3)."""
    parts = (
        Part(name="all", group=BASE, total=7_200_000_000, trainable=0, num_bytes=14_400_000_000),
        Part(
            name="all",
            group=ADAPTERS,
            total=58_000_000,
            trainable=58_000_000,
            num_bytes=116_000_000,
        ),
    )
    found = Inventory(parts=parts, gradient_bytes=0, optimizer_bytes=232_000_000)
    assert round(100 * found.trainable_share, 1) == 0.8
    assert round(100 * found.group(BASE).total / found.total, 1) == 99.2
    assert found.added_bytes == 348_000_000
    assert found.overhead == pytest.approx(0.024, abs=0.001)
    assert found.full_tuning_bytes == 57_600_000_000
