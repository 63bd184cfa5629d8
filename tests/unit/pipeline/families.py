"""Every family of language models that people fine-tune, two layers each, made from a config."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 64
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    **IDS,
}
NO_GROUPS = {key: value for key, value in COMMON.items() if key != "num_key_value_heads"}
SEPARATE = ("k_proj", "o_proj", "q_proj", "v_proj")
GATED = ("down_proj", "gate_proj", "up_proj")
EXPERTS = ("down_proj", "gate_up_proj")

FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    # name: (config class, its arguments, attention layers, MLP layers)
    "llama": ("LlamaConfig", COMMON, SEPARATE, GATED),
    "mistral": ("MistralConfig", COMMON, SEPARATE, GATED),
    "mixtral": ("MixtralConfig", {**COMMON, "num_local_experts": 4}, SEPARATE, EXPERTS),
    "qwen2": ("Qwen2Config", COMMON, SEPARATE, GATED),
    "qwen3": ("Qwen3Config", {**COMMON, "head_dim": 8}, SEPARATE, GATED),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {
            **COMMON,
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
        },
        SEPARATE,
        EXPERTS,
    ),
    "gemma2": ("Gemma2Config", {**COMMON, "head_dim": 8}, SEPARATE, GATED),
    "gemma3": ("Gemma3TextConfig", {**COMMON, "head_dim": 8}, SEPARATE, GATED),
    "phi": ("PhiConfig", COMMON, ("dense", "k_proj", "q_proj", "v_proj"), ("fc1", "fc2")),
    "phi3": ("Phi3Config", COMMON, ("o_proj", "qkv_proj"), ("down_proj", "gate_up_proj")),
    "falcon": (
        "FalconConfig",
        {**IDS, **{k: COMMON[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers")}}
        | {"num_attention_heads": 4},
        ("dense", "query_key_value"),
        ("dense_4h_to_h", "dense_h_to_4h"),
    ),
    "gpt2": (
        "GPT2Config",
        {**IDS, "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4},
        ("c_attn", "c_proj"),
        ("c_fc", "c_proj"),
    ),
    "gpt-neox": (
        "GPTNeoXConfig",
        NO_GROUPS,
        ("dense", "query_key_value"),
        ("dense_4h_to_h", "dense_h_to_4h"),
    ),
    "opt": (
        "OPTConfig",
        # As OPT-350m: projections in and out of the embeddings, which are no targets.
        {
            **IDS,
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
        },
        ("k_proj", "out_proj", "q_proj", "v_proj"),
        ("fc1", "fc2"),
    ),
    "bloom": (
        "BloomConfig",
        {**IDS, "vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        ("dense", "query_key_value"),
        ("dense_4h_to_h", "dense_h_to_4h"),
    ),
    "mpt": (
        "MptConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "expansion_ratio": 2,
            "max_seq_len": 64,
        },
        ("Wqkv", "out_proj"),
        ("down_proj", "up_proj"),
    ),
}
MIXTURES = ("mixtral", "qwen3-moe")


def make_family(name: str, *, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    torch.manual_seed(0)
    kind, arguments, _, _ = FAMILIES[name]
    config = getattr(transformers, kind)(**{**arguments, "vocab_size": vocabulary})
    return AutoModelForCausalLM.from_config(config)
