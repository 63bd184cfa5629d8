"""Why a single row cannot be used; it goes to quarantine and the others are read on."""

from __future__ import annotations

MISSING_FIELD = "missing-field"
NOT_TEXT = "not-text"
UNKNOWN_ROLE = "unknown-role"
NO_ASSISTANT = "no-assistant-message"
EMPTY_RESPONSE = "empty-response"
EMPTY_PROMPT = "empty-prompt"
EMPTY_TEXT = "empty-text"
INVALID_TOOLS = "invalid-tools"
DAMAGED_TEXT = "damaged-text"


class RowError(Exception):
    """`detail` completes the sentence "Row N of FILE ..."."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
