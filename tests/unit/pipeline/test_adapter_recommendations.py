"""Each recommendation follows from a number of the run, and usual numbers give none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.efficiency.effective_rank import RankUse
from anneal_pipeline.efficiency.gradients import GradientStatistics
from anneal_pipeline.efficiency.inventory import ADAPTERS, BASE, Inventory, Part
from anneal_pipeline.efficiency.recommendations import recommendations
from anneal_pipeline.efficiency.use import AdapterUse, KindUse, ModuleUse
from anneal_pipeline.evaluation.adapter_section import AdapterSection

RANK = 16
KINDS = ("q_proj", "k_proj", "down_proj")


def gradient(mean: float = 1e-4, *, largest: float | None = None) -> GradientStatistics:
    return GradientStatistics(
        num_samples=100, mean=mean, std=mean / 2, least=mean / 4, largest=largest or 2 * mean
    )


def module(layer: int, kind: str, *, share: float = 0.8, **changes: Any) -> ModuleUse:
    options = {"update": 1.0, "gradient": gradient(), **changes}
    return ModuleUse(
        name=f"model.layers.{layer}.{kind}",
        kind=kind,
        rank=RANK,
        use=RankUse(directions=RANK, effective=share * RANK, update_norm=options["update"]),
        gradient=options["gradient"],
        weight=0.01,
    )


def use_of(modules: list[ModuleUse], *, num_clipped: int = 0, moments: int = 16) -> AdapterUse:
    base = Part(name="all", group=BASE, total=1000, trainable=0, num_bytes=4 * moments)
    size = 4 * moments // 100
    adapters = Part(name="all", group=ADAPTERS, total=10, trainable=10, num_bytes=size)
    kinds = []
    for kind in dict.fromkeys(one.kind for one in modules):
        mine = [one for one in modules if one.kind == kind]
        share = sum(one.use.share for one in mine) / len(mine)
        largest = max((one.gradient.largest for one in mine if one.gradient), default=0.0)
        kinds.append(
            KindUse(
                kind=kind,
                num_modules=len(mine),
                rank=RANK,
                effective_rank=share * RANK,
                share=share,
                gradient=replace(mine[0].gradient, largest=largest) if mine[0].gradient else None,
                gradient_to_weight=None,
            )
        )
    return AdapterUse(
        inventory=Inventory(parts=(base, adapters), gradient_bytes=0, optimizer_bytes=moments),
        learning_rate=2e-4,
        scale=2.0,
        num_steps=100,
        num_clipped=num_clipped,
        modules=tuple(modules),
        kinds=tuple(kinds),
    )


def usual(**changes: Any) -> list[ModuleUse]:
    return [module(layer, kind, **changes) for layer in range(4) for kind in KINDS]


def config_of(**lora: Any) -> PipelineConfig:
    return PipelineConfig.parse(
        {
            "model": {"uri": "models/tiny"},
            "dataset": {"uri": "rows.jsonl"},
            "tuning": {"lora": {"rank": RANK, "alpha": 32.0, **lora}},
        }
    )


def said(use: AdapterUse, *, loss_change: float | None = -0.5, **lora: Any) -> list[str]:
    return list(recommendations(use, config_of(**lora), loss_change=loss_change))


def test_usual_numbers_give_no_recommendation() -> None:
    assert said(use_of(usual())) == []


def test_half_used_ranks_are_lowered_to_what_nine_in_ten_need() -> None:
    [text] = said(use_of(usual(share=0.3)))
    assert "4.8 directions of rank 16 are in use (30%" in text
    assert "tuning.lora.rank 8 with alpha 16" in text
    assert said(use_of(usual(share=0.5))) == []


def test_one_kind_that_needs_less_gets_a_rank_of_its_own() -> None:
    modules = [
        replace(m, use=replace(m.use, effective=3.0)) if m.kind == "k_proj" else m for m in usual()
    ]
    [text] = said(use_of(modules))
    assert "k_proj uses 3.0 of 16 directions (19%)" in text
    assert "rankPattern {k_proj: 4}" in text


def test_a_rank_in_full_use_is_raised_only_where_little_was_learnt() -> None:
    full = use_of(usual(share=0.97))
    [text] = said(full, loss_change=-0.03)
    assert "changed by -3% only: tuning.lora.rank 32 with alpha 64" in text
    assert said(full, loss_change=-0.3) == []
    assert said(full, loss_change=None) == []


def test_a_kind_that_does_not_learn_is_left_out_of_the_targets() -> None:
    modules = [replace(m, gradient=gradient(1e-7)) if m.kind == "k_proj" else m for m in usual()]
    [text] = said(use_of(modules))
    assert "No adapter on k_proj learns" in text
    assert "tuning.lora.targetModules [q_proj, down_proj]" in text


@pytest.mark.parametrize("changes", [{"gradient": gradient(1e-7)}, {"update": 0.01}])
def test_single_modules_that_do_not_learn_are_named(changes: dict[str, Any]) -> None:
    modules = [*usual()[:-1], module(3, "down_proj", **changes)]
    use = use_of(modules)
    assert [one.name for one in use.idle] == ["model.layers.3.down_proj"]
    [text] = said(use)
    assert "1 of 12 adapters hardly learn (down_proj (1)): model.layers.3.down_proj;" in text


def test_a_gradient_that_is_small_on_average_and_large_once_is_not_persistently_low() -> None:
    once = gradient(1e-7, largest=1e-4)
    assert use_of([*usual()[:-1], module(3, "down_proj", gradient=once)]).idle == ()


@pytest.mark.parametrize(
    ("modules", "loss_change"),
    [
        pytest.param(usual(share=0.3), -0.5, id="rank too high"),
        pytest.param(usual(share=0.97), -0.03, id="rank too low"),
        pytest.param(
            [
                module(n, kind, share=0.2 if kind == "k_proj" else 0.8)
                for n in (0, 1)
                for kind in KINDS
            ],
            -0.5,
            id="one kind narrow",
        ),
        pytest.param([*usual()[:-1], module(3, "down_proj", update=0.01)], -0.5, id="one idle"),
    ],
)
def test_ranks_that_are_allocated_get_no_advice_on_rank_or_pattern(
    modules: list[ModuleUse], loss_change: float
) -> None:
    use = use_of(modules)
    assert len(said(use, loss_change=loss_change)) == 1
    assert said(use, loss_change=loss_change, rankAllocation={}) == []


def test_alpha_is_lowered_where_most_steps_are_clipped_and_it_is_high() -> None:
    clipped = use_of(usual(), num_clipped=60)
    [text] = said(clipped, alpha=64.0)
    assert "60% of the steps were clipped to norm 1 and alpha is 4 times rank 16" in text
    assert "tuning.lora.alpha 32" in text
    assert said(clipped, alpha=32.0) == []
    assert said(use_of(usual(), num_clipped=50), alpha=64.0) == []


def test_alpha_is_raised_where_gradients_vanish_and_it_is_low() -> None:
    small = use_of(usual(gradient=gradient(9e-7, largest=2e-6)))
    [text] = said(small, alpha=16.0)
    assert "under 1e-06 and alpha is 1 times rank 16: tuning.lora.alpha 32" in text
    assert said(small, alpha=32.0) == []


def test_gradients_that_explode_once_are_told_by_kind() -> None:
    modules = [*usual()[:-1], module(3, "down_proj", gradient=gradient(1e-4, largest=3e-3))]
    [text] = said(use_of(modules))
    assert "Single gradients of down_proj were over 20 times their mean" in text


def test_moments_in_8_bits_are_named_where_they_save_something() -> None:
    large = use_of(usual(), moments=1 << 30)
    [text] = said(large)
    assert "26% of the base's memory" in text
    assert "pagedAdamw8bit frees about 768 MiB" in text
    assert said(use_of(usual(), moments=1 << 20)) == []


def test_the_section_has_numbers_names_and_recommendations_in_every_form() -> None:
    modules = [*usual()[:-1], module(3, "down_proj", share=0.2, gradient=gradient(1e-7))]
    section = AdapterSection.of(use_of(modules), config_of(), loss_change=None)
    [advice] = section.advice
    markdown, html = "\n".join(section.markdown()), section.html()
    for text in (
        "Parameters, base",
        "Memory beside the base",
        "Full fine-tuning",
        "moments in 16 bits, 8 bytes a parameter",
        "0.0002 at its peak, times the adapters' scale 2: 0.0004 in effect",
        "Less than half of the directions in use",
        "model.layers.3.down_proj",
        "q_proj",
    ):
        assert text in markdown
        assert text.replace("'", "&#x27;") in html
    assert advice in markdown
    data = section.to_data()
    assert data["recommendations"] == [advice]
    assert data["narrow"] == data["idle"] == ["model.layers.3.down_proj"]
    assert {m["name"] for m in data["modules"]} == {m.name for m in modules}
    nothing = AdapterSection.of(use_of(usual()), config_of(), loss_change=None)
    assert "Nothing of this asks for another setting in the next run." in "\n".join(
        nothing.markdown()
    )
