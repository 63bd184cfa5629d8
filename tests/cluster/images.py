"""Builds the images with buildah, without any engine or registry, and keeps them as files.

buildah keeps its layers in the cache, in a store of its own. Each image then becomes one archive
file that containerd imports; what has its file is not built again.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from builds import build, program_path
from commands import run, succeeds
from image_names import FULL, Image, image, rootfs
from places import Places
from rootfs import root_folder
from runtime import environment_folder
from steps import say, step
from turns import take_turn

_CONTEXTS = {"pause": ("programs",), "s3": ("programs",)} | {
    name: ("packages", "anneal") for name in FULL
}


def build_images(names: Iterable[str], *, places: Places) -> dict[str, str]:
    """Build the named images that are missing; return and record the reference of each."""
    made = {name: image(name) for name in names}
    for one in made.values():
        if one.archive(places.images).exists():
            say(f"  {one.reference} is built")
        else:
            with take_turn(places.images / ".lock"):
                if not one.archive(places.images).exists():
                    # An interrupted build leaves its working container, gigabytes of it.
                    run_buildah("rm", "--all", places=places)
                    _make(one, places=places)
    references = {name: one.reference for name, one in made.items()}
    record_references(references, places=places)
    return references


def record_references(references: dict[str, str], *, places: Places) -> None:
    """Add to images.json of the state folder, from which tests and the demo read."""
    path = places.image_references
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(known | references, indent=2, sort_keys=True) + "\n")
    part.replace(path)


def _make(one: Image, *, places: Places) -> None:
    base = None if one.name == "pause" else _ground(one, places=places)
    with step(f"building {one.reference}"), tempfile.TemporaryDirectory() as scratch:
        _bud(one, base=base, contexts=_contexts(one, Path(scratch), places), places=places)
        _write_archive(one, places=places)
        _forget_former(one, places=places)


def _ground(one: Image, *, places: Places) -> str:
    """The reference of what the image stands on, after making sure that it is in the store."""
    if one.name != "base":
        base = image("base")
        if not _is_stored(base.reference, places=places):
            _make(base, places=places)
        return base.reference
    below = rootfs()
    if not _is_stored(below.reference, places=places):
        folder = root_folder(places=places)
        with step(f"importing {below.reference}"):
            _import_root(folder, reference=below.reference, places=places)
    return below.reference


def _import_root(folder: Path, *, reference: str, places: Places) -> None:
    container = run_buildah("from", "scratch", places=places).strip()
    try:
        run_buildah("add", container, str(folder), "/", places=places)
        run_buildah("commit", container, reference, places=places)
    finally:
        run_buildah("rm", container, places=places)


def _bud(one: Image, *, base: str | None, contexts: dict[str, Path], places: Places) -> None:
    arguments = ["bud", "--isolation=chroot", "--layers", f"--tag={one.reference}"]
    if base is not None:
        arguments.append(f"--build-arg=BASE={base}")
    arguments += [f"--build-context={name}={path}" for name, path in contexts.items()]
    run_buildah(
        *arguments, f"--file={one.folder / 'Containerfile'}", str(one.folder), places=places
    )


def _contexts(one: Image, scratch: Path, places: Places) -> dict[str, Path]:
    """The named build contexts that an image's Containerfile copies from."""
    wanted = _CONTEXTS.get(one.name, ())
    if "packages" in wanted:
        environment = environment_folder(one.name, places=places)
        # The latter is a link to the newest; buildah wants the folder itself.
        return {
            "packages": environment / "site-packages",
            "anneal": (environment / "anneal").resolve(),
        }
    if "programs" in wanted:
        if one.name == "pause":
            source = one.folder / "pause.c"
            run(["gcc", "-Os", "-static", "-Wall", "-o", scratch / "pause", source])
        else:
            build(["versitygw"], places=places)
            shutil.copy2(program_path("versitygw", places=places), scratch / "versitygw")
        return {"programs": scratch}
    return {}


def _write_archive(one: Image, *, places: Places) -> None:
    archive = one.archive(places.images)
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(f".{archive.name}.{os.getpid()}")
    try:
        # The quickest way through large layers: buildah cannot be told to write plain tar here.
        fast = ["--quiet", "--compression-format=zstd", "--compression-level=1"]
        destination = f"oci-archive:{part}:{one.reference}"
        run_buildah("push", *fast, one.reference, destination, places=places)
        part.rename(archive)
    finally:
        part.unlink(missing_ok=True)


def _forget_former(one: Image, *, places: Places) -> None:
    """Drop what an older checkout made under the same name: a trainer image is 6 GB twice over."""
    repository, _, tag = one.reference.partition(":")
    for archive in places.images.glob(f"anneal-{one.name}-*.tar"):
        if archive != one.archive(places.images):
            archive.unlink()
    listing = run_buildah("images", "--format={{.Name}}:{{.Tag}}", places=places).split()
    former = [name for name in listing if name.startswith(f"{repository}:") and tag not in name]
    if former:
        run_buildah("rmi", *former, places=places)


def _is_stored(reference: str, *, places: Places) -> bool:
    return succeeds(_buildah_command("inspect", "--type=image", reference, places=places))


def run_buildah(*arguments: str, places: Places) -> str:
    """Run buildah on our own store and return what it prints."""
    return run(_buildah_command(*arguments, places=places))


def _buildah_command(*arguments: str, places: Places) -> list[str]:
    store = places.cache / "buildah"
    return [
        "buildah",
        f"--root={store / 'root'}",
        f"--runroot={store / 'run'}",
        "--storage-driver=overlay",
        # Else the store's folder would stay mounted on itself.
        "--storage-opt=overlay.skip_mount_home=true",
        *arguments,
    ]
