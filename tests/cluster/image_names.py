"""Which images there are, and the tag of each: a hash of everything that goes into it.

A tag is never reused for other content, so a stale image cannot be taken for a fresh one.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from locks import lock_digest, source_digest
from places import REPOSITORY
from programs import PROGRAMS

IMAGES = REPOSITORY / "images"
SUITE = "bookworm"
PACKAGES = ("ca-certificates", "python3", "tini")

# The order is the order of building. `SMALL` ones need no Python packages of ours.
SMALL = ("pause", "base", "thin", "s3")
FULL = ("operator", "mlflow", "trainer")


@dataclass(frozen=True)
class Image:
    """One image: its folder under images/ and the reference it is known by everywhere."""

    name: str
    reference: str

    @property
    def folder(self) -> Path:
        return IMAGES / self.name

    def archive(self, folder: Path) -> Path:
        """The file that holds the image, ready for containerd."""
        return folder / f"{self.reference.rpartition('/')[2].replace(':', '-')}.tar"


def rootfs() -> Image:
    """Debian as debootstrap unpacks it; the ground below `base`."""
    return _image("rootfs", [SUITE, *PACKAGES, "1"])


def image(name: str) -> Image:
    """The image of that name as this checkout would build it."""
    inputs = [_folder_digest(IMAGES / name)]
    if name == "base":
        inputs.append(rootfs().reference)
    elif name != "pause":
        inputs.append(image("base").reference)
    if name == "s3":
        inputs += [program.file_name() for program in PROGRAMS if program.name == "versitygw"]
    if name in FULL:
        inputs += [lock_digest(name), source_digest()]
    return _image(name, inputs)


def _image(name: str, inputs: Iterable[str]) -> Image:
    digest = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:12]
    return Image(name=name, reference=f"localhost/anneal-{name}:{digest}")


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + b"\0")
            digest.update(oct(path.stat().st_mode & 0o777).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
