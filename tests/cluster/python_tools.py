"""The `uv` that fetches hashed Python packages: the checkout's own, else one in the cache."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from commands import Word, run
from places import REPOSITORY, Places
from steps import step

# The Python of the base image; the host's own may be newer.
PYTHON = "3.11"
UV_LOCK = REPOSITORY / "requirements" / "uv.txt"


def uv(*, places: Places) -> Path:
    """Return a uv of the locked version, installing it into a small environment when missing."""
    digest = hashlib.sha256(UV_LOCK.read_bytes()).hexdigest()[:12]
    folder = places.cache / f"uv-{digest}"
    program = folder / "bin" / "uv"
    if not program.exists():
        with step("installing uv"):
            run([sys.executable, "-m", "venv", folder])
            pip = folder / "bin" / "pip"
            run([pip, "install", "--quiet", "--require-hashes", "--no-deps", "-r", UV_LOCK])
    return program


def install_packages(wanted: Sequence[Word], *, target: Path, places: Places) -> None:
    """Install what uv's words name, and nothing they depend on, into a plain folder."""
    words = ["pip", "install", "--quiet", "--no-deps", "--python-version", PYTHON]
    run([uv(places=places), *words, "--target", target, *wanted])
