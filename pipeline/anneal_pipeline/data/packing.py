"""Which rows share a sequence: best-fit decreasing over their lengths.

Rows and sequences are numbers in arrays, four bytes each, because there may be millions of them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class PackingReport:
    """How the training rows were packed."""

    num_sequences: int
    sequence_length: int
    fill_share: float
    """Tokens over what the sequences would hold."""

    def __str__(self) -> str:
        return (
            f"{self.num_sequences} sequences of up to {self.sequence_length} tokens, "
            f"{100 * self.fill_share:.1f} % filled"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """The rows of each sequence, laid end to end."""

    rows: NDArray[np.uint32]
    starts: NDArray[np.int64]
    """Where each sequence begins in `rows`, and at last their end."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, sequence: int) -> tuple[int, ...]:
        rows: list[int] = self.rows[self.starts[sequence] : self.starts[sequence + 1]].tolist()
        return tuple(rows)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (self[sequence] for sequence in range(len(self)))

    def lengths(self, row_lengths: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Tokens of each sequence."""
        ends = np.concatenate([[0], np.cumsum(row_lengths[self.rows], dtype=np.int64)])
        return np.diff(ends[self.starts]).astype(np.uint32)


def longest_first(lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Positions by falling length; of equal ones the earlier is first."""
    return np.argsort(-lengths.astype(np.int64), kind="stable")


def pack(lengths: Sequence[int], *, limit: int) -> Packed:
    """The rows of each sequence, none of which is longer than `limit`.

    Longest rows first, each into the fullest sequence that still has room for it: no two sequences
    that come out would fit into one. A row longer than `limit` gets a sequence of its own.
    """
    by_row = np.asarray(lengths, dtype=np.uint32)
    order = longest_first(by_row)
    placed = _places(array("I", by_row[order].tobytes()), limit=limit)
    # Stable: within a sequence the rows stay in the order in which they came to it.
    by_sequence = np.argsort(placed, kind="stable")
    counts = np.bincount(placed) if len(placed) else np.empty(0, dtype=np.int64)
    return Packed(
        rows=order[by_sequence].astype(np.uint32),
        starts=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64),
    )


def _places(falling: array[int], *, limit: int) -> NDArray[np.uint32]:
    """The sequence that each row goes to, for lengths from the longest on."""
    placed = array("I")
    num_sequences = 0
    by_room: dict[int, array[int]] = {}
    rooms: list[int] = []
    """The keys of `by_room` in order: at most `limit` of them, however many rows there are."""
    for length in falling:
        place = bisect_left(rooms, length)
        if place == len(rooms):
            number, room = num_sequences, limit
            num_sequences += 1
        else:
            room = rooms[place]
            number = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        placed.append(number)
        left = room - length
        if left > 0:
            if left not in by_room:
                by_room[left] = array("I")
                insort(rooms, left)
            by_room[left].append(number)
    return np.frombuffer(placed, dtype=np.uint32) if placed else np.empty(0, dtype=np.uint32)


def describe_packing(lengths: Sequence[int], *, limit: int) -> PackingReport:
    num_sequences = len(pack(lengths, limit=limit))
    return PackingReport(
        num_sequences=num_sequences,
        sequence_length=limit,
        fill_share=round(sum(lengths) / (num_sequences * limit), 4),
    )
