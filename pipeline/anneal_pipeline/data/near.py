"""Rows that differ in a few words: MinHash signatures, and clusters of similar ones.

Two rows count as near-duplicates when their sets of three consecutive words overlap by 0.8 or more
(Jaccard), estimated from 128 hash values: one changed word in about thirty. Signatures lie on the
disk, 512 bytes for a row, so that memory does not grow with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

NUM_HASHES = 128
SIMILARITY = 0.8
_BANDS, _ROWS_PER_BAND = 16, 8
"""A pair of similarity 0.8 shares one of 16 bands of 8 values with probability 0.95, one of 0.9
practically always, one of 0.6 in a quarter of the cases; what is met so is then compared."""
_SHINGLE_WORDS = 3
_CHUNK = 65_536

Pairs = NDArray[np.int64]
"""Shape (n, 2): the earlier row and the later one."""


class NearIndex:
    """Collects signatures in reading order, then tells which rows resemble each other.

    `on_work` hears how many more rows were compared; what it raises ends the comparison.
    """

    def __init__(self, path: Path, *, on_work: Callable[[int], None]) -> None:
        self._path = path
        self._on_work = on_work
        self._empty = MinHash(num_perm=NUM_HASHES, seed=1, scheme="affine32")
        self._num_rows = 0

    def __enter__(self) -> Self:
        self._file = self._path.open("w+b")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def add(self, words: Sequence[str]) -> None:
        signature = self._empty.copy()
        signature.update_batch([shingle.encode() for shingle in shingles(words)])
        self._file.write(signature.hashvalues.astype(np.uint32).tobytes())
        self._num_rows += 1

    def pairs(self) -> Pairs:
        """Each row with an earlier one that it resembles, where there is one."""
        if self._num_rows < 2:
            return np.empty((0, 2), dtype=np.int64)
        signatures = self._signatures()
        found = [
            pairs
            for band in range(_BANDS)
            for pairs in self._similar(signatures, self._same_band(signatures, band))
        ]
        return np.unique(np.concatenate(found), axis=0)

    def kept(self, members: NDArray[np.int64]) -> dict[int, int]:
        """Of rows in reading order, those that resemble an earlier kept one: row to kept row."""
        signatures = self._signatures()
        kept = [int(members[0])]
        repeats: dict[int, int] = {}
        for member in members[1:]:
            shares = (signatures[kept] == signatures[member]).mean(axis=1)
            nearest = int(shares.argmax())
            if shares[nearest] >= SIMILARITY:
                repeats[int(member)] = kept[nearest]
            else:
                kept.append(int(member))
            self._on_work(1)
        return repeats

    def _same_band(self, signatures: NDArray[np.uint32], band: int) -> Pairs:
        """Rows whose values of a band are equal, each paired with the first of them."""
        columns = slice(band * _ROWS_PER_BAND, (band + 1) * _ROWS_PER_BAND)
        odd = np.arange(1, 2 * _ROWS_PER_BAND, 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        keys = np.empty(len(signatures), dtype=np.uint64)
        for start in range(0, len(signatures), _CHUNK):
            part = signatures[start : start + _CHUNK, columns].astype(np.uint64)
            keys[start : start + _CHUNK] = (part * odd).sum(axis=1)
            self._on_work(len(part))
        return first_of_equal(keys)

    def _similar(self, signatures: NDArray[np.uint32], pairs: Pairs) -> Iterator[Pairs]:
        yield np.empty((0, 2), dtype=np.int64)
        for start in range(0, len(pairs), _CHUNK // 16):
            part = pairs[start : start + _CHUNK // 16]
            equal = signatures[part[:, 0]] == signatures[part[:, 1]]
            self._on_work(len(part))
            yield part[equal.mean(axis=1) >= SIMILARITY]

    def _signatures(self) -> NDArray[np.uint32]:
        self._file.flush()
        shape = (self._num_rows, NUM_HASHES)
        return np.memmap(self._path, dtype=np.uint32, mode="r", shape=shape)


def shingles(words: Sequence[str]) -> set[str]:
    """Runs of three words; a shorter text is one run."""
    last = max(1, len(words) - _SHINGLE_WORDS + 1)
    return {" ".join(words[i : i + _SHINGLE_WORDS]) for i in range(last)}


def first_of_equal(keys: NDArray[np.uint64]) -> Pairs:
    """Every index whose key an earlier one has, with the first that has it."""
    order = np.argsort(keys, kind="stable")
    is_first = np.ones(len(keys), dtype=bool)
    is_first[1:] = keys[order][1:] != keys[order][:-1]
    firsts = order[np.flatnonzero(is_first)[np.cumsum(is_first) - 1]]
    return np.stack([firsts[~is_first], order[~is_first]], axis=1)


def components(num_rows: int, pairs: Pairs) -> NDArray[np.int64]:
    """A number for every row; rows joined by pairs, directly or over others, have the same one."""
    links = coo_array(
        (np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(num_rows, num_rows)
    )
    labels: NDArray[np.int64] = connected_components(links, directed=False)[1].astype(np.int64)
    return labels
