"""A prepared split on disk: `rows.jsonl` for people, `tokens.safetensors` for the trainer.

The tensors are `ids` (int32) and `is_response` (uint8), rows laid end to end, and `offsets` (int64,
one more than rows). The files are a pure function of the rows, so their hash is the data's digest.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from anneal_pipeline.data.conversation import Conversation
from anneal_pipeline.data.tokens import TokenRow

ROWS_NAME = "rows.jsonl"
TOKENS_NAME = "tokens.safetensors"


@dataclass(frozen=True, kw_only=True)
class PreparedSplit:
    """The token ids of one split, and which of them the assistant wrote."""

    ids: torch.Tensor
    is_response: torch.Tensor
    offsets: torch.Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> list[int]:
        lengths: list[int] = (self.offsets[1:] - self.offsets[:-1]).tolist()
        return lengths

    def row(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, is_response) of one row."""
        span = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.ids[span], self.is_response[span]


@dataclass
class SplitBuilder:
    """Collects rows in the order they come."""

    ids: array[int] = field(default_factory=lambda: array("i"))
    is_response: array[int] = field(default_factory=lambda: array("B"))
    offsets: array[int] = field(default_factory=lambda: array("q", [0]))
    conversations: list[Conversation] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.conversations)

    def add(self, conversation: Conversation, tokens: TokenRow) -> None:
        self.conversations.append(conversation)
        self.ids.extend(tokens.ids)
        self.is_response.extend(tokens.is_response)
        self.offsets.append(len(self.ids))

    def write(self, folder: Path) -> PreparedSplit:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ROWS_NAME).open("w", encoding="utf-8") as file:
            for conversation in self.conversations:
                place = conversation.place
                row = {"file": place.file, "line": place.line, "messages": conversation.messages()}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        tensors = {
            "ids": torch.tensor(self.ids, dtype=torch.int32),
            "is_response": torch.tensor(self.is_response, dtype=torch.uint8),
            "offsets": torch.tensor(self.offsets, dtype=torch.int64),
        }
        save_file(tensors, folder / TOKENS_NAME)
        return PreparedSplit(**tensors)


def read_split(folder: Path) -> PreparedSplit:
    return PreparedSplit(**load_file(folder / TOKENS_NAME))


def read_messages(folder: Path, *, limit: int) -> list[list[dict[str, str]]]:
    """The messages of the first rows of a split."""
    with (folder / ROWS_NAME).open(encoding="utf-8") as file:
        return [json.loads(line)["messages"] for line, _ in zip(file, range(limit), strict=False)]
