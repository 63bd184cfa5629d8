"""What an environment or an image depends on, as short hashes: lock files and our own sources."""

import hashlib
from pathlib import Path

from places import REPOSITORY
from python_tools import PYTHON

_OUR_SOURCES = ("jobs", "operator", "pipeline")
_OUR_FILES = ("LICENSE", "README.md", "pyproject.toml")


def lock_file(lock: str) -> Path:
    return REPOSITORY / "requirements" / f"{lock}.txt"


def lock_digest(lock: str) -> str:
    """A hash of what the lock file asks for and of the Python it is for."""
    return hashlib.sha256(PYTHON.encode() + lock_file(lock).read_bytes()).hexdigest()[:12]


def source_digest() -> str:
    """A hash of everything our own wheel is built from."""
    digest = hashlib.sha256()
    for path in _sources():
        digest.update(str(path.relative_to(REPOSITORY)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _sources() -> list[Path]:
    found = [REPOSITORY / name for name in _OUR_FILES if (REPOSITORY / name).exists()]
    for name in _OUR_SOURCES:
        found += [
            path
            for path in (REPOSITORY / name).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
    return sorted(found)
