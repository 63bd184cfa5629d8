"""Memory does not grow with the file: the data stage, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "data.py"
SMALL, LARGE = 2, 16
"""MiB"""


def measure(kind: str, *, megabytes: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--format", kind, "--megabytes", str(megabytes)],
        check=True,
        stdout=subprocess.PIPE,
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_memory_does_not_grow_with_the_file(kind: str) -> None:
    small, large = (measure(kind, megabytes=size) for size in (SMALL, LARGE))
    assert large["rows"] > 6 * small["rows"]
    grown = large["anonymousMiB"] - small["anonymousMiB"]
    assert grown < (LARGE - SMALL) / 2, f"{grown} MiB more for {LARGE - SMALL} MiB of rows"
