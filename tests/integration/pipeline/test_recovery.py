"""What the loop does when a step goes wrong, and when training no longer helps."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaModel

from anneal_pipeline.errors import UserError

QUIET = {"numGenerations": 0, "baseline": False}
ALL_TRAIN = {"split": {"train": 1.0, "validation": 0.0}}


def config_of(kit: ModuleType, **sections: Any) -> Any:
    data = {
        "dataset": ALL_TRAIN,
        "tuning": {"method": "lora", "lora": {"rank": 4, "dropout": 0.1}},
        "export": {"verify": False},
        **sections,
    }
    data["evaluation"] = {**QUIET, **data.get("evaluation", {})}
    return kit.make_config(**data)


@pytest.fixture(scope="module")
def rows(kit: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = kit.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", kit.sums(30))
    return path


def adapter(root: Path) -> bytes:
    return (root / "out" / "artifacts" / "adapter" / "adapter_model.safetensors").read_bytes()


def told(observer: Any, name: str = "recovered") -> list[str]:
    return [message for event, message in observer.events if event == name]


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the real allocator refuse when more rows than so many go through the model."""
    forward = LlamaModel.forward

    def limit(*, training: int, evaluation: int = 1000) -> None:
        def hungry(self: Any, input_ids: torch.Tensor, **options: Any) -> Any:
            if len(input_ids) > (training if self.training else evaluation):
                torch.empty(1 << 50)
            return forward(self, input_ids=input_ids, **options)

        monkeypatch.setattr(LlamaModel, "forward", hungry)

    return limit


class TestMemory:
    """Pitfall: auto_find_batch_size changes effective batch and learning rate."""

    def test_half_the_micro_batch_takes_the_same_steps_to_the_same_adapter(
        self,
        kit: ModuleType,
        model_dir: Path,
        rows: Path,
        tmp_path: Path,
        little_memory: Callable[..., None],
    ) -> None:
        options = {"model_dir": model_dir, "rows": rows}
        section = {"batchSize": 8, "maxSteps": 5}
        want = kit.RecordingObserver()
        small = config_of(kit, training={**section, "microBatchSize": 2})
        kit.run(tmp_path / "small", small, observer=want, **options)
        little_memory(training=2)
        config = config_of(kit, training=section)
        seen, events = [], []
        for attempt, stop_at in ((1, 3), (2, None)):
            observer = kit.RecordingObserver(stop_at=stop_at)
            kit.run(tmp_path / "big", config, attempt=attempt, observer=observer, **options)
            seen += [(report.step, report.learning_rate, report.loss) for report in observer.steps]
            events.append(told(observer))
        assert seen == [(report.step, report.learning_rate, report.loss) for report in want.steps]
        assert adapter(tmp_path / "big") == adapter(tmp_path / "small")
        assert [text.split(";")[1].split(" and ")[0] for text in events[0]] == [
            " going on with 4 rows",
            " going on with 2 rows",
        ]
        assert events[1] == [], "a resumed run remembers"

    def test_an_evaluation_halves_its_own_batch_only(
        self,
        kit: ModuleType,
        model_dir: Path,
        rows: Path,
        tmp_path: Path,
        little_memory: Callable[..., None],
    ) -> None:
        config = config_of(
            kit,
            dataset={"split": {"train": 0.6, "validation": 0.4}},
            training={"maxSteps": 2},
            evaluation={"everySteps": 1},
        )
        want, got = kit.RecordingObserver(), kit.RecordingObserver()
        options = {"model_dir": model_dir, "rows": rows}
        kit.run(tmp_path / "whole", config, observer=want, **options)
        little_memory(training=4, evaluation=3)
        kit.run(tmp_path / "halved", config, observer=got, **options)
        assert [text.split("; ")[1][:20] for text in told(got)] == [
            f"going on with {rows} rows" for rows in (told_rows(got))
        ]
        for ours, theirs in zip(got.evaluations, want.evaluations, strict=True):
            assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-5)
        assert adapter(tmp_path / "halved") == adapter(tmp_path / "whole")

        again = kit.RecordingObserver()
        for attempt, observer in ((1, kit.RecordingObserver(stop_at=2)), (2, again)):
            options["observer"] = observer
            kit.run(tmp_path / "resumed", config, attempt=attempt, **options)
        assert told(again) == [], "a resumed run remembers"
        assert adapter(tmp_path / "resumed") == adapter(tmp_path / "whole")

    @pytest.mark.parametrize(
        ("mode", "limit", "advice"),
        [
            ("fail", 2, "recovery.oom to recover or training.microBatchSize to 2; or set tuning"),
            ("recover", 0, "with 1 row of up to .* set training.sequenceLength to"),
        ],
    )
    def test_what_cannot_be_helped_says_what_would_fit(
        self,
        kit: ModuleType,
        model_dir: Path,
        rows: Path,
        tmp_path: Path,
        little_memory: Callable[..., None],
        mode: str,
        limit: int,
        advice: str,
    ) -> None:
        little_memory(training=limit)
        config = config_of(kit, training={"recovery": {"oom": mode}})
        with pytest.raises(UserError, match=advice) as caught:
            kit.run(tmp_path, config, model_dir=model_dir, rows=rows)
        assert caught.value.reason == "DoesNotFit"


