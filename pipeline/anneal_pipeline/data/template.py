"""Chat templates: the model's own, and where each assistant turn lies in the rendered text.

The spans come from rendering, not from hand-written generation tags: the text of the first n turns
(with the generation prompt) must be a prefix of the whole, and so must the text of n + 1 turns;
what lies between is what the assistant wrote, with its end-of-turn. A template for which that does
not hold is refused, because its training text would differ from what is served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from anneal_pipeline.data.conversation import ASSISTANT, Conversation, Turn
from anneal_pipeline.data.rows import Place
from anneal_pipeline.errors import TEMPLATE_UNSUPPORTED, PipelineError, UserError

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'assistant' %}### Response:\n"
    "{{ message['content'] }}{{ eos_token }}\n\n"
    "{% else %}{{ raise_exception('the plain instruction style has no place for the role ' "
    "+ message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
"""For models without a chat template: the instruction style of Stanford Alpaca."""

_BOS = "{{ bos_token }}"
_EVERY_ROW = "default"
_TOOL_ROWS = "tool_use"
"""The names by which transformers chooses among several templates."""


class TemplateRefusedRowError(PipelineError):
    """The template itself raised for this row (for example: roles must alternate)."""


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of the rendered text."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Rendered:
    text: str
    spans: tuple[Span, ...]
    """One per assistant turn, from behind the generation prompt to behind the turn."""


@dataclass(frozen=True, kw_only=True)
class TemplateChoice:
    """What `settle_template` decided."""

    origin: str
    """`model`, or `plain` where the model has none."""
    sha256: str


def settle_template(tokenizer: PreTrainedTokenizerBase) -> TemplateChoice:
    """Make `tokenizer.chat_template` the one template of training, evaluation and export.

    Where the model has a template of its own for rows with tools, these are two: transformers takes
    the second wherever there are tools, here as in serving. Raises UserError where none of several
    is meant for every row.
    """
    own = _templates_of(tokenizer.chat_template)
    templates = {
        name: _with_bos(tokenizer, text)
        for name, text in (own or {_EVERY_ROW: PLAIN_TEMPLATE}).items()
    }
    tokenizer.chat_template = templates if _TOOL_ROWS in templates else templates[_EVERY_ROW]
    digest = hashlib.sha256("\0".join(templates.values()).encode()).hexdigest()
    return TemplateChoice(origin="model" if own else "plain", sha256=digest)


def _templates_of(value: str | Mapping[str, str] | None) -> dict[str, str]:
    """The templates that rows are rendered with, by the names transformers chooses them by."""
    named = value if isinstance(value, Mapping) else {_EVERY_ROW: value}
    found = {name: text for name, text in named.items() if text}
    if len(found) == 1:
        return {_EVERY_ROW: next(iter(found.values()))}
    if found and _EVERY_ROW not in found:
        raise UserError(
            TEMPLATE_UNSUPPORTED,
            f"The model has several chat templates ({', '.join(sorted(found))}), but none called "
            f"{_EVERY_ROW}, so no one can tell which is meant for these rows; name one of them "
            f"{_EVERY_ROW} in the model's tokenizer files, or keep only one",
        )
    return {name: found[name] for name in (_EVERY_ROW, _TOOL_ROWS) if name in found}


def _with_bos(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The template with the BOS that the tokenizer would add, unless it writes one itself."""
    writes_bos = "bos_token" in template or str(tokenizer.bos_token) in template
    return _BOS + template if _wants_bos(tokenizer) and not writes_bos else template


def _wants_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    for_answer: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The text of these turns, ready for an answer or as it stands."""
    try:
        text = tokenizer.apply_chat_template(
            messages, tools=list(tools) or None, tokenize=False, add_generation_prompt=for_answer
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise TemplateRefusedRowError(f"is refused by the chat template ({error})") from error
    return str(text)


def render(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Rendered:
    """Render a whole conversation and find its assistant turns."""
    messages, tools = conversation.messages(), conversation.tools
    _require_place_for_tools(tokenizer, conversation)
    text = render_prompt(tokenizer, messages, tools=tools, for_answer=False)
    _require_told(conversation, text)
    spans = []
    for index, turn in enumerate(conversation.turns):
        if turn.role != ASSISTANT:
            continue
        before = render_prompt(tokenizer, messages[:index], tools=tools)
        after = render_prompt(tokenizer, messages[: index + 1], tools=tools, for_answer=False)
        after = _without_closing(after, text, tokenizer=tokenizer)
        _require_prefix(
            before, text, what="the generation prompt", turn=index, place=conversation.place
        )
        _require_prefix(after, text, what="the turns", turn=index, place=conversation.place)
        _require_kept(turn, text[len(before) : len(after)], number=index + 1)
        spans.append(Span(len(before), len(after)))
    return Rendered(text=text, spans=tuple(spans))


def _without_closing(part: str, whole: str, *, tokenizer: PreTrainedTokenizerBase) -> str:
    """Take off the EOS that some templates (Phi-3) write behind the last turn only."""
    closing = tokenizer.eos_token
    if closing and not whole.startswith(part) and part.endswith(closing):
        return part.removesuffix(closing)
    return part


def _require_kept(turn: Turn, text: str, *, number: int) -> None:
    """Refuse rows whose answer or tool call does not come out of the template."""
    if turn.content.strip() not in text:
        raise TemplateRefusedRowError(f"loses text of its message {number} in the chat template")
    for call in turn.tool_calls:
        if call["function"]["name"] not in text:
            raise TemplateRefusedRowError(
                f"loses the call of {call['function']['name']} in message {number}: the chat "
                "template writes no tool calls"
            )


def _require_place_for_tools(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation
) -> None:
    tools = list(conversation.tools)
    if tools and "tools" not in tokenizer.get_chat_template(tools=tools):
        place = conversation.place
        raise UserError(
            TEMPLATE_UNSUPPORTED,
            f"The chat template has no place for tools, but row {place.line} of {place.file} "
            "defines some; the model would learn calls of functions it is never told of. Use a "
            "model whose template takes tools, or rows without them",
        )


def _require_told(conversation: Conversation, text: str) -> None:
    """Refuse rows with tools that the template writes in some rows, but not in these."""
    names = [str(tool["function"]["name"]) for tool in conversation.tools]
    lost = [name for name in names if name not in text]
    if lost:
        raise TemplateRefusedRowError(
            f"loses the definition of {', '.join(lost)}: the chat template does not write the "
            "tools of such a row"
        )


def _require_prefix(part: str, whole: str, *, what: str, turn: int, place: Place) -> None:
    if whole.startswith(part):
        return
    at = next((i for i, (a, b) in enumerate(zip(part, whole, strict=False)) if a != b), len(whole))
    raise UserError(
        TEMPLATE_UNSUPPORTED,
        f"The chat template changes earlier text when a conversation goes on: {what} at message "
        f"{turn + 1} of row {place.line} of {place.file} reads {part[at : at + 40]!r} at character "
        f"{at}, but {whole[at : at + 40]!r} in the whole; the model would be trained on other text "
        "than it is served with. Use a model whose template keeps earlier turns, or rows of one "
        "question and one answer",
    )
