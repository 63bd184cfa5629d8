"""Our side of the training benchmark on a tiny model: it runs, and its result has its form."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SCRIPT = Path(__file__).parents[2] / "benchmarks/training.py"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of one layer over bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>"
    )
    fast.chat_template = CHATML
    folder = tmp_path / "model"
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_our_side_measures_speed_memory_and_loss(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    sizes = "--runs 1 --steps 3 --warmup-steps 1 --batch-size 4 --micro-batch-size 2 --held-out 3"
    where = ["--device", "cpu", "--model", model, "--output", output]
    done = subprocess.run(
        [sys.executable, SCRIPT, "--sides", "ours", *where, *sizes.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "tokensPerSecondRatio": None,
        "peakMemoryRatio": None,
        "lossDifference": None,
    }
    [run] = json.loads(output.read_text())["runs"]["ours"]
    assert run["tokens_per_second"] > 0
    assert run["peak_mib"] > 0
    assert math.isfinite(run["loss"])
    assert {"torch", "transformers", "peft"} <= set(run["versions"])
