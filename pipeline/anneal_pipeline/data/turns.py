"""From the fields of a row to its turns, in every layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from anneal_pipeline.data.conversation import (
    ASSISTANT,
    ROLES,
    SYSTEM,
    TOOL,
    USER,
    Conversation,
    Turn,
)
from anneal_pipeline.data.damage import is_sound, require_sound_text
from anneal_pipeline.data.layout import INSTRUCTION, PROMPT_COMPLETION, SHAREGPT, TEXT, Layout
from anneal_pipeline.data.row_error import (
    DAMAGED_TEXT,
    EMPTY_PROMPT,
    EMPTY_RESPONSE,
    EMPTY_TEXT,
    MISSING_FIELD,
    NO_ASSISTANT,
    NOT_TEXT,
    UNKNOWN_ROLE,
    RowError,
)
from anneal_pipeline.data.rows import BadRow, SourceRow, preview_of, with_companions
from anneal_pipeline.data.tools import tool_calls, tool_definitions

_SPEAKERS = {
    "human": USER,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "model": ASSISTANT,
    "bot": ASSISTANT,
    "function_call": ASSISTANT,
    "observation": TOOL,
    "function": TOOL,
    "function_response": TOOL,
    "developer": SYSTEM,
} | {role: role for role in ROLES}
"""Names of roles that datasets use, ShareGPT and LLaMA-Factory among them."""
_PASSED_ON = ("name", "tool_call_id")
_CALL_SPEAKER = "function_call"


def to_conversation(
    rows: Sequence[SourceRow], layout: Layout, *, labels: Sequence[str] = ()
) -> Conversation | BadRow:
    """Read the turns of a row, or of rows that are one conversation.

    What is wrong with one of them becomes a BadRow with the others as its companions.

    `labels` are the columns whose values the split needs; null is no value, in JSON as in Parquet.
    """
    read = []
    for row in rows:
        try:
            read.append(_read(row, layout))
        except RowError as error:
            return with_companions(_bad(row, error), rows)
    conversation = _joined(rows, read, labels=labels)
    try:
        if conversation.text is None:
            conversation = replace(conversation, turns=_up_to_last_answer(conversation.turns))
        require_sound_text(conversation)
    except RowError as error:
        for row, part in zip(rows, read, strict=True):
            if error.reason == DAMAGED_TEXT and not is_sound(part):
                return with_companions(_bad(row, error), rows)
        return conversation.left_out(error.reason, error.detail)
    return conversation


def _bad(row: SourceRow, error: RowError) -> BadRow:
    return BadRow(
        place=row.place, reason=error.reason, detail=error.detail, preview=preview_of(row.fields)
    )


def _joined(
    rows: Sequence[SourceRow], read: Sequence[Conversation], *, labels: Sequence[str]
) -> Conversation:
    turns: list[Turn] = []
    tools: list[Mapping[str, Any]] = []
    for part in read:
        # What stands at the head of every row is said once.
        turns += [turn for turn in part.turns if turn.role != SYSTEM or turn not in turns]
        tools += [tool for tool in part.tools if tool not in tools]
    return Conversation(
        place=rows[0].place,
        turns=tuple(turns),
        text=read[-1].text,
        tools=tuple(tools),
        labels=_labels(rows, labels),
        joined=tuple(rows) if len(rows) > 1 else (),
    )


def _labels(rows: Sequence[SourceRow], names: Sequence[str]) -> dict[str, str]:
    """The first value that a row has in each column."""
    values = {
        name: next((row.fields[name] for row in rows if row.fields.get(name) is not None), None)
        for name in names
    }
    return {name: _label(value) for name, value in values.items() if value is not None}


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=repr)


def _read(row: SourceRow, layout: Layout) -> Conversation:
    fields = row.fields
    if layout.kind == TEXT:
        text = _text(_required(fields, layout, "text"), where="its text")
        if not text.strip():
            raise RowError(EMPTY_TEXT, "has no text")
        return Conversation(place=row.place, text=text)
    if layout.kind == INSTRUCTION:
        turns = _instruction_turns(fields, layout)
    elif layout.kind == PROMPT_COMPLETION:
        turns = _completion_turns(fields, layout)
    else:
        is_sharegpt = layout.kind == SHAREGPT
        turns = _turns_of(
            _required(fields, layout, "messages"),
            speaker="from" if is_sharegpt else "role",
            content="value" if is_sharegpt else "content",
        )
    if any(_is_empty_answer(turn) for turn in turns):
        raise RowError(EMPTY_RESPONSE, "has an assistant message without text")
    system = layout.value(fields, "system")
    if isinstance(system, str) and system.strip() and not (turns and turns[0].role == SYSTEM):
        turns.insert(0, Turn(SYSTEM, system))
    tools = tool_definitions(layout.value(fields, "tools"))
    return Conversation(place=row.place, turns=tuple(turns), tools=tools)


def _required(fields: Mapping[str, Any], layout: Layout, meaning: str) -> Any:
    name = layout.fields()[meaning]
    if fields.get(name) is None:
        raise RowError(MISSING_FIELD, f"has no field {name}")
    return fields[name]


def _turns_of(value: object, *, speaker: str, content: str) -> list[Turn]:
    """The turns of a list of messages, which may be written as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(MISSING_FIELD, f"has no valid JSON as its messages ({error})") from error
    if not isinstance(value, list):
        raise RowError(MISSING_FIELD, f"has no list of messages (got {type(value).__name__})")
    return [
        _turn(message, number=number, speaker=speaker, content=content)
        for number, message in enumerate(value, start=1)
    ]


