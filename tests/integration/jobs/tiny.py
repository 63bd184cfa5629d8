"""A random Llama of a few thousand weights with a word tokenizer, and rows it can learn."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [
    *("what", "is", "the", "colour", "of", "grass", "sky", "snow", "coal", "blood", "sun"),
    *("green", "blue", "white", "black", "red", "yellow"),
]
SPECIAL = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "user", "assistant", "system", "\n"]
FACTS = {
    "grass": "green",
    "sky": "blue",
    "snow": "white",
    "coal": "black",
    "blood": "red",
    "sun": "yellow",
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_model(folder: Path) -> Path:
    """A model folder as save_pretrained leaves it."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="removed")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "\n"],
        chat_template=TEMPLATE,
    )
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=vocabulary["<|im_end|>"],
        pad_token_id=vocabulary["<pad>"],
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_rows(path: Path, *, repeats: int = 10) -> Path:
    """Distinct questions: the facts in several wordings."""
    openings = ["what is", "is the colour of", "the colour of", "what colour is"]
    with path.open("w", encoding="utf-8") as file:
        for index in range(repeats):
            for thing, colour in FACTS.items():
                filler = " ".join(WORDS[(index + k) % len(WORDS)] for k in range(2))
                question = f"{openings[index % len(openings)]} {filler} {thing}"
                messages = [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": colour},
                ]
                file.write(json.dumps({"messages": messages}) + "\n")
    return path
