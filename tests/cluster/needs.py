"""Checks what the machine must have before anything is built, each with its remedy."""

import os
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from builds import missing
from commands import run, succeeds
from errors import ClusterError
from places import Places
from steps import say, step

# Older ones cannot fetch the toolchain that the modules in `go/` ask for.
_GO = (1, 21)
# Go's module and build caches, uv's cache, programs, images and one running cluster: measured 20.
_COLD_GIGABYTES = 25
_BUILT_GIGABYTES = 5

# Debian's name of each package, and a file or a program it must give.
_PACKAGES = {
    "buildah": "buildah",
    "ca-certificates": "/etc/ssl/certs/ca-certificates.crt",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "debian-archive-keyring": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "debootstrap": "debootstrap",
    "gcc": "gcc",
    # buildah will not start without the policy file in it.
    "golang-github-containers-common": "/etc/containers/policy.json",
    "iproute2": "ip",
    "libc6-dev": "/usr/include/stdio.h",
    "libseccomp-dev": "/usr/include/seccomp.h",
    "nftables": "nft",
    "openssl": "openssl",
    "pkg-config": "pkg-config",
    "python3-venv": "",
    "shellcheck": "shellcheck",
}
_SYSTEM_PATH = "/usr/sbin:/sbin:/usr/local/sbin"


def check_needs(extra: Sequence[str], *, install: bool, places: Places) -> None:
    """Complain of everything at once; install missing Debian packages first when allowed."""
    complaints = [
        complaint for complaint in (_system(), _root(), _go(), _disk(places)) if complaint
    ]
    packages = [name for name, gives in _PACKAGES.items() if not _is_there(name, gives)]
    packages += [name for name in extra if not _is_installed(name)]
    if packages and not complaints and install and _has_apt():
        _install(packages)
    elif packages:
        complaints.append(_packages_complaint(packages))
    if complaints:
        raise ClusterError("this machine lacks:\n" + "\n".join(f"  - {c}" for c in complaints))
    say("  the machine has all that is needed")


def check_root() -> None:
    """Namespaces, mounts and network interfaces are made: that takes root."""
    if complaint := _system() or _root():
        raise ClusterError(complaint)


def go_version(text: str) -> tuple[int, int] | None:
    """Major and minor of what `go version` or `go env GOVERSION` prints."""
    match = re.search(r"\bgo(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def _system() -> str:
    if platform.system() == "Linux":
        return ""
    return f"Linux: this is {platform.system()}; use a Linux virtual machine"


def _root() -> str:
    if os.geteuid() == 0:
        return ""
    return "root: run the same command under `sudo -E`, or in a virtual machine as root"


def _go() -> str:
    if shutil.which("go") is None:
        return "Go: install Go 1.26 from https://go.dev/dl and put its bin folder on PATH"
    found = go_version(run(["go", "env", "GOVERSION"]))
    if found is None or found < _GO:
        return f"Go {_GO[0]}.{_GO[1]} or newer: `go env GOVERSION` tells {found}; install Go 1.26"
    return ""


def _disk(places: Places) -> str:
    needed = _COLD_GIGABYTES if missing(places=places) else _BUILT_GIGABYTES
    folder = places.cache
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 10**9
    if free >= needed:
        return ""
    return (
        f"disk: {free:.1f} GB are free below {folder}, {needed} are needed; "
        "make room, or set ANNEAL_CACHE to a folder on a larger disk"
    )


def _is_there(package: str, gives: str) -> bool:
    """By what the package gives, where that is one thing: it may come from elsewhere too."""
    if gives.startswith("/"):
        return Path(gives).exists()
    if gives:
        return shutil.which(gives, path=f"{os.environ['PATH']}:{_SYSTEM_PATH}") is not None
    return succeeds(["python3", "-c", "import ensurepip, venv"])


def _is_installed(package: str) -> bool:
    if not _has_apt():
        return shutil.which(package) is not None
    return succeeds(["dpkg-query", "--show", package]) and "installed" in _dpkg_status(package)


def _dpkg_status(package: str) -> str:
    return run(["dpkg-query", "--show", "--showformat=${db:Status-Status}", package])


def _has_apt() -> bool:
    return shutil.which("apt-get") is not None


def _packages_complaint(packages: Sequence[str]) -> str:
    names = " ".join(packages)
    if _has_apt():
        return f"packages: run `apt-get install --no-install-recommends {names}`"
    return f"what these Debian packages hold, by your own system's names: {names}"


def _install(packages: Sequence[str]) -> None:
    say(f"  these Debian packages are missing and will be installed: {' '.join(packages)}")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    with step("apt-get update"):
        run(["apt-get", "update", "--quiet"], environment=environment)
    with step("apt-get install"):
        run(
            ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *packages],
            environment=environment,
        )