def _turn(message: object, *, number: int, speaker: str, content: str) -> Turn:
    if not isinstance(message, dict) or speaker not in message:
        raise RowError(MISSING_FIELD, f"has no {speaker} in message {number}")
    name = message[speaker]
    role = _SPEAKERS.get(name) if isinstance(name, str) else None
    if role is None:
        raise RowError(
            UNKNOWN_ROLE, f"has the role {name!r} in message {number}, expected {', '.join(ROLES)}"
        )
    where = f"the content of message {number}"
    said = message.get(content)
    if name == _CALL_SPEAKER:
        return Turn(role, "", {"tool_calls": tool_calls(said, number=number)})
    calls = tool_calls(message.get("tool_calls"), number=number)
    extra: dict[str, Any] = {"tool_calls": calls} if calls else {}
    extra |= {key: message[key] for key in _PASSED_ON if isinstance(message.get(key), str)}
    if calls and said is None:
        return Turn(role, "", extra)
    if role == TOOL and isinstance(said, dict):
        said = json.dumps(said, ensure_ascii=False)
    return Turn(role, _text(said, where=where), extra)


def _text(value: object, *, where: str) -> str:
    """Take a string, or a list of {type: text} parts as some exports have it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(
        isinstance(p, dict) and p.get("type") == "text" for p in value
    ):
        return "".join(str(part.get("text", "")) for part in value)
    raise RowError(NOT_TEXT, f"has no text in {where} (got {type(value).__name__})")


def _instruction_turns(fields: Mapping[str, Any], layout: Layout) -> list[Turn]:
    names = layout.fields()
    instruction = _text(
        _required(fields, layout, "instruction"), where=f"the field {names['instruction']}"
    )
    context = layout.value(fields, "input")
    if context is not None:
        context = _text(context, where=f"the field {names['input']}").strip()
    prompt = f"{instruction}\n\n{context}" if context else instruction
    answer = _text(_required(fields, layout, "response"), where=f"the field {names['response']}")
    return [Turn(USER, prompt), Turn(ASSISTANT, answer)]


def _completion_turns(fields: Mapping[str, Any], layout: Layout) -> list[Turn]:
    """Prompt and completion are texts, or lists of messages each."""
    turns: list[Turn] = []
    for meaning, role in (("prompt", USER), ("completion", ASSISTANT)):
        value = _required(fields, layout, meaning)
        is_messages = isinstance(value, list) and value and "role" in value[0]
        if is_messages:
            turns += _turns_of(value, speaker="role", content="content")
        else:
            where = f"the field {layout.fields()[meaning]}"
            turns.append(Turn(role, _text(value, where=where)))
    return turns


def _up_to_last_answer(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    answers = [index for index, turn in enumerate(turns) if turn.role == ASSISTANT]
    if not answers:
        raise RowError(NO_ASSISTANT, "has no assistant message")
    kept = tuple(turns[: answers[-1] + 1])
    if not any(turn.role == USER and turn.content.strip() for turn in kept):
        raise RowError(EMPTY_PROMPT, "has no user message with text")
    return kept


def _is_empty_answer(turn: Turn) -> bool:
    return turn.role == ASSISTANT and not turn.content.strip() and not turn.tool_calls
