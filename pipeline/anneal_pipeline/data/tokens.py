"""From a conversation to token ids and the mask of what the assistant wrote.

The rendered text is tokenised once, without added special tokens (the template writes its own), and
the mask follows from character offsets: BPE merges across the border of prompt and answer therefore
cannot shift it. Every masked span ends in a token that stops generation: one of the model's own, or
the special token that the template puts behind answers, never one in the middle of a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from anneal_pipeline.data.closings import closings
from anneal_pipeline.data.conversation import Conversation
from anneal_pipeline.data.offsets import Tokens
from anneal_pipeline.data.template import Rendered, Span, render
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
        self._special = frozenset(tokenizer.all_special_ids).union(
            number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        )
        self._stops = stop_ids
        self._closings: dict[bool, tuple[str, ...]] = {}
        """By whether the row has tools: those may have a template of their own."""
        self.seen_stops: set[int] = set()
        """The tokens that did end answers: generation has to stop at these."""

    def row(self, conversation: Conversation) -> TokenRow:
        if conversation.text is not None:
            return self._text_row(conversation.text)
        rendered = render(self.tokenizer, conversation)
        tokens = self._tokens(rendered.text)
        mask = [0] * len(tokens.ids)
        closing = self._closings_for(conversation)
        for span in rendered.spans:
            inside = tokens.inside(span)
            last = self._stop_position(tokens, inside, border=_border(rendered, span, closing))
            if last is None:
                raise _endless(conversation)
            for position in range(inside.start, last + 1):
                mask[position] = 1
            self.seen_stops.add(tokens.ids[last])
        return TokenRow(ids=tokens.ids, is_response=mask)

    def _tokens(self, text: str) -> Tokens:
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return Tokens(
            text=text,
            ids=encoding["input_ids"],
            offsets=encoding["offset_mapping"],
            name_of=self.tokenizer.convert_ids_to_tokens,
        )

    def _text_row(self, text: str) -> TokenRow:
        """Plain text: all of it is trained, with the BOS the tokenizer adds and an EOS.

        Rows that were rendered before often have these already.
        """
        ids: list[int] = self.tokenizer(text)["input_ids"]
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            del ids[0]
        if eos is not None and ids[-1:] != [eos]:
            ids.append(eos)
        if eos is not None and ids[-2:] == [eos, eos]:
            del ids[-1]
        self.seen_stops.update(ids[-1:])
        return TokenRow(ids=ids, is_response=[1] * len(ids))

    def _closings_for(self, conversation: Conversation) -> tuple[str, ...]:
        has_tools = bool(conversation.tools)
        if has_tools not in self._closings:
            self._closings[has_tools] = closings(self.tokenizer, tools=conversation.tools)
        return self._closings[has_tools]

    def _stop_position(self, tokens: Tokens, inside: range, *, border: int) -> int | None:
        """The last stop in what the template wrote from character `border` on; None without one."""
        behind = [position for position in inside if tokens.offsets[position][1] > border]
        for known in (self._stops, self._special):
            for position in reversed(behind):
                if tokens.ids[position] in known:
                    return position
        return None


def _border(rendered: Rendered, span: Span, known: Sequence[str]) -> int:
    """Where the template's closing of a turn begins, in characters.

    A turn that ends otherwise than answers do (a call may) has nothing but its last token, blanks
    left out.
    """
    text = rendered.text[span.start : span.end]
    closing = next((closing for closing in known if text.endswith(closing)), None)
    if closing is not None:
        return span.end - len(closing)
    return span.start + len(text.rstrip()) - 1


def _endless(conversation: Conversation) -> UserError:
    return UserError(
        TEMPLATE_UNSUPPORTED,
        f"The chat template ends the answer of row {conversation.place.line} of "
        f"{conversation.place.file} without a token that stops generation; the tuned model "
        "would never stop. Use a model whose template ends its answers with a special token",
    )
