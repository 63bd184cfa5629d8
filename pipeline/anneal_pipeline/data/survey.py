"""The first pass over the rows: what is repeated, what belongs together, which side it falls on.

Nothing of a row is kept but a few numbers, so that the data may be larger than memory; the second
pass (`prepare`) reads the files again and asks here for each row.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from anneal_pipeline.config.dataset import DatasetConfig, SplitConfig
from anneal_pipeline.data.conversation import Conversation
from anneal_pipeline.data.files import SPLITS, TRAIN
from anneal_pipeline.data.near import NearIndex, Pairs, components, first_of_equal
from anneal_pipeline.data.rows import Place
from anneal_pipeline.data.split import (
    Sides,
    group_key,
    position_of,
    sides_of,
    stratified_sides_of,
)
from anneal_pipeline.errors import DATASET_LAYOUT_UNKNOWN, UserError

DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near-duplicate"
LEAK = "repeats-held-out-row"
NEAR_LEAK = "resembles-held-out-row"

OPEN = -1
"""The side of a row that the split decides."""
_TRAIN = SPLITS.index(TRAIN)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    side: str
    dropped: str | None = None
    """Reason, when the row repeats or resembles another."""
    detail: str = ""


@dataclass
class Survey:
    config: DatasetConfig
    split: SplitConfig
    near: NearIndex
    _keys: array[int] = field(default_factory=lambda: array("Q"))
    _order: array[int] = field(default_factory=lambda: array("Q"))
    _positions: array[float] = field(default_factory=lambda: array("d"))
    _sides: array[int] = field(default_factory=lambda: array("b"))
    _lines: array[int] = field(default_factory=lambda: array("q"))
    _files: array[int] = field(default_factory=lambda: array("l"))
    _names: dict[str, int] = field(default_factory=dict)
    _groups: array[int] = field(default_factory=lambda: array("Q"))
    _strata: list[str] = field(default_factory=list)
    _labels_seen: set[str] = field(default_factory=set)

    def add(self, conversation: Conversation, *, side: str | None) -> None:
        """Take note of a row; `side` is None where the split decides."""
        key = conversation.content_key()
        self._keys.append(_number(key))
        group = self._group_of(conversation)
        self._groups.append(_number(group or key))
        split_key = group or key
        self._order.append(_number(split_key))
        self._positions.append(position_of(split_key, seed=self.split.seed))
        self._sides.append(OPEN if side is None else SPLITS.index(side))
        place = conversation.place
        self._lines.append(place.line)
        self._files.append(self._names.setdefault(place.file, len(self._names)))
        if self.split.stratify_by:
            self._strata.append(conversation.labels.get(self.split.stratify_by, ""))
        self._labels_seen.update(conversation.labels)
        self.near.add(conversation.words())

    def _group_of(self, conversation: Conversation) -> bytes | None:
        value = conversation.labels.get(self.split.group_by or "")
        return None if value is None else group_key(value)

    def __len__(self) -> int:
        return len(self._keys)

    def judge(self) -> Judgement:
        if not len(self):
            return Judgement(survey=self, sides=np.empty(0, dtype=np.int8), repeats={})
        keys = np.frombuffer(self._keys, dtype=np.uint64)
        equal = first_of_equal(keys)
        near = self.near.pairs()
        units = self._units(equal, near)
        sides = self._decide_sides(units, near=near)
        repeats = self._exact_repeats(equal, sides)
        if self.config.filters.deduplicate == "near":
            clusters = components(len(self), np.concatenate([equal, near]))
            repeats |= self._near_repeats(clusters, sides, exact=repeats)
        near = near[keys[near[:, 0]] != keys[near[:, 1]]]
        dropped = np.isin(near[:, 1], list(repeats))
        leaks = near[~dropped & (sides[near[:, 0]] != sides[near[:, 1]])]
        return Judgement(
            survey=self,
            sides=sides,
            repeats=repeats,
            num_near=len(np.unique(near[:, 1])),
            num_near_leaks=len(np.unique(leaks[:, 1])),
        )

    def _units(self, equal: Pairs, near: Pairs) -> NDArray[np.int64]:
        groups = first_of_equal(np.frombuffer(self._groups, dtype=np.uint64))
        return components(len(self), np.concatenate([equal, near, groups]))

    def _decide_sides(self, units: NDArray[np.int64], *, near: Pairs) -> Sides:
        fixed = np.frombuffer(self._sides, dtype=np.int8)
        order = np.frombuffer(self._order, dtype=np.uint64)
        positions = np.frombuffer(self._positions, dtype=np.float64)
        if self.split.stratify_by:
            decided = stratified_sides_of(
                units, order=order, positions=positions, strata=self._strata, config=self.split
            )
        else:
            decided = sides_of(units, order=order, positions=positions, config=self.split)
        if not self.split.group_by:
            self._leave_large_units_in_train(units, decided)
        return np.where(fixed == OPEN, decided, fixed)

    def _leave_large_units_in_train(self, units: NDArray[np.int64], decided: Sides) -> None:
        """A cluster of more rows than a held-out side is meant to have would be all of it."""
        sizes = np.bincount(units)[units]
        held_out = (self.split.validation + self.split.test) * len(self)
        decided[(sizes > 1) & (sizes > held_out)] = _TRAIN

    def _exact_repeats(self, equal: Pairs, sides: Sides) -> dict[int, tuple[str, int]]:
        """Rows that are dropped for being equal to one before: row to (reason, that row)."""
        repeats = {}
        for earlier, row in equal.tolist():
            if sides[earlier] != sides[row]:
                repeats[row] = (LEAK, earlier)
            elif self.config.filters.deduplicate != "off":
                repeats[row] = (DUPLICATE, earlier)
        return repeats

    def _near_repeats(
        self, clusters: NDArray[np.int64], sides: Sides, *, exact: Mapping[int, tuple[str, int]]
    ) -> dict[int, tuple[str, int]]:
        found: dict[int, tuple[str, int]] = {}
        by_cluster = np.argsort(clusters, kind="stable")
        starts = np.flatnonzero(np.diff(clusters[by_cluster], prepend=-1))
        for members in np.split(by_cluster, starts[1:]):
            left = np.array([row for row in members.tolist() if row not in exact], dtype=np.int64)
            if len(left) < 2:
                continue
            for row, earlier in self.near.kept(left).items():
                is_leak = sides[row] != sides[earlier]
                found[row] = (NEAR_LEAK if is_leak else NEAR_DUPLICATE, earlier)
        return found

    def place(self, row: int) -> Place:
        names = list(self._names)
        return Place(file=names[self._files[row]], line=self._lines[row])

    def require_labels(self) -> None:
        """Refuse a split by a column that no row has."""
        for column in label_columns(self.split):
            if len(self) and column not in self._labels_seen:
                raise UserError(
                    DATASET_LAYOUT_UNKNOWN,
                    f"dataset.split names the column {column}, which no row has; correct "
                    "stratifyBy or groupBy",
                )


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the survey found, row by row in reading order."""

    survey: Survey
    sides: Sides
    repeats: Mapping[int, tuple[str, int]]
    num_near: int = 0
    """Rows that resemble an earlier one without being equal to it."""
    num_near_leaks: int = 0
    """Those of them that stay in use and stand on another side, as the user's split has it."""

    def of(self, row: int) -> Verdict:
        side = SPLITS[self.sides[row]]
        if row not in self.repeats:
            return Verdict(side=side)
        reason, earlier = self.repeats[row]
        place = self.survey.place(earlier)
        verb = "repeats" if reason in (DUPLICATE, LEAK) else "resembles"
        detail = f"{verb} row {place.line} of {place.file}"
        return Verdict(side=side, dropped=reason, detail=detail)


def label_columns(split: SplitConfig) -> tuple[str, ...]:
    return tuple(name for name in (split.stratify_by, split.group_by) if name)


def open_side(file_split: str, *, is_split: bool, has_validation: bool) -> str | None:
    """The side of the rows of a file, or None where the split decides."""
    if not is_split or (file_split == TRAIN and not has_validation):
        return None
    return file_split


def _number(key: bytes) -> int:
    return int.from_bytes(key[:8], "big")
