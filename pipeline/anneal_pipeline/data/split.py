"""Which side of the split a row falls on, from its content alone.

Adding or removing rows moves no other row; equal rows fall on the same side.
"""

from __future__ import annotations

import hashlib

from anneal_pipeline.config.dataset import SplitConfig
from anneal_pipeline.data.files import TEST, TRAIN, VALIDATION


def position_of(content_key: str, *, seed: int) -> float:
    """A number in [0, 1) that content and seed decide."""
    digest = hashlib.sha256(f"{seed}:{content_key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def side_of(content_key: str, *, config: SplitConfig) -> str:
    position = position_of(content_key, seed=config.seed)
    if position < config.test:
        return TEST
    return VALIDATION if position < config.test + config.validation else TRAIN
