"""Text that an earlier program has damaged: read in a wrong encoding, or with bytes lost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from anneal_pipeline.data.conversation import Conversation
from anneal_pipeline.data.row_error import DAMAGED_TEXT, RowError

_LOST = "\ufffd"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
# What the first byte of a UTF-8 letter or quotation mark becomes when it is read as Windows-1252.
_MISREAD = re.compile("[\u00c2\u00c3\u00e2][\u0080-\u00bf\u0152-\u0178\u2018-\u203a\u20ac\u2122]+")


def require_sound_text(conversation: Conversation) -> None:
    """Raise a `RowError` that names the damage and shows it."""
    for text in _texts(conversation.content()):
        damage = _damage_of(text)
        if damage:
            raise RowError(DAMAGED_TEXT, damage)


def is_sound(conversation: Conversation) -> bool:
    return not any(map(_damage_of, _texts(conversation.content())))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _damage_of(text: str) -> str | None:
    if text.isascii() and not _CONTROL.search(text):
        return None
    if _SURROGATE.search(text):
        return "has half of a character (a lone surrogate such as \\ud83d); escape both halves"
    if _LOST in text:
        at = text.index(_LOST)
        return f"has lost characters (U+FFFD in {text[max(0, at - 12) : at + 12]!r})"
    found = _CONTROL.search(text)
    if found:
        return f"has the control character U+{ord(found.group()):04X}"
    for run in _MISREAD.finditer(text):
        meant = _repaired(run.group())
        if meant:
            return (
                f"has UTF-8 that was read as Latin-1 ({run.group()!r} stands for {meant!r}); "
                "export the file anew as UTF-8, or correct dataset.encoding if it is set"
            )
    return None


def _repaired(run: str) -> str | None:
    for encoding in ("cp1252", "latin-1"):
        try:
            return run.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
    return None
