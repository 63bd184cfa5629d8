"""The identities of one test cluster: who signs, and a certificate and kubeconfig for each part."""

from pathlib import Path

from certificates import Pair, issue, make_authority, new_key, pair_in
from control_plane import Endpoint, Trust
from kubeconfigs import write_kubeconfig
from network import KUBERNETES_SERVICE, NODE_ADDRESS
from node import CLUSTER_DOMAIN, NODE_NAME
from places import Places

API_SERVER = Endpoint(NODE_ADDRESS, 6443)

# Built-in roles are bound to these names; `coredns` gets its role from dns.py.
_USERS = {
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "kubelet": f"/O=system:nodes/CN=system:node:{NODE_NAME}",
    "kube-proxy": "/CN=system:kube-proxy",
    "coredns": "/CN=coredns",
}


def trust_in(places: Places) -> Trust:
    """Where the cluster's certificates lie."""
    folder = places.certificates
    return Trust(
        authority=pair_in(folder, "ca"),
        server=pair_in(folder, "server"),
        client=pair_in(folder, "admin"),
        service_account_key=folder / "service-account.key",
    )


def make_trust(*, places: Places) -> Trust:
    """Make every certificate and kubeconfig that is missing."""
    folder = places.certificates
    authority = make_authority(folder)
    admin = _issue("admin", "/O=system:masters/CN=admin", folder=folder, authority=authority)
    _issue("server", "/CN=kubernetes", folder=folder, authority=authority)
    new_key(folder / "service-account.key")
    for name, subject in _USERS.items():
        user = _issue(name, subject, folder=folder, authority=authority)
        _kubeconfig(places.kubeconfigs / name, user=user, authority=authority)
    _kubeconfig(places.kubeconfig, user=admin, authority=authority)
    return trust_in(places)


def _issue(name: str, subject: str, *, folder: Path, authority: Pair) -> Pair:
    return issue(
        name,
        subject=subject,
        addresses=(
            NODE_ADDRESS,
            "127.0.0.1",
            KUBERNETES_SERVICE,
            NODE_NAME,
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            f"kubernetes.default.svc.{CLUSTER_DOMAIN}",
        ),
        folder=folder,
        authority=authority,
    )


def _kubeconfig(path: Path, *, user: Pair, authority: Pair) -> None:
    write_kubeconfig(path, server=API_SERVER.url, authority=authority.certificate, user=user)
