"""What a chat template writes behind an answer, learnt by rendering one.

A model has to stop where its template ends an answer, whatever its tokenizer calls the end of a
text; other special tokens that a turn holds (the mark of a tool call) end nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from anneal_pipeline.data.conversation import ASSISTANT, USER, Conversation, Turn
from anneal_pipeline.data.rows import Place
from anneal_pipeline.data.template import TemplateRefusedRowError, render
from anneal_pipeline.errors import UserError

_ANSWER = "anneal-asks-what-follows"
"""No template has this text of its own."""
_TURNS = (Turn(USER, "a"), Turn(ASSISTANT, _ANSWER))


def closings(
    tokenizer: PreTrainedTokenizerBase, *, tools: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    """The texts behind an answer, longest first: behind the last one there may be more.

    Empty where the template takes no plain question and answer.
    """
    for turns in (_TURNS * 2, _TURNS):
        probe = Conversation(place=Place(file="", line=0), turns=turns, tools=tuple(tools))
        try:
            rendered = render(tokenizer, probe)
        except (TemplateRefusedRowError, UserError):
            continue  # a template that changes earlier turns
        found = {
            rendered.text[span.start : span.end].rpartition(_ANSWER)[2] for span in rendered.spans
        }
        return tuple(sorted(found, key=lambda text: (-len(text), text)))
    return ()
