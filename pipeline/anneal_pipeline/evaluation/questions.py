"""What base and tuned model are asked: the job's own prompts, and held-out rows up to their last
answer, in the very text that was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from anneal_pipeline.data.conversation import ASSISTANT, USER
from anneal_pipeline.data.template import TemplateRefusedRowError, render_prompt
from anneal_pipeline.errors import MODEL_UNSUPPORTED, TEMPLATE_UNSUPPORTED, UserError


@dataclass(frozen=True, kw_only=True)
class Question:
    """A conversation up to the answer that is asked for."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    """Definitions of the functions that the answer may call."""
    reference: str | None = None
    """The answer the held-out row gives; none for the job's own prompts."""
    shows_marks: bool = False
    """Whether the special tokens of an answer are shown: many templates mark calls with them."""

    @property
    def prompt(self) -> str:
        """For people: what the user said last, and what the tools that were called then gave."""
        first = max(i for i, message in enumerate(self.messages) if message["role"] == USER)
        said = [str(message["content"]) for message in self.messages[first:]]
        return "\n".join(text for text in said if text)

    def tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Raises TemplateRefusedRowError where the chat template takes no such messages."""
        text = render_prompt(tokenizer, self.messages, tools=self.tools)
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def question_of_prompt(prompt: str) -> Question:
    return Question(messages=[{"role": USER, "content": prompt}])


def question_of_row(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, *, stop_ids: Sequence[int]
) -> Question:
    """The last answer of a prepared row with `messages` becomes the reference.

    A call of a tool is shown as the template writes it, which is what a model answers with.
    """
    messages, tools = row["messages"], row.get("tools", [])
    last = max(i for i, message in enumerate(messages) if message["role"] == ASSISTANT)
    asked, calls = messages[:last], messages[last].get("tool_calls")
    reference = str(messages[last]["content"])
    if calls:
        before = render_prompt(tokenizer, asked, tools=tools)
        whole = render_prompt(tokenizer, messages[: last + 1], tools=tools, for_answer=False)
        ids = tokenizer(whole.removeprefix(before), add_special_tokens=False)["input_ids"]
        reference = text_of(ids, tokenizer, stop_ids=stop_ids, shows_marks=True)
    return Question(
        messages=asked, tools=tools, reference=reference, shows_marks=bool(tools or calls)
    )


def text_of(
    ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    *,
    stop_ids: Sequence[int],
    shows_marks: bool,
) -> str:
    """An answer up to the token that ends it."""
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return str(tokenizer.decode(list(ids[:end]), skip_special_tokens=not shows_marks)).strip()


def check_prompts(
    prompts: Sequence[str], *, tokenizer: PreTrainedTokenizerBase, num_positions: int | None
) -> None:
    """Refuse `evaluation.prompts` that the model cannot answer, before it is trained for hours.

    `num_positions` is the model's table of learned positions; one of them is for the answer.
    """
    for number, prompt in enumerate(prompts):
        where = f"evaluation.prompts[{number}]"
        try:
            length = len(question_of_prompt(prompt).tokens(tokenizer))
        except TemplateRefusedRowError as error:
            raise UserError(
                TEMPLATE_UNSUPPORTED,
                f"{where} {error}; remove it, or use a model whose chat template takes one message "
                "of a user",
            ) from error
        if num_positions is not None and length >= num_positions:
            raise UserError(
                MODEL_UNSUPPORTED,
                f"{where} has {length} tokens in the chat template, but the model has "
                f"{num_positions} positions for prompt and answer; shorten it, or take a base with "
                "a longer context",
            )
