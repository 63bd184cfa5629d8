"""Tokens that the model does not have yet (`tuning.newTokens`): only their own rows are trained.

A new token begins as the mean of the pieces it was cut into so far, in the embeddings and, where it
is a weight of its own, in the output head. Tied weights stay one: PEFT puts the same trained rows
into both places. `trained_rows` keeps the work to these rows.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from anneal_pipeline.errors import ADAPTER_IMPOSSIBLE, UserError

_TRAINED_ROWS = "trainable_tokens_delta"
_WITHOUT_BLANKS = ("CJK ", "HIRAGANA ", "KATAKANA ", "THAI ", "LAO ", "KHMER ", "MYANMAR ")
"""Names of characters whose words stand side by side."""


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Let every one of `tokens` be one token; one that is already is the user's mistake."""
    known = [token for token in tokens if token in tokenizer.get_vocab()]
    if known:
        raise UserError(
            ADAPTER_IMPOSSIBLE,
            f"tuning.newTokens names {', '.join(known)}, which the tokenizer of the model has "
            "already; remove it there (modulesToSave: [embed_tokens] trains all known tokens)",
        )
    tokenizer.add_tokens(
        [
            # As it is written, with the blanks around it left to the tokens beside it.
            AddedToken(
                token, single_word=is_word(token), normalized=False, lstrip=False, rstrip=False
            )
            for token in tokens
        ]
    )


def is_word(token: str) -> bool:
    """True for letters and digits of a script that parts its words: `cat` is not in `concatenate`.

    A mark such as `<tool>` is found wherever it stands.
    """
    return token.isalnum() and not any(
        unicodedata.name(letter, "").startswith(_WITHOUT_BLANKS) for letter in token
    )


def pieces_of(
    tokens: Sequence[str], *, before: PreTrainedTokenizerBase, now: PreTrainedTokenizerBase
) -> dict[int, list[int]]:
    """The id of each new token, with the ids it was cut into `before`."""
    ids = now.convert_tokens_to_ids(list(tokens))
    cut = [before(token, add_special_tokens=False)["input_ids"] for token in tokens]
    return dict(zip(ids, cut, strict=True))


@torch.no_grad()
def make_room(model: PreTrainedModel, pieces: Mapping[int, Sequence[int]]) -> None:
    """Give each new token a row, begun as the mean of its pieces' rows."""
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise UserError(
            ADAPTER_IMPOSSIBLE,
            "tuning.newTokens cannot be had with this model, whose output head has a bias that "
            "PEFT would leave out; remove tuning.newTokens",
        )
    needed = max(pieces) + 1
    if model.get_input_embeddings().weight.shape[0] < needed:
        model.resize_token_embeddings(needed, mean_resizing=False)
    for name in _tables(model):
        weight: Any = model.get_submodule(name).weight
        for token, parts in pieces.items():
            weight[token] = weight[list(parts)].float().mean(0).to(weight.dtype)


def rows_to_train(
    model: PreTrainedModel, tokens: Sequence[int], *, whole: Sequence[str]
) -> dict[str, list[int]] | None:
    """The rows of new tokens by module, as PEFT takes them; `whole` are trained in full."""
    if not tokens:
        return None
    tables = _tables(model)
    both = sorted(set(tables) & set(whole))
    if both:
        raise UserError(
            ADAPTER_IMPOSSIBLE,
            f"tuning.newTokens trains rows of {', '.join(both)}, which tuning.lora.modulesToSave "
            "trains in full; remove one of them",
        )
    return {name: sorted(tokens) for name in tables}


def train_in_fp32(tuned: PeftModel) -> None:
    """PEFT keeps the rows in the type of the embeddings, where small steps would be lost."""
    for name, parameter in tuned.named_parameters():
        if _TRAINED_ROWS in name:
            parameter.data = parameter.data.float()


def _tables(model: PreTrainedModel) -> list[str]:
    """The embeddings, and the output head where it is a weight of its own."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    own = [embedding]
    if head is not None and head.weight is not embedding.weight:
        own.append(head)
    return [name for name, module in model.named_modules() if any(module is one for one in own)]
