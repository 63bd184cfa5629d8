"""Times as the API server keeps them: UTC, whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime


def parse_time(text: str | None) -> datetime | None:
    """Read a metav1.Time or MicroTime."""
    if not text:
        return None
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def utc_now() -> datetime:
    """The wall clock, cut to seconds: what is written must be what is read back."""
    return datetime.now(tz=UTC).replace(microsecond=0)
