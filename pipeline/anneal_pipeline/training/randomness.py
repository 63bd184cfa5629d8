"""Random numbers that depend on seed, rank and step, and on nothing that came before.

Seeding every step makes a resumed run draw what the uninterrupted one drew, without generator
states in the checkpoint, and keeps an evaluation in between from changing the training.
"""

from __future__ import annotations

import random

import numpy
import torch

from anneal_pipeline.training.batches import seed_of


def seed_step(seed: int, *, rank: int, step: int) -> None:
    """Seed Python, NumPy, PyTorch and CUDA for one optimiser step of one rank."""
    value = seed_of(seed, "step", rank, step)
    random.seed(value)
    numpy.random.seed(value % 2**32)  # libraries draw from the global generator
    torch.manual_seed(value)
