"""A row as every later stage sees it: the turns of one conversation."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from dataclasses import dataclass

from anneal_pipeline.data.jsonl import Place

SYSTEM = "system"
USER = "user"
ASSISTANT = "assistant"
ROLES = (SYSTEM, USER, ASSISTANT)


@dataclass(frozen=True)
class Turn:
    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns up to and with the last assistant turn."""

    place: Place
    turns: tuple[Turn, ...]

    def messages(self) -> list[dict[str, str]]:
        """In the form chat templates take."""
        return [{"role": turn.role, "content": turn.content} for turn in self.turns]

    def content_key(self) -> str:
        """SHA-256 of the normalised content: Unicode form and white space do not count."""
        content = [[turn.role, _normalise(turn.content)] for turn in self.turns]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def _normalise(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
