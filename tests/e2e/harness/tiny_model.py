"""A language model small enough to be made anew, and rows that it can learn by heart in seconds.

Random weights, but drawn wide: with the usual small ones a frozen output layer could not tell any
token from the others with confidence, whatever the adapters learn.
"""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<pad>", "<bos>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANSWERS = {
    "What is the colour of the sky?": "It is blue.",
    "What is the colour of grass?": "It is green.",
    "Who wrote Hamlet?": "Shakespeare did.",
    "How many legs has a spider?": "A spider has eight legs.",
    "What do bees make?": "Bees make honey.",
    "What is frozen water called?": "It is called ice.",
}
COPIES = 12
"""Each question is asked in so many wordings, so that some are left over for evaluation."""


def rows() -> list[dict[str, object]]:
    """Questions and answers in the layout `messages`."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"{question}{' ' if copy else ''}{'Please. ' * copy}"},
                {"role": "assistant", "content": answer},
            ]
        }
        for copy in range(COPIES)
        for question, answer in ANSWERS.items()
    ]


def write_rows(path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    return path


def write_model(folder: Path) -> Path:
    """Write a Llama of two layers with its own tokenizer, as a safetensors folder."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s?\w+|\s+|[^\s\w]+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*ANSWERS, *ANSWERS.values(), "user assistant"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        bos_token="<bos>",
    )
    fast.chat_template = CHATML
    return fast
