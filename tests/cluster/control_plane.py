"""The command lines of etcd, the API server, the controller manager and the scheduler."""

from dataclasses import dataclass
from pathlib import Path

from certificates import Pair

ISSUER = "https://kubernetes.default.svc.cluster.local"


@dataclass(frozen=True)
class Endpoint:
    """An address and a port of this machine."""

    address: str
    port: int

    @property
    def host_port(self) -> str:
        return f"{self.address}:{self.port}"

    @property
    def url(self) -> str:
        return f"https://{self.host_port}"


@dataclass(frozen=True)
class Trust:
    """Who signs, and the pairs that every part of the control plane uses."""

    authority: Pair
    server: Pair
    client: Pair
    service_account_key: Path


def etcd_arguments(*, data: Path, clients: Endpoint, peers: Endpoint, trust: Trust) -> list[str]:
    """A single member that lets in only holders of our certificates.

    It does not wait for the disk: a test cluster that loses its machine is made anew.
    """
    ca, pair = trust.authority.certificate, trust.server
    return [
        "--name=anneal",
        f"--data-dir={data}",
        "--unsafe-no-fsync",
        "--log-level=warn",
        f"--listen-client-urls={clients.url}",
        f"--advertise-client-urls={clients.url}",
        f"--listen-peer-urls={peers.url}",
        f"--initial-advertise-peer-urls={peers.url}",
        f"--initial-cluster=anneal={peers.url}",
        "--client-cert-auth",
        f"--trusted-ca-file={ca}",
        f"--cert-file={pair.certificate}",
        f"--key-file={pair.key}",
        "--peer-client-cert-auth",
        f"--peer-trusted-ca-file={ca}",
        f"--peer-cert-file={pair.certificate}",
        f"--peer-key-file={pair.key}",
    ]


def api_server_arguments(
    *, serving: Endpoint, etcd: Endpoint, services: str, certificates: Path, trust: Trust
) -> list[str]:
    """An API server with default admission (Pod Security included), RBAC, and token issuing."""
    ca = trust.authority.certificate
    return [
        f"--bind-address={serving.address}",
        f"--advertise-address={serving.address}",
        f"--secure-port={serving.port}",
        f"--cert-dir={certificates}",
        f"--tls-cert-file={trust.server.certificate}",
        f"--tls-private-key-file={trust.server.key}",
        f"--client-ca-file={ca}",
        f"--etcd-servers={etcd.url}",
        f"--etcd-cafile={ca}",
        f"--etcd-certfile={trust.client.certificate}",
        f"--etcd-keyfile={trust.client.key}",
        f"--kubelet-certificate-authority={ca}",
        f"--kubelet-client-certificate={trust.client.certificate}",
        f"--kubelet-client-key={trust.client.key}",
        # Without it, logs and exec would look up the node's name in a DNS that has none.
        "--kubelet-preferred-address-types=InternalIP",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--service-cluster-ip-range={services}",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={trust.service_account_key}",
        f"--service-account-signing-key-file={trust.service_account_key}",
    ]


def controller_manager_arguments(
    *, kubeconfig: Path, serving: Endpoint, certificates: Path, trust: Trust
) -> list[str]:
    """All default controllers, each with a service account of its own."""
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={serving.address}",
        f"--secure-port={serving.port}",
        f"--cert-dir={certificates}",
        f"--tls-cert-file={trust.server.certificate}",
        f"--tls-private-key-file={trust.server.key}",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--root-ca-file={trust.authority.certificate}",
        f"--service-account-private-key-file={trust.service_account_key}",
        f"--cluster-signing-cert-file={trust.authority.certificate}",
        f"--cluster-signing-key-file={trust.authority.key}",
    ]


def scheduler_arguments(
    *, kubeconfig: Path, serving: Endpoint, certificates: Path, trust: Trust
) -> list[str]:
    """The default scheduler."""
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={serving.address}",
        f"--secure-port={serving.port}",
        f"--cert-dir={certificates}",
        f"--tls-cert-file={trust.server.certificate}",
        f"--tls-private-key-file={trust.server.key}",
        "--leader-elect=false",
    ]