def scale_adapters(factor: float) -> None:
    """Reach into the running training, as broken hardware would."""
    for found in gc.get_objects():
        if isinstance(found, torch.nn.Parameter) and found.requires_grad:
            found.data.mul_(factor)


def told_rows(observer: Any) -> list[str]:
    return [text.split("going on with ")[1].split(" ")[0] for text in told(observer)]


def poisoned_model(kit: ModuleType, model_dir: Path, folder: Path, *, text: str) -> Path:
    """The model with an input embedding that is no number for the first token of `text`."""
    shutil.copytree(model_dir, folder)
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(model_dir, tie_word_embeddings=False)
    model = LlamaForCausalLM(config)
    token = kit.make_tokenizer()(text, add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    model.save_pretrained(folder)
    return folder


class TestNaN:
    """Pitfalls: NaN hidden by a filter; an all-NaN adapter saved as success."""

    def test_rows_that_cause_it_are_named_and_left_out(
        self, kit: ModuleType, model_dir: Path, tmp_path: Path
    ) -> None:
        """Pitfall: NaN hidden by logging_nan_inf_filter."""
        bad = {5: "Is ~ a wave?", 11: "And ~~?"}
        data = [
            kit.chat(bad[n], "It is.") if n in bad else row for n, row in enumerate(kit.sums(20))
        ]
        path = kit.write_rows(tmp_path / "rows.jsonl", data)
        folder = poisoned_model(kit, model_dir, tmp_path / "model", text="~")
        observer = kit.RecordingObserver()
        config = config_of(kit, training={"maxSteps": 10})
        kit.run(tmp_path, config, model_dir=folder, rows=path, observer=observer)
        messages = told(observer)
        named = [text.split("now on: ")[1].split(" (")[0].split(", ") for text in messages]
        assert sorted(place for places in named for place in places) == [
            "rows.jsonl:12",
            "rows.jsonl:6",
        ]
        assert [report.step for report in observer.steps] == list(range(1, 11))
        assert {report.learning_rate <= 0.01 for report in observer.steps} == {True}
        tensors = load_file(
            tmp_path / "out" / "artifacts" / "adapter" / "adapter_model.safetensors"
        )
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())

    def test_when_every_row_causes_it_the_run_fails_and_says_so(
        self, kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
    ) -> None:
        """Pitfall: all-NaN adapter saved as success."""
        folder = poisoned_model(kit, model_dir, tmp_path / "model", text="What")
        observer = kit.RecordingObserver()
        with pytest.raises(UserError, match=r"was halved 3 times already") as caught:
            kit.run(tmp_path, config_of(kit), model_dir=folder, rows=rows, observer=observer)
        assert caught.value.reason == "NonFiniteLoss"
        left_out = [text for text in told(observer) if "left out from now on: " in text]
        assert len(left_out) == 3
        assert all("rows.jsonl:" in text for text in left_out)
        assert not (tmp_path / "out" / "artifacts").exists()

    @pytest.mark.parametrize(("times", "ends"), [(1, True), (99, False)])
    def test_damaged_weights_roll_back_within_limits(
        self,
        kit: ModuleType,
        model_dir: Path,
        rows: Path,
        tmp_path: Path,
        times: int,
        ends: bool,
    ) -> None:
        class Damaging(kit.RecordingObserver):  # type: ignore[name-defined,misc]
            """Puts NaN into the weights after the fifth step, as broken hardware would."""

            def on_step(self, report: Any) -> None:
                super().on_step(report)
                if report.step == 5 and len([s for s in self.steps if s.step == 5]) <= times:
                    scale_adapters(float("nan"))

        observer = Damaging()
        config = config_of(
            kit,
            training={"maxSteps": 8, "schedule": "constant"},
            checkpoint={"everySteps": 2, "milestones": [50, 100]},
        )
        options = {"model_dir": model_dir, "rows": rows, "observer": observer}
        if ends:
            kit.run(tmp_path, config, **options)
            assert [report.step for report in observer.steps] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
            rates = [report.learning_rate for report in observer.steps]
            assert rates == pytest.approx([0.01] * 5 + [0.005] * 4)
            [message] = told(observer)
            assert "back to step 4 with learning rate 0.005" in message
            assert (tmp_path / "out" / "milestones" / "checkpoint-100pct").is_dir()
        else:
            with pytest.raises(UserError, match=r"halved 3 times already") as caught:
                kit.run(tmp_path, config, **options)
            assert caught.value.reason == "NonFiniteLoss"
            assert len(told(observer)) == 3

    def breaking(self, kit: ModuleType, *, before: Callable[[], object] = lambda: None) -> Any:
        class Breaking(kit.RecordingObserver):  # type: ignore[name-defined,misc]
            """Puts NaN into the weights after the third step, once."""

            def on_step(self, report: Any) -> None:
                super().on_step(report)
                if report.step == 3 and len([s for s in self.steps if s.step == 3]) == 1:
                    before()
                    scale_adapters(float("nan"))

        return Breaking()

    def test_a_run_killed_after_going_back_does_not_take_the_way_given_up_again(
        self, kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
    ) -> None:
        options = {"model_dir": model_dir, "rows": rows}
        config = config_of(
            kit,
            training={"maxSteps": 4, "schedule": "constant"},
            checkpoint={"everySteps": 2},
        )
        whole = self.breaking(kit)
        kit.run(tmp_path / "whole", config, observer=whole, **options)

        class Killed(type(self.breaking(kit))):  # type: ignore[misc]
            """Dies in the first step after the run went back."""

            def on_step(self, report: Any) -> None:
                if [step.step for step in self.steps] == [1, 2, 3]:
                    raise InterruptedError
                super().on_step(report)

        first, second = Killed(), kit.RecordingObserver()
        with pytest.raises(InterruptedError):
            kit.run(tmp_path / "killed", config, observer=first, **options)
        [saved] = [report for report in first.checkpoints if report.cause == "recovery"]
        assert (saved.step, saved.name) == (2, "step-000002-a01-1f2e3d4c-r1")
        kit.run(tmp_path / "killed", config, attempt=2, observer=second, **options)
        assert [(report.step, report.learning_rate) for report in second.steps] == [
            (3, 0.005),
            (4, 0.005),
        ]
        assert told(second) == []
        assert adapter(tmp_path / "killed") == adapter(tmp_path / "whole")

    @pytest.mark.parametrize("other_rate", [0.001, 0.01], ids=["same-config", "other-config"])
    def test_checkpoints_of_another_run_are_neither_taken_nor_deleted(
        self, kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path, other_rate: float
    ) -> None:
        def training(rate: float) -> dict[str, float]:
            return {"maxSteps": 4, "learningRate": rate}

        options = {"model_dir": model_dir, "rows": rows}
        other = config_of(kit, training=training(other_rate), checkpoint={"everySteps": 2})
        kit.run(tmp_path, other, **options)
        names = kit.make_store(tmp_path).names()
        config = config_of(
            kit,
            training=training(0.001),
            checkpoint={"everySteps": 100, "keep": 9, "resume": "Never"},
        )
        observer = self.breaking(kit)
        kit.run(tmp_path, config, attempt=2, observer=observer, **options)
        [message] = told(observer)
        assert "back to step 0 with learning rate 0.0005" in message
        assert set(names) < set(kit.make_store(tmp_path).names())

    def test_a_run_of_changed_config_does_not_go_back_to_what_the_old_one_saved(
        self, kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
    ) -> None:
        options = {"model_dir": model_dir, "rows": rows}
        old = config_of(kit, training={"maxSteps": 4}, checkpoint={"everySteps": 1})
        kit.run(tmp_path, old, observer=kit.RecordingObserver(stop_at=2), **options)

        def lose_what_it_went_on_from() -> None:
            for path in (tmp_path / "checkpoints").glob("step-000002-*/adapter.safetensors"):
                path.write_bytes(b"")

        observer = self.breaking(kit, before=lose_what_it_went_on_from)
        config = config_of(
            kit,
            training={"maxSteps": 4, "learningRate": 0.001},
            checkpoint={"everySteps": 100, "acceptChanges": ["training.learningRate"]},
        )
        kit.run(tmp_path, config, attempt=2, observer=observer, **options)
        [message] = told(observer)
        assert "back to step 0 with learning rate 0.0005" in message

    def test_a_resumed_run_goes_back_to_the_beginning_as_one_never_stopped(
        self, kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
    ) -> None:
        config = config_of(
            kit,
            dataset={"split": {"train": 0.8, "validation": 0.2}},
            training={"maxSteps": 4},
            evaluation={"baseline": True, "everySteps": 4},
            checkpoint={"everySteps": 100},
        )
        options = {"model_dir": model_dir, "rows": rows}
        whole, again = tmp_path / "whole", tmp_path / "again"
        want = kit.run(whole, config, observer=self.breaking(kit), **options)
        kit.run(again, config, observer=kit.RecordingObserver(stop_at=2), **options)

        def lose_checkpoints() -> None:
            for path in (again / "checkpoints").glob("step-*/adapter.safetensors"):
                path.write_bytes(b"")

        observer = self.breaking(kit, before=lose_checkpoints)
        got = kit.run(again, config, attempt=2, observer=observer, **options)
        assert [report.step for report in observer.steps] == [3, 1, 2, 3, 4]
        assert adapter(again) == adapter(whole)
        assert got.tuned_metrics == want.tuned_metrics
        assert got.base_metrics == want.base_metrics


