"""Ranks that fall: the schedule, the budget, and the decisions held to those of PEFT's AdaLoRA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from peft.tuners.adalora.layer import RankAllocator as PeftAllocator
from tests.unit.pipeline.families import VOCABULARY, make_family

from anneal_pipeline.config.tuning import LoraConfig
from anneal_pipeline.errors import UserError
from anneal_pipeline.model.adapters import add_adapters, trainable_parameters
from anneal_pipeline.model.targets import choose_targets
from anneal_pipeline.training.rank_allocator import (
    RankAllocator,
    describe_ranks,
    keep_best,
    make_allocator,
)
from anneal_pipeline.training.rank_schedule import RankSchedule, rank_schedule

RANK, INITIAL, NUM_ADAPTERS = 4, 6, 14
IDS = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))


def lora(**allocation: Any) -> LoraConfig:
    return LoraConfig.parse({"rank": RANK, "dropout": 0.0, "rankAllocation": allocation})


def schedule(total_steps: int, **allocation: Any) -> RankSchedule:
    found = rank_schedule(lora(**allocation), num_adapters=2, total_steps=total_steps)
    assert found is not None
    return found


class TestSchedule:
    def test_without_an_allocation_there_is_none(self) -> None:
        config = LoraConfig.parse({"rank": RANK})
        assert rank_schedule(config, num_adapters=2, total_steps=10) is None
        assert config.initial_rank == RANK

    def test_it_falls_by_a_cubic_from_all_to_the_budget_and_stays(self) -> None:
        fall = schedule(100, initialRank=20, startShare=0.1, endShare=0.5)
        assert (fall.begin, fall.end) == (10, 50)
        assert [fall.budget(step) for step in (1, 10)] == [40, 40]
        assert fall.budget(11) == int(8 + 32 * (39 / 40) ** 3)
        assert fall.budget(30) == 8 + 32 // 8
        assert [fall.budget(step) for step in (50, 51, 100)] == [8, 8, 8]
        budgets = [fall.budget(step) for step in range(1, 101)]
        assert budgets == sorted(budgets, reverse=True)

    @pytest.mark.parametrize("total_steps", range(1, 40))
    def test_every_run_reaches_the_budget_by_its_end(self, total_steps: int) -> None:
        for shares in ({}, {"startShare": 0.0, "endShare": 1.0}, {"startShare": 0.98}):
            fall = schedule(total_steps, **{"endShare": 0.99, **shares})
            assert fall.begin < fall.end <= total_steps
            assert fall.budget(total_steps) == fall.target
            assert fall.is_due(fall.end, num_kept=fall.initial)

    def test_a_share_that_is_a_whole_number_of_steps_is_not_rounded_away(self) -> None:
        fall = schedule(10, startShare=0.3, endShare=0.7)  # 0.7 * 10 is above 7 in fp64
        assert (fall.begin, fall.end) == (3, 7)

    def test_ranks_are_decided_every_so_many_steps_and_at_the_end(self) -> None:
        fall = schedule(20, startShare=0.1, endShare=0.55, everySteps=4)
        due = [step for step in range(1, 21) if fall.is_due(step, num_kept=fall.target)]
        assert due == [4, 8, 11]

    def test_a_last_decision_that_was_missed_is_made_up_for(self) -> None:
        fall = schedule(20, endShare=0.5)
        assert fall.is_due(11, num_kept=fall.target + 1)


class TestKeepBest:
    def test_the_highest_scores_are_kept_wherever_they_are(self) -> None:
        scores = {"a": torch.tensor([1.0, 5.0, 2.0]), "b": torch.tensor([4.0, 0.5])}
        kept = keep_best(scores, 3)
        assert {name: mask.tolist() for name, mask in kept.items()} == {
            "a": [False, True, True],
            "b": [True, False],
        }

    def test_equal_scores_keep_the_budget_to_the_number(self) -> None:
        """PEFT prunes by a threshold, and would prune all of these."""
        kept = keep_best({"a": torch.zeros(3), "b": torch.zeros(3)}, 4)
        assert [mask.tolist() for mask in kept.values()] == [[True] * 3, [True, False, False]]


def loss_of(model: Any) -> torch.Tensor:
    logits = model(input_ids=IDS).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS.flatten())


class Pair:
    """The same adapters on the same base: ours, and PEFT's AdaLoRA with their numbers."""

    def __init__(self, *, alpha: float = 8.0, total_steps: int = 10) -> None:
        config = lora(startShare=0.1, endShare=0.8).model_copy(update={"alpha": alpha})
        base = make_family("llama")
        targets = choose_targets(base, config)
        self.ours = add_adapters(base, config, targets=targets, seed=3)
        found = make_allocator(config, model=self.ours, total_steps=total_steps)
        assert found is not None
        self.allocator: RankAllocator = found
        self.peft_config = AdaLoraConfig(
            task_type="CAUSAL_LM",
            init_r=INITIAL,
            target_r=RANK,
            tinit=1,
            tfinal=2,
            total_step=total_steps,
            # PEFT divides by the rank it begins with, ours by the average it ends with
            lora_alpha=alpha * INITIAL / RANK,
            lora_dropout=0.0,
            target_modules=targets.modules,
            orth_reg_weight=0.5,
        )
        self.theirs = get_peft_model(make_family("llama"), self.peft_config)
        self.their_allocator: PeftAllocator = self.theirs.base_model.rankallocator
        self.draw()

    def draw(self) -> None:
        """Other numbers for both, as if trained."""
        torch.manual_seed(5)
        with torch.no_grad():
            for name in self.allocator.ranks:
                own = self.ours.base_model.model.get_submodule(name)
                theirs = self.theirs.base_model.model.get_submodule(name)
                first, second = own.lora_A["default"], own.lora_B["default"]
                for parameter in (first.weight, second.weight, first.strengths):
                    parameter.normal_(std=0.3)
                theirs.lora_A["default"].copy_(first.weight)
                theirs.lora_B["default"].copy_(second.weight)
                theirs.lora_E["default"].copy_(first.gain * first.strengths)

    def backward(self) -> None:
        for model in (self.ours, self.theirs):
            model.zero_grad(set_to_none=True)
            loss_of(model).backward()

    def kept(self) -> dict[str, list[bool]]:
        state = self.allocator.state()
        return {name: state[f"{name}|kept"].tolist() for name in self.allocator.ranks}


