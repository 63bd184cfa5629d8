"""What a row looks like: recognised from its fields, or said by `dataset.layout`.

Two layouts are read: `messages` (a list of {role, content}) and `instruction` (Alpaca: instruction,
input, and the answer in output or response).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anneal_pipeline.config.dataset import DatasetColumns, DatasetConfig
from anneal_pipeline.data.conversation import ASSISTANT, ROLES, SYSTEM, USER, Conversation, Turn
from anneal_pipeline.data.jsonl import BadRow, SourceRow, preview_of
from anneal_pipeline.errors import DATASET_LAYOUT_UNKNOWN, UserError

MESSAGES = "messages"
INSTRUCTION = "instruction"

MISSING_FIELD = "missing-field"
NOT_TEXT = "not-text"
UNKNOWN_ROLE = "unknown-role"
NO_ASSISTANT = "no-assistant-message"
EMPTY_RESPONSE = "empty-response"
EMPTY_PROMPT = "empty-prompt"

NUM_ROWS_LOOKED_AT = 100
"""How many of the first rows decide the layout."""

_RESPONSE_NAMES = ("output", "response")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout and the field names it reads."""

    kind: str
    messages: str = "messages"
    instruction: str = "instruction"
    input: str = "input"
    response: str = "output"
    system: str = "system"

    def fields(self) -> dict[str, str]:
        """The names in force, by what they mean."""
        names = {MESSAGES: ("messages", "system")}.get(
            self.kind, ("instruction", "input", "response", "system")
        )
        return {name: str(getattr(self, name)) for name in names}


class _RowError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def choose_layout(config: DatasetConfig, rows: Sequence[SourceRow]) -> Layout:
    """Take the layout the config names, or the one that most of the first rows have."""
    columns = config.columns or DatasetColumns()
    votes: Counter[Layout] = Counter()
    for row in rows:
        layout = _layout_of(row.fields, columns=columns, wanted=config.layout)
        if layout is not None:
            votes[layout] += 1
    if not votes:
        raise UserError(DATASET_LAYOUT_UNKNOWN, _unknown_message(config, rows))
    return votes.most_common(1)[0][0]


def _layout_of(fields: Mapping[str, Any], *, columns: DatasetColumns, wanted: str) -> Layout | None:
    system = columns.system or "system"
    messages = columns.messages or "messages"
    if wanted in ("auto", MESSAGES) and isinstance(fields.get(messages), list):
        return Layout(kind=MESSAGES, messages=messages, system=system)
    instruction = columns.instruction or "instruction"
    names = (columns.response,) if columns.response else _RESPONSE_NAMES
    response = next((name for name in names if name in fields), None)
    if wanted in ("auto", INSTRUCTION) and instruction in fields and response is not None:
        return Layout(
            kind=INSTRUCTION,
            instruction=instruction,
            input=columns.input or "input",
            response=response,
            system=system,
        )
    return None


def _unknown_message(config: DatasetConfig, rows: Sequence[SourceRow]) -> str:
    first = rows[0]
    found = ", ".join(sorted(first.fields)) or "no fields"
    wanted = "" if config.layout == "auto" else f" (dataset.layout is {config.layout})"
    return (
        f"Row {first.place.line} of {first.place.file} has the fields {found}; expected messages "
        f"(a list of role and content) or instruction with output or response{wanted}; name the "
        "fields in dataset.columns or convert the file"
    )


def to_conversation(row: SourceRow, layout: Layout) -> Conversation | BadRow:
    """Read a row's turns; what is wrong with it becomes a BadRow."""
    try:
        if layout.kind == MESSAGES:
            turns = _messages_turns(row.fields, layout)
        else:
            turns = _instruction_turns(row.fields, layout)
        return Conversation(place=row.place, turns=_up_to_last_answer(turns))
    except _RowError as error:
        return BadRow(
            place=row.place,
            reason=error.reason,
            detail=error.detail,
            preview=preview_of(row.fields),
        )


def _messages_turns(fields: Mapping[str, Any], layout: Layout) -> list[Turn]:
    messages = fields.get(layout.messages)
    if not isinstance(messages, list):
        raise _RowError(MISSING_FIELD, f"has no list in the field {layout.messages}")
    turns = [_turn(message, number=number) for number, message in enumerate(messages, start=1)]
    system = fields.get(layout.system)
    if isinstance(system, str) and system.strip() and not (turns and turns[0].role == SYSTEM):
        turns.insert(0, Turn(SYSTEM, system))
    return turns


def _turn(message: object, *, number: int) -> Turn:
    if not isinstance(message, dict) or "role" not in message:
        raise _RowError(MISSING_FIELD, f"has no role in message {number}")
    role = message["role"]
    if role not in ROLES:
        raise _RowError(
            UNKNOWN_ROLE, f"has the role {role!r} in message {number}, expected {', '.join(ROLES)}"
        )
    return Turn(role, _text(message.get("content"), where=f"the content of message {number}"))


def _text(value: object, *, where: str) -> str:
    """Take a string, or a list of {type: text} parts as some exports have it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(
        isinstance(p, dict) and p.get("type") == "text" for p in value
    ):
        return "".join(str(part.get("text", "")) for part in value)
    raise _RowError(NOT_TEXT, f"has no text in {where} (got {type(value).__name__})")


def _instruction_turns(fields: Mapping[str, Any], layout: Layout) -> list[Turn]:
    for name in (layout.instruction, layout.response):
        if name not in fields:
            raise _RowError(MISSING_FIELD, f"has no field {name}")
    instruction = _text(fields[layout.instruction], where=f"the field {layout.instruction}")
    context = fields.get(layout.input)
    if context is not None:
        context = _text(context, where=f"the field {layout.input}").strip()
    prompt = f"{instruction}\n\n{context}" if context else instruction
    answer = _text(fields[layout.response], where=f"the field {layout.response}")
    turns = [Turn(USER, prompt), Turn(ASSISTANT, answer)]
    system = fields.get(layout.system)
    if isinstance(system, str) and system.strip():
        turns.insert(0, Turn(SYSTEM, system))
    return turns


def _up_to_last_answer(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    answers = [index for index, turn in enumerate(turns) if turn.role == ASSISTANT]
    if not answers:
        raise _RowError(NO_ASSISTANT, "has no assistant message")
    kept = tuple(turns[: answers[-1] + 1])
    if any(turn.role == ASSISTANT and not turn.content.strip() for turn in kept):
        raise _RowError(EMPTY_RESPONSE, "has an assistant message without text")
    if not any(turn.role == USER and turn.content.strip() for turn in kept):
        raise _RowError(EMPTY_PROMPT, "has no user message with text")
    return kept
