"""Which programs the test cluster is made of, at which version, and how each is built.

Each comes from the Go module registry by a module of our own in `go/`, whose go.sum pins every
source file. `helm` and `kubectl` also come prebuilt for x86-64: see prebuilt.py.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from places import SOURCES

KUBERNETES = "1.36.3"
HELM = "4.2.3"

_COMPONENT = "k8s.io/component-base/version"
_KUBERNETES_FLAGS = (
    f"-X {_COMPONENT}.gitVersion=v{KUBERNETES} -X {_COMPONENT}.gitMajor=1"
    f" -X {_COMPONENT}.gitMinor=36"
)
_CONTAINERD = "github.com/containerd/containerd/v2"
_CONTAINERD_FLAGS = f"-X {_CONTAINERD}/version.Version=v2.4.2"


@dataclass(frozen=True)
class Program:
    """One binary: the Go package that makes it, in which module folder of `go/`."""

    name: str
    version: str
    module: str
    package: str
    linker_flags: str = ""
    tags: str = ""
    cgo: str = "0"

    @property
    def module_folder(self) -> Path:
        return SOURCES / "go" / self.module

    def go_arguments(self) -> list[str]:
        """What follows `go build`, but for the output file."""
        words = ["-mod=readonly", "-buildvcs=false", "-trimpath"]
        if self.tags:
            words.append(f"-tags={self.tags}")
        return [*words, f"-ldflags=-s -w {self.linker_flags}".rstrip(), self.package]

    def file_name(self) -> str:
        """Name, version, and a hash of everything we decide about the build."""
        digest = hashlib.sha256(" ".join([*self.go_arguments(), self.cgo]).encode())
        for path in sorted(self.module_folder.iterdir()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return f"{self.name}-{self.version}-{digest.hexdigest()[:12]}"


def _kubernetes(name: str) -> Program:
    return Program(
        name=name,
        version=KUBERNETES,
        module="kubernetes",
        package=f"k8s.io/kubernetes/cmd/{name}",
        linker_flags=_KUBERNETES_FLAGS,
    )


def _containerd(name: str) -> Program:
    return Program(
        name=name,
        version="2.4.2",
        module="containerd",
        package=f"{_CONTAINERD}/cmd/{name}",
        linker_flags=_CONTAINERD_FLAGS,
        # Snapshotters that need headers or devices we do not use.
        tags="no_btrfs,no_devmapper,no_zfs",
    )


# The order is the order of building: what the integration tests start comes first, and the API
# server compiles most of what the other Kubernetes programs share.
PROGRAMS = (
    Program("etcd", "3.6.4", "etcd", "go.etcd.io/etcd/server/v3"),
    _kubernetes("kube-apiserver"),
    _kubernetes("kubectl"),
    _kubernetes("kube-controller-manager"),
    _kubernetes("kube-scheduler"),
    _kubernetes("kubelet"),
    _kubernetes("kube-proxy"),
    _containerd("containerd"),
    _containerd("containerd-shim-runc-v2"),
    _containerd("ctr"),
    Program(
        name="runc",
        version="1.4.2",
        module="runc",
        package="github.com/opencontainers/runc",
        # runc prints its version from here; containerd reads it.
        linker_flags="-X main.version=1.4.2",
        tags="seccomp",
        cgo="1",
    ),
    Program("coredns", "1.14.2", "coredns", "."),
    Program(
        "versitygw",
        "1.8.0",
        "versitygw",
        "github.com/versity/versitygw/cmd/versitygw",
        linker_flags="-X main.Version=v1.8.0",
    ),
    Program("helm", HELM, "helm", "helm.sh/helm/v4/cmd/helm"),
)
