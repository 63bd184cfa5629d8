"""Prompts answered greedily, by the base and by the tuned model, for people to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from anneal_pipeline.data.conversation import ASSISTANT
from anneal_pipeline.data.template import render_prompt

MAX_NEW_TOKENS = 96


@dataclass(frozen=True, kw_only=True)
class Question:
    """A conversation up to the answer that is asked for."""

    messages: list[dict[str, str]]
    reference: str | None = None
    """The answer the held-out row gives; none for the job's own prompts."""

    @property
    def prompt(self) -> str:
        return self.messages[-1]["content"]


def question_of_prompt(prompt: str) -> Question:
    return Question(messages=[{"role": "user", "content": prompt}])


def question_of_row(messages: list[dict[str, str]]) -> Question:
    """The last answer of a held-out row becomes the reference."""
    last = max(i for i, message in enumerate(messages) if message["role"] == ASSISTANT)
    return Question(messages=messages[:last], reference=messages[last]["content"])


class _AskedToStop(StoppingCriteria):  # type: ignore[misc]  # transformers is partly untyped
    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        stop = self._should_stop()
        return torch.full((input_ids.shape[0],), stop, device=input_ids.device, dtype=torch.bool)


def answer(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    stop_ids: Sequence[int],
    should_stop: Callable[[], bool],
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[str]:
    """Answer all questions in one batch, padded on the left."""
    if not questions:
        return []
    rows = [
        tokenizer(render_prompt(tokenizer, q.messages), add_special_tokens=False)["input_ids"]
        for q in questions
    ]
    length = max(len(row) for row in rows)
    pad = int(tokenizer.pad_token_id)
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor(
        [[0] * (length - len(row)) + [1] * len(row) for row in rows], device=model.device
    )
    was_training = model.training
    model.eval()
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stop_ids),
            pad_token_id=pad,
            use_cache=True,
            stopping_criteria=StoppingCriteriaList([_AskedToStop(should_stop)]),
        )
    model.train(was_training)
    return [_text(tokenizer, row, stop_ids=stop_ids) for row in output[:, length:].tolist()]


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int], *, stop_ids: Sequence[int]) -> str:
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return str(tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()