class TestDivergence:
    @pytest.fixture
    def sharp(self, kit: ModuleType, tmp_path: Path) -> Path:
        """A model whose loss can run away: the tiny one is held by its small output head."""
        folder: Path = kit.write_model(tmp_path / "sharp", hidden=64, spread=0.2)
        return folder

    def config(self, kit: ModuleType, mode: str) -> Any:
        return config_of(
            kit,
            training={
                "maxSteps": 24,
                "schedule": "constant",
                "recovery": {"divergence": mode},
            },
            checkpoint={"everySteps": 4},
        )

    def derailing(self, kit: ModuleType, *, times: int) -> Any:
        class Derailing(kit.RecordingObserver):  # type: ignore[name-defined,misc]
            """Makes the adapters ten times as large after step 14."""

            def on_step(self, report: Any) -> None:
                super().on_step(report)
                if report.step == 14 and len([s for s in self.steps if s.step == 14]) <= times:
                    scale_adapters(10.0)

        return Derailing()

    def test_a_loss_that_runs_away_goes_back_before_it_with_half_the_rate(
        self, kit: ModuleType, sharp: Path, rows: Path, tmp_path: Path
    ) -> None:
        observer = self.derailing(kit, times=1)
        config = self.config(kit, "recover")
        result = kit.run(tmp_path, config, model_dir=sharp, rows=rows, observer=observer)
        assert result.step == 24
        [message] = told(observer)
        assert "The loss ran away: its mean over 10 steps is" in message
        assert "; back to step 12 with learning rate 0.005" in message
        steps = [report.step for report in observer.steps]
        [turn] = [i for i, (a, b) in enumerate(pairwise(steps)) if b <= a]
        assert steps[turn + 1] == 13
        assert {report.learning_rate for report in observer.steps[turn + 1 :]} == {0.005}
        assert max(report.loss for report in observer.steps[turn + 1 :]) < 7.5
        names = kit.make_store(tmp_path).names()
        assert [name[:11] for name in names] == ["step-000024", "step-000020", "step-000016"]

    def test_when_lower_rates_do_not_hold_it_the_run_fails(
        self, kit: ModuleType, sharp: Path, rows: Path, tmp_path: Path
    ) -> None:
        observer = self.derailing(kit, times=99)
        options = {"model_dir": sharp, "rows": rows, "observer": observer}
        with pytest.raises(UserError, match=r"ran away.*halved 3 times already") as caught:
            kit.run(tmp_path, self.config(kit, "recover"), **options)
        assert caught.value.reason == "LossDiverged"
        assert len(told(observer)) == 3

    def test_or_it_fails_at_once(
        self, kit: ModuleType, sharp: Path, rows: Path, tmp_path: Path
    ) -> None:
        options = {"model_dir": sharp, "rows": rows, "observer": self.derailing(kit, times=1)}
        with pytest.raises(UserError, match=r"ran away: its mean over 10 steps is") as caught:
            kit.run(tmp_path, self.config(kit, "fail"), **options)
        assert caught.value.reason == "LossDiverged"


