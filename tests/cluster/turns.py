"""One at a time: programs that would make the same thing take turns, or say who is first.

The lock ends with the process that holds it, however that ends; the empty file stays.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from errors import ClusterError
from steps import say


@contextmanager
def take_turn(lock: Path) -> Iterator[None]:
    """Wait until nobody else is at work on the same thing."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"  waiting for another process that holds {lock}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def be_the_only_one(lock: Path, *, doing: str) -> Iterator[None]:
    """Refuse with a sentence when somebody else is at it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ClusterError(f"another {doing} is at work: wait for it to end") from error
        yield
