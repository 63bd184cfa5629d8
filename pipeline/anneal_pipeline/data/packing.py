"""Which rows share a sequence: best-fit decreasing over their lengths."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass


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


def pack(lengths: Sequence[int], *, limit: int) -> list[tuple[int, ...]]:
    """The rows of each sequence, none of which is longer than `limit`.

    Longest rows first, each into the fullest sequence that still has room for it: no two sequences
    that come out would fit into one. A row longer than `limit` gets a sequence of its own.
    """
    sequences: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    """The keys of `by_room` in order: at most `limit` of them, however many rows there are."""
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        length = lengths[row]
        place = bisect_left(rooms, length)
        if place == len(rooms):
            number, room = len(sequences), limit
            sequences.append([])
        else:
            room = rooms[place]
            number = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        sequences[number].append(row)
        left = room - length
        if left > 0:
            if left not in by_room:
                by_room[left] = []
                insort(rooms, left)
            by_room[left].append(number)
    return [tuple(rows) for rows in sequences]


def describe_packing(lengths: Sequence[int], *, limit: int) -> PackingReport:
    num_sequences = len(pack(lengths, limit=limit))
    return PackingReport(
        num_sequences=num_sequences,
        sequence_length=limit,
        fill_share=round(sum(lengths) / (num_sequences * limit), 4),
    )
