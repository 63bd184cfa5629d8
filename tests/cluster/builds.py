"""Builds the programs that are missing and keeps them in the cache.

A program is in the cache when its file is: it is written beside and renamed, so an interrupted
build leaves nothing that looks finished.
"""

import os
import platform
from collections.abc import Iterable
from pathlib import Path

from commands import run
from errors import ClusterError
from links import point
from places import Places
from prebuilt import PREBUILT, fetch_prebuilt
from programs import PROGRAMS, Program
from steps import say, step
from turns import take_turn


def program_path(name: str, *, places: Places) -> Path:
    """Where this checkout's build of a program lies, whether it is there or not."""
    return places.bin / _find(name).file_name()


def build(names: Iterable[str], *, places: Places) -> None:
    """Make sure that the named programs are in the cache; build only what is missing."""
    for program in [_find(name) for name in names]:
        target = places.bin / program.file_name()
        if not target.exists():
            with take_turn(places.bin / f".{target.name}.lock"):
                if not target.exists():
                    _make(program, target=target, places=places)
        point(places.bin / program.name, target=target.name)


def missing(*, places: Places) -> list[str]:
    """The programs that a `build` of everything would make, in its order."""
    return [p.name for p in PROGRAMS if not (places.bin / p.file_name()).exists()]


def _find(name: str) -> Program:
    for program in PROGRAMS:
        if program.name == name:
            return program
    known = ", ".join(program.name for program in PROGRAMS)
    raise ClusterError(f"there is no program named {name!r} to build; the names are: {known}")


def _make(program: Program, *, target: Path, places: Places) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        if program.name in PREBUILT and platform.machine() == "x86_64":
            with step(f"fetching {program.name} {program.version}"):
                fetch_prebuilt(program.name, target=part, places=places)
        else:
            with step(f"building {program.name} {program.version}"):
                _compile(program, target=part)
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)


def _compile(program: Program, *, target: Path) -> None:
    run(
        ["go", "build", "-o", target, *program.go_arguments()],
        folder=program.module_folder,
        # GOFLAGS and GOWORK of the person's own shell must not change what is built.
        environment={"CGO_ENABLED": program.cgo, "GOFLAGS": "", "GOWORK": "off"},
    )


def build_all(*, places: Places) -> None:
    """Build everything that is missing, saying so when nothing is."""
    if not missing(places=places):
        say(f"  every program is built: {places.bin}")
    build([program.name for program in PROGRAMS], places=places)
