"""A dataset repository that holds several datasets: which one is meant has to be said.

The card of such a repository lists its configurations with the files of each. Read together they
would be trained on as one, which nobody means: other languages, other tasks, the same rows twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from anneal_pipeline.errors import DATASET_LAYOUT_UNKNOWN, UserError

_SHOWN_MAX = 5
_WILD = frozenset("*?[{")


def require_one(address: str, configurations: Sequence[Mapping[str, Any]]) -> None:
    """Refuse the repository at `address` as a whole, where it holds more than one dataset."""
    named = [entry for entry in configurations if "data_files" in entry or "data_dir" in entry]
    if len(named) < 2:
        return
    names = [str(entry.get("config_name", "default")) for entry in named]
    shown = ", ".join(names[:_SHOWN_MAX]) + (" ..." if len(names) > _SHOWN_MAX else "")
    places = own_places(named)
    example = f", for example {address}/{places[0]}" if places else ""
    raise UserError(
        DATASET_LAYOUT_UNKNOWN,
        f"{address} holds {len(names)} configurations, each a dataset of its own ({shown}); name "
        f"the folder or the file of one behind the repository{example}.",
    )


def own_places(configurations: Iterable[Mapping[str, Any]]) -> list[str]:
    """The folders and files that belong to one configuration alone, in their order."""
    found = [place for entry in configurations if (place := _place_of(entry))]
    shared = Counter(found)
    return [place for place in found if shared[place] == 1]


def _place_of(configuration: Mapping[str, Any]) -> str | None:
    """The one folder or file that all files of a configuration lie in."""
    if folder := configuration.get("data_dir"):
        return str(folder).strip("/")
    fixed = [_fixed_part(path) for path in _paths_of(configuration.get("data_files"))]
    common = fixed[0] if fixed else ()
    for parts in fixed[1:]:
        same = [one == other for one, other in zip(common, parts, strict=False)]
        common = common[: same.index(False) if False in same else len(same)]
    return "/".join(common) or None


def _paths_of(files: Any) -> list[str]:
    """The patterns of `data_files`: one, a list, or a list of splits with one or a list each."""
    if isinstance(files, str):
        return [files]
    if isinstance(files, Mapping):
        return _paths_of(files.get("path"))
    return [path for entry in files or () for path in _paths_of(entry)]


def _fixed_part(pattern: str) -> tuple[str, ...]:
    """The parts of a pattern before the first one that matches several names."""
    parts = PurePosixPath(pattern).parts
    wild = next((i for i, part in enumerate(parts) if _WILD & set(part)), len(parts))
    return parts[:wild]
