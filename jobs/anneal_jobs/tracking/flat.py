"""Nested data as flat names, as MLflow parameters want it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(data: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """Leaves of nested data by dotted path; lists of plain values are one leaf."""
    leaves: dict[str, str] = {}
    for key, value in data.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            leaves |= flatten(value, prefix=path)
        elif isinstance(value, list | tuple):
            leaves[path] = ", ".join(str(item) for item in value)
        else:
            leaves[path] = str(value)
    return leaves
