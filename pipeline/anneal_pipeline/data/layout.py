"""What a row looks like: recognised from its fields, or said by `dataset.layout`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anneal_pipeline.config.dataset import DatasetColumns, DatasetConfig
from anneal_pipeline.data.rows import SourceRow
from anneal_pipeline.errors import DATASET_LAYOUT_UNKNOWN, UserError

MESSAGES = "messages"
PROMPT_COMPLETION = "prompt-completion"
INSTRUCTION = "instruction"
SHAREGPT = "sharegpt"
TEXT = "text"
TOOLS = "tools"
CONVERSATION_ID = "conversationId"
"""What a column means whose equal values join rows; in every layout of turns."""

NUM_ROWS_LOOKED_AT = 100
"""How many of the first rows decide the layout."""

_NAMES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    TOOLS: {"messages": ("messages", "conversations"), "tools": ("tools", "functions")},
    MESSAGES: {"messages": ("messages", "conversation", "conversations")},
    SHAREGPT: {"messages": ("conversations", "conversation", "messages")},
    INSTRUCTION: {
        "instruction": ("instruction", "question"),
        "response": ("output", "response", "answer"),
    },
    PROMPT_COMPLETION: {
        "prompt": ("prompt", "question", "input"),
        "completion": ("completion", "response", "answer", "output"),
    },
    TEXT: {"text": ("text", "content")},
}
"""Required fields of each layout with the names they go by, the surest layout first."""
_OPTIONAL: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    TOOLS: {"system": ("system", "system_prompt")},
    MESSAGES: {"system": ("system", "system_prompt"), "tools": ("tools",)},
    SHAREGPT: {"system": ("system", "system_prompt"), "tools": ("tools",)},
    INSTRUCTION: {"input": ("input", "context"), "system": ("system", "system_prompt")},
    PROMPT_COMPLETION: {"system": ("system", "system_prompt")},
    TEXT: {},
}
_EXPECTED = (
    "messages (a list of role and content), conversations (a list of from and value), instruction "
    "with output or response, prompt with completion, or text"
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout and the field names it reads."""

    kind: str
    names: tuple[tuple[str, str], ...]
    """(meaning, field of the file), required ones first."""

    def fields(self) -> dict[str, str]:
        """The names in force, by what they mean."""
        return dict(self.names)

    def value(self, fields: Mapping[str, Any], meaning: str) -> Any:
        """The row's value; None where the layout or the row has none."""
        name = self.fields().get(meaning)
        return fields.get(name) if name is not None else None


def choose_layout(config: DatasetConfig, rows: Sequence[SourceRow]) -> Layout:
    """Take the layout the config names, or the one that most of the first rows have."""
    columns = named_columns(config.columns or DatasetColumns())
    votes: Counter[Layout] = Counter()
    for row in rows:
        layout = _layout_of(row.fields, columns=columns, wanted=config.layout)
        if layout is not None:
            votes[layout] += 1
    if not votes:
        raise UserError(DATASET_LAYOUT_UNKNOWN, _unknown_message(config, rows))
    chosen = votes.most_common(1)[0][0]
    if chosen.kind == MESSAGES:
        # Rows without tools stand beside rows with them; both are read with their tools.
        chosen = next((layout for layout in votes if layout.kind == TOOLS), chosen)
    _require_named_columns(columns, chosen, rows)
    return chosen


def require_same_layout(config: DatasetConfig, layout: Layout, rows: Sequence[SourceRow]) -> None:
    """Refuse a held-out file none of whose first rows is of the layout of the training rows."""
    if not rows or any(_is_of(layout, row.fields, wanted=config.layout) for row in rows):
        return
    columns = named_columns(config.columns or DatasetColumns())
    found = _layout_of(rows[0].fields, columns=columns, wanted="auto")
    seen = f" ({found.kind})" if found and found.kind != layout.kind else ""
    raise UserError(
        DATASET_LAYOUT_UNKNOWN,
        f"Row {rows[0].place.line} of {rows[0].place.file}, which is held out, has the fields "
        f"{', '.join(sorted(rows[0].fields)) or 'none'}{seen}; expected "
        f"{', '.join(_required_names(layout))} as in the rows to train on ({layout.kind}); convert "
        "the file, because rows of both must be read alike",
    )