class TestEarlyStopping:
    def config(self, kit: ModuleType, **early: Any) -> Any:
        return config_of(
            kit,
            dataset={"split": {"train": 0.8, "validation": 0.2}},
            training={
                "maxSteps": 12,
                "learningRate": 1.0,
                "schedule": "constant",
                "earlyStopping": {"patience": 2, **early},
            },
            evaluation={"everySteps": 1},
            checkpoint={"everySteps": 4, "keep": 1},
        )

    def test_the_result_is_that_of_the_best_evaluation(
        self, kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
    ) -> None:
        observer = kit.RecordingObserver()
        options = {"model_dir": model_dir, "rows": rows}
        result = kit.run(tmp_path, self.config(kit), observer=observer, **options)
        [stopped] = told(observer, "early-stop")
        best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
        values = {e.step: e.metrics["responsePerplexity"] for e in observer.evaluations if e.step}
        assert best["value"] == min(values.values()) == values[best["step"]]
        assert result.step == best["step"] + 2 < 12
        assert f"at step {result.step} of 12" in stopped
        assert len(told(observer, "best-restored")) == 1
        saved = load_file(tmp_path / "checkpoints" / best["name"] / "adapter.safetensors")
        got = load_file(tmp_path / "out" / "artifacts" / "adapter" / "adapter_model.safetensors")
        assert {name.replace(".default", "") for name in saved} == set(got)
        for name, tensor in saved.items():
            assert torch.equal(got[name.replace(".default", "")], tensor)
        assert result.tuned_metrics["responsePerplexity"] == best["value"]

        again = kit.RecordingObserver()
        resumed = kit.run(tmp_path, self.config(kit), attempt=2, observer=again, **options)
        assert again.steps == [], "a resumed run knows that it was over"
        assert resumed.artefact_digest == result.artefact_digest

    def test_the_last_weights_stay_where_that_is_asked_for(
        self, kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
    ) -> None:
        config = self.config(kit, restoreBest=False, metric="tokenAccuracy", minDelta=0.9)
        observer = kit.RecordingObserver()
        result = kit.run(tmp_path, config, model_dir=model_dir, rows=rows, observer=observer)
        assert result.step == 3, "the first evaluation, and two without a gain of 0.9"
        assert told(observer, "best-restored") == []
        best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
        assert best["metric"] == "tokenAccuracy"

    def test_without_held_out_rows_it_is_refused(
        self, kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
    ) -> None:
        config = config_of(kit, training={"earlyStopping": {}})
        with pytest.raises(UserError, match=r"none are held out") as caught:
            kit.run(tmp_path, config, model_dir=model_dir, rows=rows)
        assert caught.value.reason == "NothingToWatch"


def test_a_diagnosis_is_said_once_also_over_a_resume(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    config = config_of(kit, training={"batchSize": 2, "maxSteps": 4})
    said = []
    for attempt, stop_at in ((1, 2), (2, None)):
        observer = kit.RecordingObserver(stop_at=stop_at)
        options = {"attempt": attempt, "observer": observer}
        kit.run(tmp_path, config, model_dir=model_dir, rows=rows, **options)
        said.append(told(observer, "diagnosis"))
    assert [len(messages) for messages in said] == [1, 0]
    assert said[0][0].startswith("Every step sees only 2 rows: ")
