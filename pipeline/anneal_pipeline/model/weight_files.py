"""Whether a base model's weights are all there and whole.

A file that an upload cut off, a shard that is not there or a weight that no file has would end a
run minutes later, in words of a library, or not at all: transformers fills a weight it misses with
random numbers and goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from anneal_pipeline.errors import MODEL_UNSUPPORTED, UserError

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_SHOWN_MAX = 3


def weight_files(folder: Path, *, uri: str) -> list[Path]:
    """The files that loading reads: the one file, or what the index names."""
    if (folder / WEIGHTS_NAME).is_file() or not (folder / INDEX_NAME).is_file():
        return sorted(folder.glob(WEIGHTS_NAME))
    try:
        weight_map: Mapping[str, str] = json.loads((folder / INDEX_NAME).read_bytes())["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _incomplete(uri, f"has an {INDEX_NAME} that cannot be read ({error!r})") from error
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise _incomplete(
            uri,
            f"lacks {_listed(missing)} of the {len(names)} weight files that its {INDEX_NAME} "
            "names",
        )
    return [folder / name for name in names]


def check_weight_files(folder: Path, *, uri: str) -> None:
    """Refuse missing and cut off weight files, by their heads: no weight is read."""
    for path in weight_files(folder, uri=uri):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            size = path.stat().st_size
            raise _incomplete(
                uri, f"has a damaged weight file, {path.name} of {size:,} bytes ({error})"
            ) from error


def weight_bytes(folder: Path, *, uri: str) -> int:
    """What the weights take as they were published."""
    return sum(path.stat().st_size for path in weight_files(folder, uri=uri))


def require_all_loaded(info: Mapping[str, Any], *, uri: str) -> None:
    """Refuse a model of whose weights some were not in its files, or there in another shape.

    `info` is what `from_pretrained` tells with `output_loading_info`.
    """
    if missing := sorted(info["missing_keys"]):
        raise _incomplete(
            uri,
            f"has no numbers for {_listed(missing)} in its weight files, although its config.json "
            "asks for them",
        )
    if mismatched := sorted(info["mismatched_keys"]):
        name, stored, wanted = mismatched[0]
        raise _incomplete(
            uri,
            f"has {name} of shape {list(stored)} in its weight files, where its config.json "
            f"expects {list(wanted)}",
        )


def _incomplete(uri: str, what: str) -> UserError:
    return UserError(
        MODEL_UNSUPPORTED,
        f"The model at {uri} {what}; upload the model's own files again, all of one version.",
    )


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    more = len(shown) - _SHOWN_MAX
    return ", ".join(shown[:_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
