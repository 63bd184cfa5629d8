"""The processes that make up the cluster, in starting order, and how to ask each how it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from commands import succeeds
from control_plane import (
    Endpoint,
    Trust,
    api_server_arguments,
    controller_manager_arguments,
    etcd_arguments,
    scheduler_arguments,
)
from health import answers
from network import NODE_ADDRESS, SERVICE_RANGE
from node import (
    DNS_HEALTH_PORT,
    KUBELET_HEALTH_PORT,
    NODE_NAME,
    PROXY_HEALTH_PORT,
    containerd_config,
    dns_config,
    kubelet_config,
    proxy_config,
)
from places import Places
from trust import API_SERVER

# Ports off the usual ones: etcd is on loopback, where another cluster's may be.
ETCD = Endpoint("127.0.0.1", 12379)
ETCD_PEERS = Endpoint("127.0.0.1", 12380)
CONTROLLER_MANAGER = Endpoint(NODE_ADDRESS, 10257)
SCHEDULER = Endpoint(NODE_ADDRESS, 10259)


@dataclass(frozen=True)
class Component:
    """One process: `program` of the cache with `arguments`; `check` returns "" when it is well."""

    name: str
    program: str
    arguments: tuple[str, ...]
    check: Callable[[], str]
    environment: Mapping[str, str] = field(default_factory=dict)

    def record(self, *, places: Places) -> Path:
        return places.records / self.name

    def log(self, *, places: Places) -> Path:
        return places.logs / f"{self.name}.log"


def control_plane(*, trust: Trust, places: Places) -> list[Component]:
    """etcd, API server, controller manager and scheduler."""
    certificates, authority = places.certificates, trust.authority.certificate
    return [
        Component(
            name="etcd",
            program="etcd",
            arguments=tuple(
                etcd_arguments(
                    data=places.state / "etcd", clients=ETCD, peers=ETCD_PEERS, trust=trust
                )
            ),
            check=lambda: _etcd_complaint(trust),
        ),
        Component(
            name="kube-apiserver",
            program="kube-apiserver",
            arguments=tuple(
                api_server_arguments(
                    serving=API_SERVER,
                    etcd=ETCD,
                    services=SERVICE_RANGE,
                    certificates=certificates,
                    trust=trust,
                )
            ),
            check=lambda: answers(f"{API_SERVER.url}/readyz", authority=authority),
        ),
        Component(
            name="kube-controller-manager",
            program="kube-controller-manager",
            arguments=tuple(
                controller_manager_arguments(
                    kubeconfig=places.kubeconfigs / "controller-manager",
                    serving=CONTROLLER_MANAGER,
                    certificates=certificates,
                    trust=trust,
                )
            ),
            check=lambda: answers(f"{CONTROLLER_MANAGER.url}/healthz", authority=authority),
        ),
        Component(
            name="kube-scheduler",
            program="kube-scheduler",
            arguments=tuple(
                scheduler_arguments(
                    kubeconfig=places.kubeconfigs / "scheduler",
                    serving=SCHEDULER,
                    certificates=certificates,
                    trust=trust,
                )
            ),
            check=lambda: answers(f"{SCHEDULER.url}/healthz", authority=authority),
        ),
    ]


def container_runtime(*, places: Places) -> Component:
    """containerd, with the shim, runc and the CNI plugins it calls."""
    return Component(
        name="containerd",
        program="containerd",
        arguments=(f"--config={containerd_config(places)}",),
        check=lambda: _containerd_complaint(places),
    )


def node(*, places: Places) -> list[Component]:
    """kubelet, kube-proxy and CoreDNS."""
    return [
        Component(
            name="kubelet",
            program="kubelet",
            arguments=(
                f"--config={kubelet_config(places)}",
                f"--kubeconfig={places.kubeconfigs / 'kubelet'}",
                f"--root-dir={places.state / 'kubelet'}",
                f"--cert-dir={places.certificates}",
                f"--hostname-override={NODE_NAME}",
                f"--node-ip={NODE_ADDRESS}",
            ),
            check=lambda: _plain("/healthz", KUBELET_HEALTH_PORT),
        ),
        Component(
            name="kube-proxy",
            program="kube-proxy",
            arguments=(f"--config={proxy_config(places)}",),
            check=lambda: _plain("/livez", PROXY_HEALTH_PORT),
        ),
        Component(
            name="coredns",
            program="coredns",
            arguments=(f"-conf={dns_config(places)}",),
            check=lambda: _plain("/health", DNS_HEALTH_PORT),
        ),
    ]


def all_components(*, trust: Trust, places: Places) -> list[Component]:
    """Every process of the cluster, in the order they start."""
    return [
        *control_plane(trust=trust, places=places),
        container_runtime(places=places),
        *node(places=places),
    ]


def _plain(path: str, port: int) -> str:
    return answers(f"http://{NODE_ADDRESS}:{port}{path}", authority=None)


def _etcd_complaint(trust: Trust) -> str:
    return answers(f"{ETCD.url}/health", authority=trust.authority.certificate, client=trust.client)


def _containerd_complaint(places: Places) -> str:
    ctr = places.programs / "ctr"
    if succeeds([ctr, f"--address={places.containerd_socket}", "version"]):
        return ""
    return f"containerd does not answer at {places.containerd_socket}"
