"""A row as every later stage sees it: the turns of one conversation, or a plain text."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from anneal_pipeline.data.rows import BadRow, Place, SourceRow, preview_of

SYSTEM = "system"
USER = "user"
ASSISTANT = "assistant"
TOOL = "tool"
ROLES = (SYSTEM, USER, ASSISTANT, TOOL)

KEY_BYTES = 16


@dataclass(frozen=True)
class Turn:
    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What chat templates take beside role and content: tool_calls, name, tool_call_id."""

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = self.extra.get("tool_calls", [])
        return calls

    def message(self) -> dict[str, Any]:
        return {"role": self.role, "content": self.content, **self.extra}


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns up to and with the last assistant turn, or, without turns, a text to go on with."""

    place: Place
    turns: tuple[Turn, ...] = ()
    text: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    """Definitions of the functions the assistant may call."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Values of the columns that `dataset.split` names, by column."""
    joined: tuple[SourceRow, ...] = ()
    """The rows it was made of, where there are several."""

    @property
    def num_rows(self) -> int:
        return len(self.joined) or 1

    def messages(self) -> list[dict[str, Any]]:
        """In the form chat templates take."""
        return [turn.message() for turn in self.turns]

    def content(self) -> dict[str, Any]:
        """What the row holds, as JSON."""
        if self.text is not None:
            return {"text": self.text}
        messages: dict[str, Any] = {"messages": self.messages()}
        return messages | ({"tools": list(self.tools)} if self.tools else {})

    def words(self) -> list[str]:
        """The words that tell rows apart: those of users and answers, not of the system message."""
        parts = [self.text] if self.text is not None else []
        for turn in self.turns:
            if turn.role != SYSTEM:
                parts += [turn.content, *(json.dumps(call) for call in turn.tool_calls)]
        return _normalise(" ".join(parts)).lower().split()

    def content_key(self) -> bytes:
        """Digest of the normalised content: Unicode form and white space do not count."""
        content: Any = [
            [turn.role, _normalise(turn.content), *([dict(turn.extra)] if turn.extra else [])]
            for turn in self.turns
        ]
        if self.text is not None:
            content = _normalise(self.text)
        if self.tools:
            content = [content, list(self.tools)]
        text = json.dumps(content, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).digest()[:KEY_BYTES]

    def left_out(self, reason: str, detail: str) -> BadRow:
        """Every row of it as one that is not used; `detail` is true of the whole."""
        if not self.joined:
            preview = preview_of(self.content())
            return BadRow(place=self.place, reason=reason, detail=detail, preview=preview)
        lines = f"{self.joined[0].place.line} to {self.joined[-1].place.line}"
        first, *others = (
            BadRow(
                place=row.place,
                reason=reason,
                detail=f"is of the conversation in rows {lines}, which {detail}",
                preview=preview_of(row.fields),
            )
            for row in self.joined
        )
        return replace(first, companions=tuple(others))


def _normalise(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
