"""Puts the full images into a registry, for clusters other than the test cluster."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from image_names import FULL, image
from images import build_images, run_buildah
from places import Places
from steps import step

PUSHED = (*FULL, "s3")
"""What the charts and a profile name."""


def push_images(registry: str, *, uses_tls: bool, places: Places) -> dict[str, str]:
    """Build what is missing, push it, and return the references that a cluster pulls.

    Tags are hashes of the content, so an image that the registry has is sent again only in name.
    A registry on this machine's loopback is spoken to by plain HTTP, as container engines do.
    """
    uses_tls = uses_tls and not is_loopback(registry)
    build_images(PUSHED, places=places)
    return {name: _push(name, registry, uses_tls=uses_tls, places=places) for name in PUSHED}


def is_loopback(registry: str) -> bool:
    """Whether `host[:port]/path` names this machine."""
    host = urlsplit(f"//{registry}").hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _push(name: str, registry: str, *, uses_tls: bool, places: Places) -> str:
    one = image(name)
    reference = f"{registry.rstrip('/')}/{one.reference.rpartition('/')[2]}"
    with step(f"pushing {reference}"):
        # The archive is what is kept; buildah's store may have forgotten the image.
        run_buildah("pull", f"oci-archive:{one.archive(places.images)}", places=places)
        run_buildah(
            "push", f"--tls-verify={str(uses_tls).lower()}", one.reference,
            f"docker://{reference}", places=places,
        )  # fmt: skip
    return reference
