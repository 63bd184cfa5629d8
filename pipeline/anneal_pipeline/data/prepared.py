"""A prepared split on disk: `rows.jsonl` for people, `tokens.safetensors` for the trainer.

The tensors are `ids` (int32) and `is_response` (uint8), rows laid end to end, and `offsets` (int64,
one more than rows). The files are a pure function of the rows, so their hash is the data's digest.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self, TextIO

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from anneal_pipeline.data.conversation import Conversation
from anneal_pipeline.data.tokens import TokenRow

ROWS_NAME = "rows.jsonl"
TOKENS_NAME = "tokens.safetensors"
_SPILLED = {"ids": np.int32, "is_response": np.uint8}
_SPILL_SUFFIX = ".partial"


@dataclass(frozen=True, kw_only=True)
class PreparedSplit:
    """The token ids of one split, and which of them the assistant wrote."""

    ids: torch.Tensor
    is_response: torch.Tensor
    offsets: torch.Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> array[int]:
        """Tokens of each row."""
        return array("I", np.diff(self.offsets.numpy()).astype(np.uint32).tobytes())

    def row(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, is_response) of one row."""
        span = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.ids[span], self.is_response[span]


@dataclass
class SplitBuilder:
    """Writes rows in the order they come; in memory it keeps eight bytes for each."""

    folder: Path
    offsets: array[int] = field(default_factory=lambda: array("q", [0]))
    _rows: TextIO = field(init=False)
    _spills: dict[str, BinaryIO] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self._rows = (self.folder / ROWS_NAME).open("w", encoding="utf-8")
        self._spills = {name: self._spill(name).open("wb") for name in _SPILLED}

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def _spill(self, name: str) -> Path:
        return self.folder / f"{name}{_SPILL_SUFFIX}"

    def add(self, conversation: Conversation, tokens: TokenRow) -> None:
        place = conversation.place
        row = {"file": place.file, "line": place.line, **conversation.content()}
        self._rows.write(json.dumps(row, ensure_ascii=False) + "\n")
        for name, values in (("ids", tokens.ids), ("is_response", tokens.is_response)):
            self._spills[name].write(np.asarray(values, dtype=_SPILLED[name]).tobytes())
        self.offsets.append(self.offsets[-1] + len(tokens.ids))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._rows.close()
        for file in self._spills.values():
            file.close()

    def finish(self) -> PreparedSplit:
        self.close()
        tensors = {name: self._spilled(name) for name in _SPILLED}
        tensors["offsets"] = torch.tensor(self.offsets, dtype=torch.int64)
        save_file(tensors, self.folder / TOKENS_NAME)
        for name in _SPILLED:
            self._spill(name).unlink()
        return read_split(self.folder)

    def _spilled(self, name: str) -> torch.Tensor:
        """The values as a tensor over the file; they are never all in memory."""
        dtype = _SPILLED[name]
        if not len(self):
            return torch.from_numpy(np.empty(0, dtype=dtype))
        # Opened for writing, which nobody does, because torch knows no read-only tensors.
        return torch.from_numpy(np.memmap(self._spill(name), dtype=dtype, mode="r+"))


def read_split(folder: Path) -> PreparedSplit:
    return PreparedSplit(**load_file(folder / TOKENS_NAME))


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a split as they were written, with `messages` (and `tools`) or `text`."""
    with (folder / ROWS_NAME).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
