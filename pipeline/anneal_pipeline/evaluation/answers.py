"""Questions answered greedily, by the base and by the tuned model, for people to read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from anneal_pipeline.data.tokens import stop_token_ids
from anneal_pipeline.errors import DOES_NOT_FIT, UserError
from anneal_pipeline.evaluation.questions import Question, text_of
from anneal_pipeline.training.memory import RowLimit, free_memory, is_out_of_memory
from anneal_pipeline.training.positions import learned_positions

MAX_NEW_TOKENS = 96


def stops_of(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, *, trained: Iterable[int]
) -> list[int]:
    """Ids that end an answer: those that ended the trained ones, and those the base ends with.

    Without its own the base, asked in another template than it knows, goes on to the limit.
    """
    own = model.get_base_model().generation_config.eos_token_id
    return sorted({*trained, *stop_token_ids(tokenizer, own)})


class _AskedToStop(StoppingCriteria):  # type: ignore[misc]  # transformers is partly untyped
    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        stop = self._should_stop()
        return torch.full((input_ids.shape[0],), stop, device=input_ids.device, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class Answerer:
    """Answers with the model as it is at the moment: adapters on or off is the caller's."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: Sequence[int]
    limit: RowLimit
    """Questions at once; lowered where memory runs out."""
    should_stop: Callable[[], bool]
    on_progress: Callable[[int], None]
    """Called with the questions answered so far."""
    on_halved: Callable[[int], None]
    """Called with the questions at once after memory ran out."""
    max_new_tokens: int = MAX_NEW_TOKENS

    def answer(self, questions: Sequence[Question]) -> list[str] | None:
        """One text for each, in their order; None if asked to stop on the way."""
        asked = [question.tokens(self.tokenizer) for question in questions]
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                written = self._written(asked)
        finally:
            self.model.train(was_training)
        if written is None:
            return None
        return [
            text_of(
                written[number],
                self.tokenizer,
                stop_ids=self.stop_ids,
                shows_marks=question.shows_marks,
            )
            for number, question in enumerate(questions)
        ]

    def _written(self, asked: Sequence[list[int]]) -> dict[int, list[int]] | None:
        """Token ids of every answer, by its place; the longest prompts come first."""
        positions = learned_positions(self.model)
        left = sorted(range(len(asked)), key=lambda number: -len(asked[number]))
        written: dict[int, list[int]] = {}
        while left:
            part, length = left[: self.limit.rows], len(asked[left[0]])
            room = self.max_new_tokens if positions is None else positions - length
            if room < self.max_new_tokens:
                part = part[:1]  # the others need not be cut short with it
            prompts = [asked[number] for number in part]
            answers = self._generate(prompts, num_new=min(room, self.max_new_tokens))
            if self.should_stop():
                return None
            if answers is None:
                self._lower(num_prompts=len(part), length=length)
                continue
            written |= dict(zip(part, answers, strict=True))
            left = left[len(part) :]
            self.on_progress(len(written))
        return written

    def _generate(self, prompts: Sequence[list[int]], *, num_new: int) -> list[list[int]] | None:
        """New ids for all prompts in one batch, padded on the left; None if memory ran out."""
        length = max(len(row) for row in prompts)
        pad = int(self.tokenizer.pad_token_id)
        rows = [[pad] * (length - len(row)) + row for row in prompts]
        mask = [[0] * (length - len(row)) + [1] * len(row) for row in prompts]
        device = self.model.device
        try:
            output = self.model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(mask, device=device),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=num_new,
                eos_token_id=list(self.stop_ids),
                pad_token_id=pad,
                use_cache=True,
                stopping_criteria=StoppingCriteriaList([_AskedToStop(self.should_stop)]),
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        new: list[list[int]] = output[:, length:].tolist()
        return new

    def _lower(self, *, num_prompts: int, length: int) -> None:
        free_memory(self.model.device)
        if not self.limit.halve(rows=num_prompts):
            raise UserError(
                DOES_NOT_FIT,
                f"Memory ran out in the evaluation, over the answers to {num_prompts} "
                f"{'prompt' if num_prompts == 1 else 'prompts'} of up to {length} tokens; "
                + (
                    "set training.recovery.oom to recover"
                    if num_prompts > 1
                    else "shorten evaluation.prompts, or set evaluation.numGenerations to 0"
                ),
            )
        self.on_halved(self.limit.rows)
