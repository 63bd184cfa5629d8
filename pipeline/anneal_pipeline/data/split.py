"""Which side of the split a row falls on, from its content alone.

Rows that belong together (equal, near-duplicates, or of one `groupBy` value) form a unit and fall
on the same side. The side follows from a hash of the unit's smallest member: adding or removing
rows moves no other row, unless a new row joins two units, or a large unit of near-duplicates comes
below the held-out share of all rows: it is trained on while it is above. With `stratifyBy` the
proportions of each value outrank that: as a value gets more rows, single ones at the border change
sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from anneal_pipeline.config.dataset import SplitConfig
from anneal_pipeline.data.files import SPLITS, TEST, TRAIN, VALIDATION

Sides = NDArray[np.int8]
"""Index into SPLITS for every row."""
Units = NDArray[np.int64]
"""A number for every row; rows of one unit have the same."""


def position_of(key: bytes, *, seed: int) -> float:
    """A number in [0, 1) that content and seed decide."""
    digest = hashlib.sha256(b"%d:%s" % (seed, key.hex().encode())).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def group_key(value: str) -> bytes:
    """What stands for a row's content where its group decides."""
    return hashlib.sha256(b"group:" + value.encode()).digest()[:16]


def shares_of(config: SplitConfig, *, has_test: bool) -> SplitConfig:
    """The shares of rows that are not split yet; where a test file came with them, it is the test
    side and the others share the rest."""
    if not has_test:
        return config
    validation = config.validation
    return config.model_copy(
        update={"train": 1 - validation, "validation": validation, "test": 0.0}
    )


def sides_of(
    units: Units, *, order: NDArray[np.uint64], positions: NDArray[np.float64], config: SplitConfig
) -> Sides:
    """The side of every row; `order` and `positions` come from the rows' keys."""
    first = _first_members(units, order)
    return _sides_at(positions[first], config=config)[units]


def stratified_sides_of(
    units: Units,
    *,
    order: NDArray[np.uint64],
    positions: NDArray[np.float64],
    strata: Sequence[str],
    config: SplitConfig,
) -> Sides:
    """The same, so that every value of a column has the shares of the split.

    Within a value, units are taken by their position until the test rows are full, then the
    validation rows. A unit counts for the value of its smallest member.
    """
    first = _first_members(units, order)
    sizes = np.bincount(units)
    numbers = {value: number for number, value in enumerate(sorted(set(strata)))}
    stratum = np.array([numbers[strata[row]] for row in first])
    sides = np.full(len(first), SPLITS.index(TRAIN), dtype=np.int8)
    for number in numbers.values():
        members = np.flatnonzero(stratum == number)
        members = members[np.argsort(positions[first[members]], kind="stable")]
        # A unit is where its middle row is.
        middles = np.cumsum(sizes[members]) - sizes[members] / 2
        sides[members] = _sides_at(middles / sizes[members].sum(), config=config)
    return sides[units]


def _sides_at(positions: NDArray[np.float64], *, config: SplitConfig) -> Sides:
    sides = np.full(len(positions), SPLITS.index(TRAIN), dtype=np.int8)
    sides[positions < config.test + config.validation] = SPLITS.index(VALIDATION)
    sides[positions < config.test] = SPLITS.index(TEST)
    return sides


def _first_members(units: Units, order: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For every unit the row that is smallest in `order`."""
    by_order = np.argsort(order, kind="stable")
    _, first = np.unique(units[by_order], return_index=True)
    return by_order[first]
