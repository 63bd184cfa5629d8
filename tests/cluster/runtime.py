"""The Python environments that pods run: locked packages beside our own, as plain folders.

`LOCK-HASH/site-packages` holds what requirements/LOCK.txt names, every file hard-linked from uv's
cache and checked by hash. `LOCK-HASH/anneal` is a link to our own packages as built from the
source tree; it is changed in one step, so a pod sees either the old ones or the new ones.
"""

import os
import shutil
import tempfile
from pathlib import Path

from commands import Word, run
from links import point
from locks import lock_digest, lock_file, source_digest
from places import REPOSITORY, Places
from python_tools import install_packages, uv
from rootfs import ENVIRONMENT_MOUNT, root_folder
from steps import say, step
from turns import take_turn

# A pod that started on a former one may still import from it.
_OURS_KEPT = 10
# Compiling tests of other packages would double the time and nobody imports them.
_NOT_COMPILED = r"/(tests?|testing/_internal)/"
# Called by compile_dir and not as a program: that one fails when any file does, and packages do
# carry templates and examples that are no Python.
_COMPILE = """
set -e
mount --bind "$1" "$2$3"
exec chroot "$2" python3 -c '
import compileall, re, sys
compileall.compile_dir(sys.argv[1], quiet=2, workers=0, rx=re.compile(sys.argv[2]))
' "$3" "$4"
"""


def environment_folder(lock: str, *, places: Places) -> Path:
    """Make the environment of a lock file, or bring it up to date; return its folder."""
    folder = places.cache / f"{lock}-{lock_digest(lock)}"
    packages = folder / "site-packages"
    with take_turn(places.cache / f".{folder.name}.lock"):
        if packages.exists():
            say(f"  {packages} is installed")
        else:
            _install_packages(lock, target=packages, places=places)
        _install_ours(folder, places=places)
    return folder


def published_folder(*, places: Places) -> Path:
    """A fixed name for the newest `runtime` environment, fit for a volume that outlives it."""
    folder = environment_folder("runtime", places=places)
    point(places.cache / "runtime", target=folder.name)
    return places.cache / "runtime"


def _install_packages(lock: str, *, target: Path, places: Places) -> None:
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with step(f"installing the packages of {lock_file(lock).name}"):
            wanted: list[Word] = ["--require-hashes", "--requirement", lock_file(lock)]
            install_packages(wanted, target=part, places=places)
        with step("compiling them to bytecode"):
            _compile(part, places=places)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _install_ours(folder: Path, *, places: Places) -> None:
    target = folder / f"anneal-{source_digest()}"
    if not target.exists():
        with (
            step("installing our own packages"),
            tempfile.TemporaryDirectory(dir=folder) as scratch,
        ):
            words = ["build", "--quiet", "--wheel", "--out-dir", scratch]
            run([uv(places=places), *words, REPOSITORY])
            (wheel,) = Path(scratch).glob("*.whl")
            part = Path(scratch) / "packages"
            install_packages([wheel], target=part, places=places)
            _compile(part, places=places)
            part.rename(target)
    point(folder / "anneal", target=target.name)
    target.touch()
    for old in sorted(folder.glob("anneal-*"), key=_last_used, reverse=True)[_OURS_KEPT:]:
        shutil.rmtree(old)


def _last_used(folder: Path) -> float:
    return folder.stat().st_mtime


def _compile(folder: Path, *, places: Places) -> None:
    """Write bytecode with the very Python of the base image: pods cannot, they mount read-only.

    The mount lives in a mount namespace that ends with the command.
    """
    root = root_folder(places=places)
    arguments: list[Word] = [folder, root, ENVIRONMENT_MOUNT, _NOT_COMPILED]
    run(["unshare", "--mount", "--propagation=private", "sh", "-c", _COMPILE, "sh", *arguments])
