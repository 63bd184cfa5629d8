"""The objects that make CoreDNS, a process of the machine, the cluster's name service."""

from kubectl import Object, apply
from network import DNS_SERVICE, NODE_ADDRESS
from places import Places

_NAME = "kube-dns"
_NAMESPACE = "kube-system"
_PORTS = (("dns", "UDP"), ("dns-tcp", "TCP"))


def publish_dns(*, places: Places) -> None:
    """Give CoreDNS its rights and its service address."""
    apply([_role(), _role_binding(), _service(), _endpoints()], places=places)


def _role() -> Object:
    read = ["list", "watch"]
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "coredns"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": read},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read},
        ],
    }


def _role_binding() -> Object:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "coredns"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "coredns"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": "coredns"}],
    }


def _service() -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": _NAME, "namespace": _NAMESPACE},
        "spec": {
            "clusterIP": DNS_SERVICE,
            "ports": [
                {"name": name, "port": 53, "protocol": protocol} for name, protocol in _PORTS
            ],
        },
    }


def _endpoints() -> Object:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{_NAME}-node",
            "namespace": _NAMESPACE,
            "labels": {"kubernetes.io/service-name": _NAME},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [NODE_ADDRESS], "conditions": {"ready": True}}],
        "ports": [{"name": name, "port": 53, "protocol": protocol} for name, protocol in _PORTS],
    }
