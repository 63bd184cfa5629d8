"""Runs other programs to their end and turns their failure into a sentence."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from failure import DemoError

TAIL_LINES = 25
Words = Sequence[str | Path]


def run(
    words: Words,
    *,
    environment: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> str:
    """Run a program and return its standard output; raise DemoError with what it said last."""
    done = _run(words, environment=environment, stdin=stdin)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()[-TAIL_LINES:]
        raise DemoError(
            f"`{_line(words)}` ended with exit code {done.returncode}:\n" + "\n".join(said)
        )
    return done.stdout


def output_of(words: Words, *, environment: Mapping[str, str] | None = None) -> str:
    """Return all a program says, whether it ends well or not."""
    done = _run(words, environment=environment, stdin=None)
    return done.stdout + done.stderr


def run_aloud(words: Words, *, environment: Mapping[str, str] | None = None) -> None:
    """Run a program that speaks for itself on this terminal."""
    code = subprocess.run(
        [str(word) for word in words], env=_environment(environment), check=False
    ).returncode
    if code != 0:
        raise DemoError(f"`{_line(words)}` ended with exit code {code}; see what it said above")


def _run(
    words: Words, *, environment: Mapping[str, str] | None, stdin: str | None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [str(word) for word in words],
            env=_environment(environment),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise DemoError(
            f"there is no program {words[0]}: run `make demo`, not this file"
        ) from error


def _environment(extra: Mapping[str, str] | None) -> dict[str, str] | None:
    return None if extra is None else {**os.environ, **extra}


def _line(words: Words) -> str:
    return " ".join(str(word) for word in words)
