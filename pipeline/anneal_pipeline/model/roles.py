"""What a weight of a language model does, told from its name.

Names differ from family to family (Llama `self_attn.q_proj`, GPT-NeoX `attention.query_key_value`,
GPT-2 `attn.c_attn`), roles do not. Nothing here needs torch, so that the memory plan can tell from
the names in a weight file which layers would get an adapter.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Role(StrEnum):
    """What a layer of a transformer does."""

    ATTENTION = "attention"
    MLP = "mlp"
    EXPERT = "expert"
    """The same as MLP, once for each expert of a mixture."""
    OTHER = "other"
    """Inside the decoder's layers, under a name that no table has."""
    NONE = "none"
    """No place for an adapter unless it is named: routers, norms, embeddings, projections between
    them, the output head."""


ATTENTION_NAMES = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj"),
        *("query", "key", "value", "query_key_value", "qkv", "Wqkv", "c_attn"),
        *("q_lin", "k_lin", "v_lin", "out_lin", "wq", "wk", "wv", "wo"),
        *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
    }
)
MLP_NAMES = frozenset(
    {
        *("gate_proj", "up_proj", "down_proj", "gate_up_proj"),
        *("dense_h_to_4h", "dense_4h_to_h", "fc1", "fc2", "c_fc", "fc_in", "fc_out"),
        *("lin1", "lin2", "w1", "w2", "w3"),
    }
)
ROUTER_NAMES = frozenset(["gate", "router", "shared_expert_gate", "gate_score"])

_ATTENTION_PARENT = re.compile(r"attn|attention")
_MLP_PARENT = re.compile(r"mlp|ffn|feed_forward|feedforward")
_EXPERTS = "experts"
_NO_TARGET = re.compile(r"norm|embed|lm_head|^ln_|^score$|^classifier$")


def role_of(name: str) -> Role:
    """The role of the weight or module `name`, given with its parents.

    A name that means two things (`c_proj` of GPT-2, `dense`) is decided by its parent.
    """
    *parents, last = name.split(".")
    if last in ROUTER_NAMES or _NO_TARGET.search(last):
        return Role.NONE
    if not any(part.isdigit() for part in parents):
        # Outside the repeated layers: projections of embeddings, heads, poolers.
        return Role.NONE
    if _EXPERTS in parents:
        return Role.EXPERT
    if last in MLP_NAMES:
        return Role.MLP
    if last in ATTENTION_NAMES:
        return Role.ATTENTION
    for parent in reversed(parents):
        if _ATTENTION_PARENT.search(parent):
            return Role.ATTENTION
        if _MLP_PARENT.search(parent):
            return Role.MLP
    return Role.OTHER
