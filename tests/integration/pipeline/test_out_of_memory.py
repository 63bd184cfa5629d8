"""Memory that runs out: fewer rows at once, the same steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import bitsandbytes
import pytest
import torch
from tests.integration.pipeline.mishaps import adapter, config_of, told
from transformers.models.llama.modeling_llama import LlamaModel

from anneal_pipeline.errors import UserError


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


@pytest.mark.parametrize("optimizer", ["adamw", "pagedAdamw8bit"])
def test_memory_for_the_moments_is_asked_for_before_a_step_is_taken(
    kit: ModuleType,
    model_dir: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
) -> None:
    section = {"batchSize": 8, "maxSteps": 3, "optimizer": optimizer}
    options = {"model_dir": model_dir, "rows": rows}
    small = config_of(kit, training={**section, "microBatchSize": 4})
    kit.run(tmp_path / "small", small, **options)
    zeros_like, asked = torch.zeros_like, 0

    def hungry(like: torch.Tensor, **kind: Any) -> torch.Tensor:
        """The allocator refuses the fourth moment, once."""
        nonlocal asked
        asked += isinstance(like, torch.nn.Parameter)
        if asked == 4:
            asked += 1
            torch.empty(1 << 50)
        return zeros_like(like, **kind)

    monkeypatch.setattr(torch, "zeros_like", hungry)
    observer = kit.RecordingObserver()
    config = config_of(kit, training={**section, "microBatchSize": 8})
    kit.run(tmp_path / "big", config, observer=observer, **options)
    [message] = told(observer)
    assert "Memory ran out in step 1 with 8 rows" in message
    assert adapter(tmp_path / "big") == adapter(tmp_path / "small")


@pytest.mark.parametrize(
    ("optimizer", "lora", "advice"),
    [
        ("adamw", {}, "set training.optimizer to pagedAdamw8bit; or lower tuning.lora.rank;"),
        ("pagedAdamw8bit", {}, "lower tuning.lora.rank;"),
        (
            "adamw",
            {"rankAllocation": {}},
            "lower tuning.lora.rank and tuning.lora.rankAllocation.initialRank;",
        ),
    ],
    ids=["adamw", "8 bits", "ranks that fall"],
)
def test_a_step_that_is_half_taken_is_not_kept(
    kit: ModuleType,
    model_dir: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
    lora: dict[str, Any],
    advice: str,
) -> None:
    def failing(self: torch.optim.Optimizer, closure: object = None) -> None:
        self.param_groups[0]["params"][0].data.add_(1.0)
        if self.state[self.param_groups[0]["params"][0]].get("step") == 2:
            torch.empty(1 << 50)
        step(self)

    config = config_of(
        kit,
        tuning={"method": "lora", "lora": {"rank": 4, **lora}},
        training={"optimizer": optimizer},
        checkpoint={"everySteps": 1},
    )
    kind = bitsandbytes.optim.AdamW8bit if optimizer == "pagedAdamw8bit" else torch.optim.AdamW
    step = kind.step
    monkeypatch.setattr(kind, "step", failing)
    with pytest.raises(UserError, match=advice) as caught:
        kit.run(tmp_path, config, model_dir=model_dir, rows=rows)
    assert caught.value.reason == "DoesNotFit"
    assert [name[:11] for name in kit.make_store(tmp_path).names()] == [
        "step-000002",
        "step-000001",
    ]


def told_rows(observer: Any) -> list[str]:
    return [text.split("going on with ")[1].split(" ")[0] for text in told(observer)]


def test_half_the_micro_batch_takes_the_same_steps_to_the_same_adapter(
    kit: ModuleType,
    model_dir: Path,
    rows: Path,
    tmp_path: Path,
    little_memory: Callable[..., None],
) -> None:
    """Pitfall: auto_find_batch_size changes effective batch and learning rate."""
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
