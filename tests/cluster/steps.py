"""What the test cluster says while it works: each step by its name, then the time it took."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def say(line: str) -> None:
    """Write one line for the person who waits.

    Goes to standard error: standard output carries only what another program may read.
    """
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


@contextmanager
def step(name: str) -> Iterator[None]:
    """Name a step before it starts and tell its seconds when it ends, or that it failed."""
    say(f"  {name} ...")
    start = time.monotonic()
    try:
        yield
    except BaseException:
        say(f"  {name} stopped after {time.monotonic() - start:.1f} s")
        raise
    say(f"  {name}: {time.monotonic() - start:.1f} s")
