"""A language model and tokenizer small enough to be made anew, and rows to train them on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from anneal_pipeline.checkpoint.local import LocalFolder
from anneal_pipeline.checkpoint.store import CheckpointStore
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.memory.room import Room
from anneal_pipeline.micro_batch import RoomOf
from anneal_pipeline.observer import (
    CheckpointReport,
    EvaluationReport,
    NullObserver,
    StepReport,
)
from anneal_pipeline.stages import DatasetFiles, PipelineResult, run_pipeline
from anneal_pipeline.training.ranks import Ranks

SPECIAL_TOKENS = ["<pad>", "<bos>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 340
CORPUS = ["What is the colour of the sky? It is blue.", "user assistant system answer question 42"]


def make_tokenizer(
    *, template: str | None = CHATML, special: Sequence[str] = SPECIAL_TOKENS, **names: str
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a few merges, as real chat models have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s?\w+|\s+|[^\s\w]+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    chosen = {"eos_token": "<|im_end|>", "pad_token": "<pad>", "bos_token": "<bos>", **names}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **chosen
    )
    fast.chat_template = template
    return fast


def write_model(
    folder: Path,
    *,
    hidden: int = 32,
    spread: float = 0.02,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """A random Llama-shaped model of two layers with its tokenizer, as a safetensors folder.

    `spread` is the standard deviation of its weights; with little of it the frozen output head
    cannot be sure of anything.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        initializer_range=spread,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    return save_model(folder, config, tokenizer=tokenizer)


def save_model(
    folder: Path, config: PretrainedConfig, *, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    """A random model of any architecture, with a tokenizer of `VOCABULARY` tokens at most."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def sums(count: int) -> list[dict[str, Any]]:
    """Questions of unequal length with answers that follow from them."""
    return [chat(f"What is {n} plus {n * n}?", f"It is {n + n * n}.") for n in range(count)]


def make_config(**sections: dict[str, Any]) -> PipelineConfig:
    """A pipeline for the tiny model: plain LoRA in fp32, small batches, no milestones."""
    data: dict[str, Any] = {
        "model": {"uri": "models/tiny"},
        "dataset": {"uri": "rows.jsonl"},
        "tuning": {"method": "lora", "lora": {"rank": 4, "alpha": 8.0}},
        "training": {"maxSteps": 6, "batchSize": 4, "sequenceLength": 128, "learningRate": 0.01},
        "evaluation": {"numGenerations": 1},
        "checkpoint": {"milestones": []},
    }
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section}
    return PipelineConfig.parse(data)


@dataclass
class RecordingObserver(NullObserver):
    """Keeps everything it hears; stops once `stop_at` steps were taken."""

    stop_at: int | None = None
    steps: list[StepReport] = field(default_factory=list)
    evaluations: list[EvaluationReport] = field(default_factory=list)
    checkpoints: list[CheckpointReport] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)

    def on_stage(self, stage: str, *, done: int, total: int, unit: str) -> None:
        if stage not in self.stages:
            self.stages.append(stage)

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)

    def on_evaluation(self, report: EvaluationReport) -> None:
        self.evaluations.append(report)

    def on_checkpoint(self, report: CheckpointReport) -> None:
        self.checkpoints.append(report)

    def on_event(self, name: str, message: str, fields: Any) -> None:
        self.events.append((name, message))

    def on_output(self, path: Path) -> None:
        self.outputs.append(path)

    def should_stop(self) -> bool:
        return self.stop_at is not None and len(self.steps) >= self.stop_at


def make_store(root: Path, *, attempt: int = 1, keep: int = 3, **options: Any) -> CheckpointStore:
    """Checkpoints on the local disk, as one attempt writes them."""
    options.setdefault("scratch", root / f"scratch-{attempt}")
    return CheckpointStore(
        LocalFolder(root / "checkpoints"),
        attempt=attempt,
        writer="1f2e3d4c",
        keep=keep,
        **options,
    )


def nobody_knows(ranks: Ranks) -> Room:
    """Room without a limit: there is nothing to plan for, which saves the time of it."""
    return Room(limit=None, libraries=0)


def run(
    root: Path,
    config: PipelineConfig,
    *,
    model_dir: Path,
    rows: Path,
    attempt: int = 1,
    observer: NullObserver | None = None,
    rank: int = 0,
    world_size: int = 1,
    room_of: RoomOf = nobody_knows,
    clock: Callable[[], float] = time.monotonic,
) -> PipelineResult:
    """The whole pipeline on the CPU, with its outputs and checkpoints below `root`."""
    scratch = root / f"scratch-{attempt}-{rank}"
    return run_pipeline(
        config,
        workspace=root / "out",
        model_dir=model_dir,
        dataset_files=DatasetFiles(train=(rows,)),
        checkpoints=make_store(root, attempt=attempt, keep=config.checkpoint.keep, scratch=scratch),
        observer=observer or RecordingObserver(),
        device=torch.device("cpu"),
        rank=rank,
        world_size=world_size,
        room_of=room_of,
        clock=clock,
    )