def _module_of(name: str) -> str:
    return name.removeprefix("base_model.model.").removesuffix(".lora_E.default")


class TestAgainstPeft:
    def test_the_adapters_are_the_same_function(self) -> None:
        pair = Pair()
        with torch.no_grad():
            ours, theirs = (m(input_ids=IDS).logits for m in (pair.ours, pair.theirs))
            with pair.ours.disable_adapter():
                assert (pair.ours(input_ids=IDS).logits - ours).abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

    def test_the_same_directions_are_pruned_from_the_same_gradients(self) -> None:
        pair = Pair()
        for step in (1, 2, 3, 5, 7, 8):
            pair.backward()
            is_settled = pair.allocator.after_update(step, has_moved=True)
            force = step == 8
            if force:  # PEFT learns nothing from the step of its last decision
                pair.their_allocator.update_ipt(pair.theirs)
            _, pattern = pair.their_allocator.update_and_allocate(
                pair.theirs, step, force_mask=force
            )
            assert is_settled == force
            if pattern is None:
                assert step == 1
                continue
            assert pair.kept() == {_module_of(name): mask for name, mask in pattern.items()}
            assert sum(pair.allocator.ranks.values()) == pair.allocator.schedule.budget(step)
        assert pair.allocator.mean_rank == RANK
        assert len(set(pair.allocator.ranks.values())) > 1, "else nothing was decided"

    def test_what_holds_directions_apart_has_the_gradients_of_peft(self) -> None:
        pair = Pair()
        pair.theirs.zero_grad(set_to_none=True)
        batch = {"input_ids": IDS, "labels": IDS}
        whole = torch.autograd.grad(
            pair.theirs(**batch).loss - pair.theirs.get_base_model()(**batch).loss,
            [p for n, p in pair.theirs.named_parameters() if "lora_A" in n or "lora_B" in n],
        )
        for parameter in trainable_parameters(pair.ours).values():
            parameter.grad = torch.zeros_like(parameter)
        pair.allocator.hold_apart()
        ours = [
            p.grad
            for n, p in pair.ours.named_parameters()
            if "lora_" in n and n.endswith(".weight") and p.requires_grad
        ]
        for got, want in zip(ours, whole, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)


