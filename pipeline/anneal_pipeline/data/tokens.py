"""From a conversation to token ids and the mask of what the assistant wrote.

The rendered text is tokenised once, without added special tokens (the template writes its own), and
the mask follows from character offsets: BPE merges across the border of prompt and answer therefore
cannot shift it. Every masked span ends in a token that stops generation.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from anneal_pipeline.data.conversation import Conversation
from anneal_pipeline.data.template import Span, render
from anneal_pipeline.errors import MODEL_UNSUPPORTED, TEMPLATE_UNSUPPORTED, UserError


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """`is_response[i]` is 1 where token i was written by the assistant, end-of-turn included."""

    ids: Sequence[int]
    is_response: Sequence[int]

    @property
    def num_response_tokens(self) -> int:
        """Tokens that can be predicted: the first of a row has nothing before it."""
        return sum(self.is_response[1:])

    def cut(self, length: int) -> TokenRow:
        return TokenRow(ids=self.ids[:length], is_response=self.is_response[:length])


def stop_token_ids(
    tokenizer: PreTrainedTokenizerBase, generation_eos: int | Sequence[int] | None
) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's EOS and those of the model's generation config."""
    extra = [generation_eos] if isinstance(generation_eos, int) else list(generation_eos or ())
    return frozenset(i for i in [tokenizer.eos_token_id, *extra] if i is not None)


def generation_eos(model_dir: Path) -> int | list[int] | None:
    """What the model's own generation config stops at, if it has one."""
    if not (model_dir / "generation_config.json").is_file():
        return None
    eos: int | list[int] | None = GenerationConfig.from_pretrained(model_dir).eos_token_id
    return eos


class Tokenisation:
    """One tokenizer with its settled template, applied to many rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, stop_ids: frozenset[int]) -> None:
        if not tokenizer.is_fast:
            raise UserError(
                MODEL_UNSUPPORTED,
                f"The tokenizer {type(tokenizer).__name__} gives no character offsets, which the "
                "loss mask needs; use a model that has a tokenizer.json",
            )
        self.tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._stops = stop_ids
        self.seen_stops: set[int] = set()
        """The tokens that did end answers: generation has to stop at these."""

    def row(self, conversation: Conversation) -> TokenRow:
        if conversation.text is not None:
            return self._text_row(conversation.text)
        rendered = render(self.tokenizer, conversation)
        encoding = self.tokenizer(
            rendered.text, add_special_tokens=False, return_offsets_mapping=True
        )
        ids: list[int] = encoding["input_ids"]
        offsets: list[tuple[int, int]] = encoding["offset_mapping"]
        mask = [0] * len(ids)
        for span in rendered.spans:
            inside = _tokens_inside(offsets, span)
            last = self._stop_position(ids, inside, conversation=conversation)
            for position in range(inside.start, last + 1):
                mask[position] = 1
            self.seen_stops.add(ids[last])
        return TokenRow(ids=ids, is_response=mask)

    def _text_row(self, text: str) -> TokenRow:
        """Plain text: all of it is trained, with the BOS the tokenizer adds and an EOS."""
        ids: list[int] = self.tokenizer(text)["input_ids"]
        eos = self.tokenizer.eos_token_id
        if eos is not None and ids[-1:] != [eos]:
            ids.append(eos)
        self.seen_stops.update(ids[-1:])
        return TokenRow(ids=ids, is_response=[1] * len(ids))

    def _stop_position(
        self, ids: Sequence[int], inside: range, *, conversation: Conversation
    ) -> int:
        for known in (self._stops, self._special):
            for position in reversed(inside):
                if ids[position] in known:
                    return position
        raise UserError(
            TEMPLATE_UNSUPPORTED,
            f"The chat template ends the answer of row {conversation.place.line} of "
            f"{conversation.place.file} without a token that stops generation; the tuned model "
            "would never stop. Use a model whose template ends its answers with a special token",
        )


def _tokens_inside(offsets: Sequence[tuple[int, int]], span: Span) -> range:
    """Positions of the tokens that begin and end inside the span."""
    begin = bisect_left(offsets, span.start, key=_start)
    while begin < len(offsets) and offsets[begin][1] <= span.start:
        begin += 1
    return range(begin, max(begin, bisect_right(offsets, span.end, key=_end)))


def _start(offset: tuple[int, int]) -> int:
    return offset[0]


def _end(offset: tuple[int, int]) -> int:
    return offset[1]
