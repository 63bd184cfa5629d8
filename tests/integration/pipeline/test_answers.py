"""What base and tuned model answer after training: in the memory there is, in the trained text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from anneal_pipeline.data.prepared import read_rows, read_split
from anneal_pipeline.errors import UserError

PROMPTS = [f"What is {n} plus 1?" for n in range(5)]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Weather of a place", "parameters": {}},
}
CALLING = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<call>{{ call.function | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As the templates do it whose marks of calls are special tokens."""


class Listening:
    """Mixed into an observer: every word about the evaluation stage."""

    heard: list[tuple[int, int, str]]

    def on_stage(self, stage: str, *, done: int, total: int, unit: str) -> None:
        if stage == "evaluation" and unit == "answers":
            self.heard.append((done, total, unit))


def make_observer(kit: ModuleType) -> Any:
    class Hearing(Listening, kit.RecordingObserver):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.heard = []

    return Hearing()


def answers_of(root: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((root / "out/evaluation/report.json").read_text())[
        "answers"
    ]
    return found


def config_of(kit: ModuleType, **sections: Any) -> Any:
    data: dict[str, Any] = {"export": {"verify": False}, **sections}
    data["training"] = {"maxSteps": 1, **data.get("training", {})}
    return kit.make_config(**data)


@pytest.fixture
def rows(kit: ModuleType, tmp_path: Path) -> Path:
    path: Path = kit.write_rows(tmp_path / "rows.jsonl", kit.sums(20))
    return path


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets the real allocator refuse when more than so many prompts are answered at once."""
    generate = LlamaForCausalLM.generate

    def limit(prompts: int) -> None:
        def hungry(self: Any, **options: Any) -> Any:
            if len(options["input_ids"]) > prompts:
                torch.empty(1 << 50)
            return generate(self, **options)

        monkeypatch.setattr(LlamaForCausalLM, "generate", hungry)

    return limit


class TestMemory:
    def test_fewer_prompts_at_once_get_the_same_answers(
        self,
        kit: ModuleType,
        model_dir: Path,
        rows: Path,
        tmp_path: Path,
        little_memory: Callable[[int], None],
    ) -> None:
        config = config_of(kit, evaluation={"prompts": PROMPTS, "numGenerations": 1})
        options = {"model_dir": model_dir, "rows": rows}
        want, got = make_observer(kit), make_observer(kit)
        kit.run(tmp_path / "whole", config, observer=want, **options)
        little_memory(2)
        kit.run(tmp_path / "parts", config, observer=got, **options)
        assert answers_of(tmp_path / "parts") == answers_of(tmp_path / "whole")
        assert want.heard == [(6, 12, "answers"), (12, 12, "answers")]
        assert got.heard == [
            (done, 12, "answers") for done in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
        ]
        told = [message for name, message in got.events if name == "recovered"]
        assert [message.split("; ")[1][:17] for message in told] == [
            "going on with 3 r",
            "going on with 1 r",
        ]

    @pytest.mark.parametrize(
        ("mode", "limit", "advice"),
        [
            ("fail", 2, r"answers to 6 prompts of up to \d+ tokens; set training.recovery.oom to"),
            ("recover", 0, r"answers to 1 prompt of .* shorten evaluation.prompts, or set"),
        ],
    )
    def test_what_cannot_be_helped_is_the_users_and_says_so(
        self,
        kit: ModuleType,
        model_dir: Path,
        rows: Path,
        tmp_path: Path,
        little_memory: Callable[[int], None],
        mode: str,
        limit: int,
        advice: str,
    ) -> None:
        little_memory(limit)
        config = config_of(
            kit,
            training={"recovery": {"oom": mode}},
            evaluation={"prompts": PROMPTS, "numGenerations": 1},
        )
        with pytest.raises(UserError, match=advice) as caught:
            kit.run(tmp_path, config, model_dir=model_dir, rows=rows)
        assert caught.value.reason == "DoesNotFit"

    def test_another_failure_stays_what_it_is(
        self,
        kit: ModuleType,
        model_dir: Path,
        rows: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def failing(self: Any, **options: Any) -> Any:
            raise RuntimeError("a kernel is missing")

        monkeypatch.setattr(LlamaForCausalLM, "generate", failing)
        with pytest.raises(RuntimeError, match="a kernel is missing"):
            kit.run(tmp_path, config_of(kit), model_dir=model_dir, rows=rows)


def test_a_stop_between_answers_leaves_no_report_and_the_next_attempt_writes_it(
    kit: ModuleType, model_dir: Path, rows: Path, tmp_path: Path
) -> None:
    class Stopping(Listening, kit.RecordingObserver):  # type: ignore[name-defined,misc]
        """Asked to stop once the tuned model has answered; the base has not."""

        def __init__(self) -> None:
            super().__init__()
            self.heard = []

        def should_stop(self) -> bool:
            return bool(self.heard)

    config = config_of(kit, evaluation={"prompts": PROMPTS})
    options = {"model_dir": model_dir, "rows": rows}
    first = Stopping()
    result = kit.run(tmp_path, config, observer=first, **options)
    assert result.interrupted
    assert len(first.heard) == 1
    assert not (tmp_path / "out" / "evaluation").exists()
    again = kit.RecordingObserver()
    assert not kit.run(tmp_path, config, attempt=2, observer=again, **options).interrupted
    assert again.steps == []
    assert all(pair["base"] is not None for pair in answers_of(tmp_path))


ENDING = 4


@pytest.mark.parametrize("told_by", ["generation config", "tokenizer"])
def test_a_base_ends_its_answers_with_its_own_token_that_no_trained_answer_has(
    kit: ModuleType,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told_by: str,
) -> None:
    """The base says nothing but <end>; the chat template ends answers with <|im_end|>."""
    own = {"eos_token": "<end>"} if told_by == "tokenizer" else {}
    tokenizer = kit.make_tokenizer(special=[*kit.SPECIAL_TOKENS, "<end>"], **own)
    folder = kit.write_model(tmp_path / "model", tokenizer=tokenizer)
    config = LlamaConfig.from_pretrained(folder, tie_word_embeddings=False)
    model = LlamaForCausalLM(config)
    assert tokenizer.convert_tokens_to_ids("<end>") == ENDING
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.get_input_embeddings().weight[:, 0] = 5.0
        model.lm_head.weight[ENDING, 0] = 10.0
    if told_by == "generation config":
        model.generation_config.eos_token_id = [3, ENDING]
    model.save_pretrained(folder)
    generate, lengths = LlamaForCausalLM.generate, []

    def measured(self: Any, **options: Any) -> Any:
        output = generate(self, **options)
        lengths.append(output.shape[1] - options["input_ids"].shape[1])
        return output

    monkeypatch.setattr(LlamaForCausalLM, "generate", measured)
    kit.run(tmp_path, config_of(kit), model_dir=folder, rows=rows)
    assert lengths == [1, 1], "tuned and base"
    assert [pair["base"] for pair in answers_of(tmp_path)] == [""]
    report = json.loads((tmp_path / "out" / "data" / "report.json").read_text())
    assert report["stop_token_ids"] == [3], "what is trained stays as it was"


class TestTools:
    @pytest.fixture
    def calling(self, kit: ModuleType, tmp_path: Path) -> Path:
        tokenizer = kit.make_tokenizer(template=CALLING, special=[*kit.SPECIAL_TOKENS, "<call>"])
        folder: Path = kit.write_model(
            tmp_path / "model", hidden=64, spread=0.1, tokenizer=tokenizer
        )
        return folder

    def test_a_call_is_asked_for_with_its_tools_and_shown_as_it_is_written(
        self, kit: ModuleType, calling: Path, tmp_path: Path
    ) -> None:
        call = {"type": "function", "function": {"name": "weather", "arguments": {"at": "Rome"}}}
        data = [
            {
                "messages": [
                    {"role": "user", "content": f"Is it wet, {n}?"},
                    {"role": "assistant", "content": "", "tool_calls": [call]},
                ],
                "tools": [TOOL],
            }
            for n in range(20)
        ]
        rows = kit.write_rows(tmp_path / "rows.jsonl", data)
        config = config_of(
            kit, training={"maxSteps": 60, "sequenceLength": 200, "learningRate": 0.02}
        )
        kit.run(tmp_path, config, model_dir=calling, rows=rows)
        [pair] = answers_of(tmp_path)
        assert pair["reference"] == '<call>{"name": "weather", "arguments": {"at": "Rome"}}'
        assert pair["prompt"].startswith("Is it wet, ")
        assert pair["tuned"] == pair["reference"]

    def test_the_prompt_of_a_held_out_row_is_the_text_that_was_trained(
        self, kit: ModuleType, calling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[list[int]] = []
        generate = LlamaForCausalLM.generate

        def listening(self: Any, **options: Any) -> Any:
            asked.extend(options["input_ids"].tolist())
            return generate(self, **options)

        monkeypatch.setattr(LlamaForCausalLM, "generate", listening)
        data = [
            {
                "messages": [
                    {"role": "user", "content": f"Is it wet, {n}?"},
                    {"role": "assistant", "content": "", "tool_calls": [{"name": "weather"}]},
                    {"role": "tool", "content": f"rain {n}"},
                    {"role": "assistant", "content": f"It is, {n}."},
                ],
                "tools": [TOOL],
            }
            for n in range(20)
        ]
        rows = kit.write_rows(tmp_path / "rows.jsonl", data)
        config = config_of(
            kit,
            training={"sequenceLength": 200},
            evaluation={"baseline": False, "numGenerations": 1},
        )
        kit.run(tmp_path, config, model_dir=calling, rows=rows)
        [held_out] = [
            folder
            for folder in (tmp_path / "out/data/validation", tmp_path / "out/data/test")
            if len(read_split(folder))
        ]
        ids, is_response = read_split(held_out).row(0)
        last_answer = max(
            i for i in range(1, len(ids)) if is_response[i] and not is_response[i - 1]
        )
        assert asked == [ids[:last_answer].tolist()]
        number = next(read_rows(held_out))["messages"][0]["content"].split(", ")[1].rstrip("?")
        [pair] = answers_of(tmp_path)
        assert pair["prompt"] == f"Is it wet, {number}?\nrain {number}"
        assert pair["reference"] == f"It is, {number}."


class TestLearnedPositions:
    @pytest.fixture
    def gpt2(self, kit: ModuleType, tmp_path: Path) -> Path:
        config = GPT2Config(
            vocab_size=kit.VOCABULARY,
            n_embd=32,
            n_layer=1,
            n_head=4,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=3,
            pad_token_id=0,
        )
        folder: Path = kit.save_model(tmp_path / "gpt2", config)
        return folder

    def test_an_answer_ends_where_the_table_does(
        self, kit: ModuleType, gpt2: Path, rows: Path, tmp_path: Path
    ) -> None:
        """Prompt and 96 more tokens would be beyond the 64 positions."""
        config = config_of(
            kit,
            training={"sequenceLength": 64},
            evaluation={"prompts": ["Hi", "What? " * 6], "numGenerations": 1},
        )
        kit.run(tmp_path, config, model_dir=gpt2, rows=rows)
        tokenizer = kit.make_tokenizer()
        for pair in answers_of(tmp_path):
            asked = tokenizer.apply_chat_template(
                [{"role": "user", "content": pair["prompt"]}], add_generation_prompt=True
            )["input_ids"]
            given = tokenizer(pair["tuned"], add_special_tokens=False)["input_ids"]
            assert len(asked) + len(given) <= 64

    def test_a_prompt_that_leaves_no_room_is_refused_before_training(
        self, kit: ModuleType, gpt2: Path, rows: Path, tmp_path: Path
    ) -> None:
        config = config_of(
            kit,
            training={"sequenceLength": 64},
            evaluation={"prompts": ["Hi", "What? " * 60]},
        )
        observer = kit.RecordingObserver()
        with pytest.raises(UserError, match=r"evaluation\.prompts\[1\] has \d+ tokens .* 64") as e:
            kit.run(tmp_path, config, model_dir=gpt2, rows=rows, observer=observer)
        assert e.value.reason == "ModelUnsupported"
        assert observer.steps == observer.evaluations == []


def test_a_prompt_that_the_template_refuses_is_met_before_training(
    kit: ModuleType, rows: Path, tmp_path: Path
) -> None:
    template = (
        "{% if messages | length == 1 and add_generation_prompt and 'plus' not in "
        "messages[0].content %}{{ raise_exception('Only sums!') }}{% endif %}" + kit.CHATML
    )
    folder = kit.write_model(tmp_path / "model", tokenizer=kit.make_tokenizer(template=template))
    config = config_of(kit, evaluation={"prompts": ["What is 1 plus 1?", "Who are you?"]})
    observer = kit.RecordingObserver()
    with pytest.raises(UserError, match=r"prompts\[1\] is refused .*Only sums!.*; remove") as e:
        kit.run(tmp_path, config, model_dir=folder, rows=rows, observer=observer)
    assert e.value.reason == "TemplateUnsupported"
    assert observer.steps == observer.evaluations == []


def test_rows_that_were_cut_for_training_are_not_asked_whole(
    kit: ModuleType, model_dir: Path, tmp_path: Path
) -> None:
    """A prompt beyond the sequence length was never trained, and needs memory that no step did."""
    data = [kit.chat("Why? " * (80 if n % 2 else 1) + str(n), "It is.") for n in range(40)]
    answered = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It is."}]
    for row in data:
        row["messages"] = answered + row["messages"]
    rows = kit.write_rows(tmp_path / "rows.jsonl", data)
    config = config_of(
        kit,
        dataset={
            "filters": {"overlength": "truncate"},
            "split": {"train": 0.5, "validation": 0.5},
        },
        evaluation={"baseline": False, "numGenerations": 64},
    )
    kit.run(tmp_path, config, model_dir=model_dir, rows=rows)
    held_out = list(read_rows(tmp_path / "out/data/validation"))
    prompts = [row["messages"][-2]["content"] for row in held_out]
    assert max(len(prompt) for prompt in prompts) > 300
    assert [pair["prompt"] for pair in answers_of(tmp_path)] == [
        prompt for prompt in prompts if len(prompt) < 300
    ]
