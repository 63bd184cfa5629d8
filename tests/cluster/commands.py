"""Runs other programs to their end and turns their failure into a sentence."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from errors import ClusterError

Word = str | Path
TAIL_LINES = 15


def run(
    argv: Sequence[Word],
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> str:
    """Run a program and return its standard output; `environment` is laid over our own.

    Raises ClusterError with the last lines of what it printed when it fails.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError(
            f"{words[0]} is not installed: run `python3 tests/cluster/cluster.py needs`"
        ) from error
    if done.returncode != 0:
        said = (done.stderr + done.stdout).strip().splitlines()[-TAIL_LINES:]
        raise ClusterError(
            f"`{' '.join(words)}` ended with exit code {done.returncode}:\n" + "\n".join(said)
        )
    return done.stdout


def succeeds(argv: Sequence[Word]) -> bool:
    """Whether a program that is allowed to fail ended well; what it prints is dropped."""
    try:
        done = subprocess.run(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0
