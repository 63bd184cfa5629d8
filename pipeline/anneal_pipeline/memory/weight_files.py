"""Names, types and shapes of a model's weights, from the headers of its safetensors files.

A header is a length of 8 bytes and then JSON, so that neither torch nor the weights are needed.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anneal_pipeline.errors import MODEL_NOT_SAFETENSORS, UserError

HEADER_BYTES_MAX = 100_000_000
"""The limit of the format itself."""


@dataclass(frozen=True)
class StoredTensor:
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_numbers(self) -> int:
        return math.prod(self.shape)


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the model in `folder`, whatever files it is spread over."""
    found: dict[str, StoredTensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in _read_header(path).items():
            if name != "__metadata__":
                found[name] = StoredTensor(entry["dtype"], tuple(entry["shape"]))
    return found


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > HEADER_BYTES_MAX:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(file.read(size))
    except (ValueError, struct.error) as error:
        raise UserError(
            MODEL_NOT_SAFETENSORS,
            f"{path.name} of the model is no safetensors file ({error}); upload it again",
        ) from error
    return dict(header)