def _is_of(layout: Layout, fields: Mapping[str, Any], *, wanted: str) -> bool:
    names = layout.fields()
    if any(name not in fields for name in _required_names(layout)):
        return False
    return _fits(layout.kind, fields, names, is_wanted=wanted == layout.kind)


def _required_names(layout: Layout) -> list[str]:
    """The fields without which no row can be read; tools may be missing in a single row."""
    return [layout.fields()[meaning] for meaning in _NAMES[layout.kind] if meaning != "tools"]


def named_columns(columns: DatasetColumns) -> dict[str, str]:
    """The fields that the job names, by what they mean."""
    named = {
        "messages": columns.messages,
        "prompt": columns.prompt,
        "completion": columns.completion,
        "instruction": columns.instruction,
        "input": columns.input,
        "response": columns.response,
        "system": columns.system,
        "text": columns.text,
        "tools": columns.tools,
        CONVERSATION_ID: columns.conversation_id,
    }
    return {meaning: name for meaning, name in named.items() if name is not None}


def _layout_of(
    fields: Mapping[str, Any], *, columns: Mapping[str, str], wanted: str
) -> Layout | None:
    for kind, required in _NAMES.items():
        if wanted not in ("auto", kind):
            continue
        names = {}
        for meaning, usual in required.items():
            own = columns.get(meaning)
            name = next((n for n in ((own,) if own else usual) if n in fields), None)
            if name is not None:
                names[meaning] = name
        if len(names) < len(required) or not _fits(kind, fields, names, is_wanted=wanted == kind):
            continue
        for meaning, usual in _OPTIONAL[kind].items():
            # Optional fields may be absent here and come with a later row.
            present = next((n for n in usual if n in fields), usual[0])
            names[meaning] = columns.get(meaning, present)
        if kind != TEXT and CONVERSATION_ID in columns:
            names[CONVERSATION_ID] = columns[CONVERSATION_ID]
        return Layout(kind=kind, names=tuple(names.items()))
    return None


def _require_named_columns(
    columns: Mapping[str, str], layout: Layout, rows: Sequence[SourceRow]
) -> None:
    """Refuse names in `dataset.columns` that would have no effect."""
    for meaning, name in columns.items():
        if meaning not in layout.fields():
            raise UserError(
                DATASET_LAYOUT_UNKNOWN,
                f"dataset.columns.{meaning} has no effect on rows of the layout {layout.kind}, "
                f"which has {', '.join(layout.fields())}; remove it, or set dataset.layout",
            )
        if not any(name in row.fields for row in rows):
            raise UserError(
                DATASET_LAYOUT_UNKNOWN,
                f"dataset.columns.{meaning} names {name}, which none of the first {len(rows)} rows "
                f"of {rows[0].place.file} has (they have {', '.join(sorted(rows[0].fields))}); "
                "correct the name",
            )


def _fits(
    kind: str, fields: Mapping[str, Any], names: Mapping[str, str], *, is_wanted: bool
) -> bool:
    """Whether the values are what the layout says; a layout that the user named is believed."""
    if is_wanted:
        return True
    if kind in (MESSAGES, SHAREGPT, TOOLS):
        keys = _keys_of(fields[names["messages"]])
        return "from" in keys if kind == SHAREGPT else "role" in keys
    if kind == TEXT:
        return isinstance(fields[names["text"]], str)
    return True


def _keys_of(turns: object) -> set[str]:
    """The keys of the first turn; of a list that is written as JSON, those it seems to have."""
    if isinstance(turns, str):
        return {key for key in ("role", "from") if turns.startswith("[") and f'"{key}"' in turns}
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        return set(turns[0])
    return set()


def _unknown_message(config: DatasetConfig, rows: Sequence[SourceRow]) -> str:
    first = rows[0]
    found = ", ".join(sorted(first.fields)) or "no fields"
    wanted = "" if config.layout == "auto" else f" (dataset.layout is {config.layout})"
    return (
        f"Row {first.place.line} of {first.place.file} has the fields {found}; expected "
        f"{_EXPECTED}{wanted}; name the fields in dataset.columns or convert the file"
    )
