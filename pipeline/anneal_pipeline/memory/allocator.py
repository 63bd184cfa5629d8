"""Holding the C library's heap tight.

glibc keeps freed blocks of up to 32 MiB in a heap with holes, which no other block may fit: on the
CPU the resident set of a step was 1.5 to 2.5 times what its tensors held. With a fixed threshold
they are mapped and unmapped one by one: the resident set is that of the tensors, and the kernel
clears more pages (a third more processor time where that was measured). So it is done where memory
is tight, and only there.
"""

from __future__ import annotations

import ctypes

THRESHOLD_BYTES = 1 << 20
TIGHT_SHARE = 0.5
"""Of the memory there is: where more than that is held, or planned, the heap is held tight."""
_M_MMAP_THRESHOLD = -3
"""Of malloc.h."""


def return_freed_blocks() -> bool:
    """From now on give blocks back when they are freed; False where the C library cannot."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not mallopt(_M_MMAP_THRESHOLD, THRESHOLD_BYTES):
        return False
    return give_back_holes()


def give_back_holes() -> bool:
    """Give back the pages that are free now, which says nothing of later ones; False as above."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim(0)
    return True
