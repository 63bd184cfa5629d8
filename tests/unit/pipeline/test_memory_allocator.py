"""A heap that is held tight keeps nothing of what was freed."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from anneal_pipeline.memory.allocator import give_back_holes, return_freed_blocks
from anneal_pipeline.memory.room import resident_bytes

def block():
    return bytearray(b"x" * (2 << 20))

for _ in range(3):
    block()  # glibc takes the size for a usual one from now on
if sys.argv[1] == "tight":
    assert return_freed_blocks()
before = resident_bytes()
blocks = [block() for _ in range(50)]
last = block()
del blocks
if sys.argv[1] == "trimmed":
    assert give_back_holes()
print((resident_bytes() - before) >> 20)
"""


@pytest.mark.parametrize(
    ("mode", "least", "most"), [("loose", 80, 250), ("tight", 0, 20), ("trimmed", 0, 20)]
)
def test_freed_blocks_are_kept_unless_the_heap_is_tight_or_gives_them_back(
    mode: str, least: int, most: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True
    )
    assert least <= int(done.stdout) <= most
