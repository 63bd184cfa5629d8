"""Where the test cluster keeps things: what is costly to make, and what one run makes.

The cache outlives a cluster (binaries, images, Python environments). The state folder belongs to
one running cluster and goes with it on `down`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Places:
    """The two folders everything else is named from; both absolute."""

    cache: Path
    state: Path

    @property
    def bin(self) -> Path:
        """Built programs, named with version and hash, and a plain link to the newest of each."""
        return self.cache / "bin"

    @property
    def images(self) -> Path:
        return self.cache / "images"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def kubeconfigs(self) -> Path:
        return self.state / "kubeconfigs"

    @property
    def certificates(self) -> Path:
        return self.state / "certificates"

    @property
    def config(self) -> Path:
        return self.state / "config"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def records(self) -> Path:
        """One file per process that was started: see processes.py."""
        return self.state / "processes"

    @property
    def programs(self) -> Path:
        """Plain-named links to this cluster's programs; fit for PATH."""
        return self.state / "bin"

    @property
    def image_references(self) -> Path:
        return self.state / "images.json"

    @property
    def containerd_socket(self) -> Path:
        return self.state / "containerd" / "containerd.sock"


def places_from(environment: "os._Environ[str] | dict[str, str]") -> Places:
    """Read ANNEAL_CACHE and ANNEAL_STATE, else the usual per-user folders."""
    home = Path(environment.get("HOME") or Path.home())
    cache = Path(environment.get("ANNEAL_CACHE") or home / ".cache" / "anneal")
    state = Path(environment.get("ANNEAL_STATE") or home / ".local" / "state" / "anneal")
    return Places(cache=cache.absolute(), state=state.absolute() / "cluster")
