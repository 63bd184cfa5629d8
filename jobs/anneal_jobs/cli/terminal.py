"""The output layer of the command line: data to stdout, everything else to stderr.

rich leaves colour out where NO_COLOR is set or the output is no terminal.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator

import typer
from rich.console import Console

from anneal_jobs.errors import UsageError
from anneal_pipeline.errors import UserError

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_USER = 65


def stdout() -> Console:
    return Console(soft_wrap=True, highlight=False)


def stderr() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False)


def fail(message: str) -> None:
    """One sentence on stderr."""
    stderr().print(f"[red]error:[/red] {_escaped(message)}")


@contextlib.contextmanager
def one_sentence_errors(*kinds: type[Exception]) -> Iterator[None]:
    """End the command with the error's own words and its exit code."""
    try:
        yield
    except kinds as error:
        fail(str(error))
        raise typer.Exit(_code_of(error)) from None


def _code_of(error: Exception) -> int:
    if isinstance(error, UsageError):
        return EXIT_USAGE
    return EXIT_USER if isinstance(error, UserError) else EXIT_FAILURE


def width() -> int | None:
    """Columns of the terminal that data goes to; None where it goes to a program or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_data(text: str) -> None:
    """Plain data, never wrapped or coloured."""
    sys.stdout.write(f"{text}\n")


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
