"""Unpacks a small Debian with debootstrap: the ground of the images without a registry."""

import os
import shutil
from pathlib import Path

from commands import run
from image_names import PACKAGES, SUITE, rootfs
from places import Places
from steps import step

# Read by people at a terminal, never by a pod: a third of the size.
_UNREAD = ("usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man", "var/cache/apt")

# Where pods find the Python packages: a volume in the thin image, a layer in the others.
ENVIRONMENT_MOUNT = "/opt/anneal/env"


def root_folder(*, places: Places) -> Path:
    """Return the unpacked system, making it when it is missing."""
    folder = places.images / rootfs().reference.rpartition("/")[2].replace(":", "-")
    if not folder.exists():
        part = folder.with_name(f".{folder.name}.{os.getpid()}")
        with step(f"unpacking Debian {SUITE} with {', '.join(PACKAGES)}"):
            _unpack(part)
        part.rename(folder)
    return folder


def _unpack(folder: Path) -> None:
    folder.mkdir(parents=True)
    try:
        include = f"--include={','.join(PACKAGES)}"
        run(["debootstrap", "--variant=minbase", include, SUITE, folder, *_mirror()])
    except BaseException:
        shutil.rmtree(folder)
        raise
    for name in _UNREAD:
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / ENVIRONMENT_MOUNT.lstrip("/")).mkdir(parents=True)


def _mirror() -> list[str]:
    """Where this machine itself gets Debian from, if it does; else debootstrap's own default."""
    named = os.environ.get("ANNEAL_DEBIAN_MIRROR")
    if named:
        return [named]
    if shutil.which("apt-get") is None:
        return []
    origin = ["Created-By: Packages", "Origin: Debian", "Label: Debian"]
    suite = [f"Codename: {SUITE}", "Component: main"]
    lines = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", *origin, *suite]).split()
    return lines[:1]