class TestAllocator:
    def test_what_is_pruned_stays_zero_until_a_later_decision(self) -> None:
        pair = Pair()
        for step in (1, 2):
            pair.backward()
            pair.allocator.after_update(step, has_moved=True)
        strengths = [
            layer.strengths
            for layer in pair.ours.modules()
            if getattr(layer, "strengths", None) is not None
        ]
        pruned = [strength == 0 for strength in strengths]
        assert sum(int(mask.sum()) for mask in pruned) == (
            NUM_ADAPTERS * INITIAL - sum(pair.allocator.ranks.values())
        )
        with torch.no_grad():
            for strength in strengths:
                strength.add_(0.01)  # as Adam moves them
        pair.allocator.after_update(9, has_moved=False)
        again = [strength == 0 for strength in strengths]
        assert sum(int(mask.sum()) for mask in again) == NUM_ADAPTERS * (INITIAL - RANK)

    def test_gradients_that_overflowed_teach_nothing(self) -> None:
        pair = Pair()
        pair.backward()
        pair.allocator.after_update(1, has_moved=True)
        before = pair.allocator.state()
        for parameter in trainable_parameters(pair.ours).values():
            parameter.grad = torch.full_like(parameter, float("inf"))
        pair.allocator.after_update(1, has_moved=False)
        after = pair.allocator.state()
        assert [key for key in before if not torch.equal(before[key], after[key])] == []

    def test_its_state_makes_another_one_decide_alike(self) -> None:
        first, second = Pair(), Pair()
        for step in (1, 2, 3):
            first.backward()
            first.allocator.after_update(step, has_moved=True)
        second.allocator.load_state(first.allocator.state())
        assert second.kept() == first.kept()
        for pair in (first, second):
            pair.draw()
            pair.backward()
            pair.allocator.after_update(8, has_moved=True)
        assert second.kept() == first.kept()
        assert set(first.allocator.state()) == {f"{name}|kept" for name in first.allocator.ranks}

    def test_ranks_are_told_by_kind_of_module(self) -> None:
        ranks = {"layers.0.q_proj": 3, "layers.1.q_proj": 6, "layers.0.up_proj": 0}
        assert describe_ranks(ranks) == (
            "3.0 on average, from 0 to 6 (q_proj 4.5, up_proj 0.0); modules with 0 learn nothing "
            "more"
        )


class TestModel:
    def test_it_begins_as_the_base_with_directions_that_are_orthonormal(self) -> None:
        config = lora()
        model = make_family("llama")
        with torch.no_grad():
            want = model(input_ids=IDS).logits
        tuned = add_adapters(model, config, targets=choose_targets(model, config), seed=3)
        with torch.no_grad():
            assert torch.equal(tuned(input_ids=IDS).logits, want)
        for name, parameter in trainable_parameters(tuned).items():
            if name.endswith("weight"):
                rows = parameter if "lora_A" in name else parameter.t()
                torch.testing.assert_close(rows @ rows.t(), torch.eye(INITIAL))

    @pytest.mark.parametrize("use_rslora", [False, True])
    def test_the_scale_is_that_of_the_average_rank(self, use_rslora: bool) -> None:
        config = LoraConfig.parse(
            {"rank": 4, "alpha": 12.0, "rankAllocation": {}, "useRslora": use_rslora}
        )
        model = make_family("llama")
        tuned = add_adapters(model, config, targets=choose_targets(model, config), seed=3)
        layer = tuned.base_model.model.model.layers[0].self_attn.q_proj
        assert layer.scaling["default"] == pytest.approx(12.0 / (2.0 if use_rslora else 4.0))

    def test_a_weight_that_has_no_such_rank_is_named(self) -> None:
        config = LoraConfig.parse({"rank": 12, "rankAllocation": {}})
        with pytest.raises(UserError, match=r"k_proj rank 18, .*initialRank to 16 and rank below"):
            choose_targets(make_family("llama"), config)

    def test_experts_get_no_adapter(self) -> None:
        chosen = choose_targets(make_family("mixtral"), lora())
        assert chosen.parameters == []
        assert len(chosen.left_out) == 4
        named = lora().model_copy(update={"target_modules": ("gate_up_proj",)})
        with pytest.raises(UserError, match=r"no adapter with tuning.lora.rankAllocation; remove"):
            choose_targets(make_family("mixtral"), named)
