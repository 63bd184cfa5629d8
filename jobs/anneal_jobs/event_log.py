"""What happened in an attempt, one JSON object a line: for programs, beside the log for people.

Keys: time (UTC), run (MLflow's id), attempt, step, event, fields. Values that are no numbers are
null, since JSON has none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anneal_jobs.redaction import redact

EVENTS_NAME = "events.jsonl"


class EventLog:
    """Begins anew with each attempt. A line is in the file once it is written."""

    def __init__(self, path: Path, *, run: str, attempt: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        self._path = path
        self._common = {"run": run, "attempt": attempt}

    def write(self, event: str, *, step: int | None, fields: Mapping[str, Any]) -> None:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **self._common,
            "step": step,
            "event": event,
            "fields": _plain(fields),
        }
        text = json.dumps(line, ensure_ascii=False, allow_nan=False, default=str)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{redact(text)}\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
