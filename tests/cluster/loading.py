"""Puts built images into the node's containerd, where pods with imagePullPolicy Never find them."""

from builds import program_path
from commands import run
from image_names import FULL, SMALL, Image, image
from images import record_references
from places import Places
from steps import step

# The CRI plugin, and so the kubelet, sees this namespace of containerd only.
_NAMESPACE = "k8s.io"


def load_images(*, places: Places) -> dict[str, str]:
    """Import every image that is built and not there yet; return and record all references."""
    built = [
        one
        for one in map(image, (*SMALL, *FULL))
        if one.name != "base" and one.archive(places.images).exists()
    ]
    present = set(_ctr("images", "list", "--quiet", places=places).split())
    for one in built:
        if one.reference not in present:
            with step(f"loading {one.reference}"):
                _import(one, places=places)
    references = {one.name: one.reference for one in built}
    record_references(references, places=places)
    return references


def _import(one: Image, *, places: Places) -> None:
    archive = one.archive(places.images)
    _ctr("images", "import", "--local", str(archive), places=places)
    # Without it the kubelet deletes an image that no pod uses when the disk runs full, and
    # nothing could pull it again.
    _ctr("images", "label", one.reference, "io.cri-containerd.pinned=pinned", places=places)


def _ctr(*arguments: str, places: Places) -> str:
    program = program_path("ctr", places=places)
    return run(
        [program, f"--address={places.containerd_socket}", f"--namespace={_NAMESPACE}", *arguments]
    )
