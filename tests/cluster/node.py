"""The configuration files of containerd, the kubelet, kube-proxy and CoreDNS."""

import json
from pathlib import Path

from network import DNS_SERVICE, NODE_ADDRESS, POD_RANGE, plugin_folder
from places import Places

NODE_NAME = "anneal-node"
CLUSTER_DOMAIN = "cluster.local"
KUBELET_PORT = 10250
KUBELET_HEALTH_PORT = 10248
PROXY_HEALTH_PORT = 10256
PROXY_METRICS_PORT = 10249
DNS_HEALTH_PORT = 8181


def containerd_config(places: Places) -> Path:
    return places.config / "containerd.toml"


def kubelet_config(places: Places) -> Path:
    return places.config / "kubelet.json"


def proxy_config(places: Places) -> Path:
    return places.config / "kube-proxy.json"


def dns_config(places: Places) -> Path:
    return places.config / "Corefile"


def write_configs(*, pause_image: str, places: Places) -> None:
    """Write the four files anew; components read them when they start."""
    _write_containerd_config(pause_image=pause_image, places=places)
    _write_kubelet_config(places=places)
    _write_proxy_config(places=places)
    _write_dns_config(places=places)


def _write_containerd_config(*, pause_image: str, places: Places) -> None:
    """CRI with our own folders and binaries, and nothing under /etc, /opt or /var/lib."""
    text = _containerd_daemon(places) + _containerd_cri(pause_image=pause_image, places=places)
    _write(containerd_config(places), text)


def _containerd_daemon(places: Places) -> str:
    """Plugins that would make folders elsewhere, or look for other snapshotters, are off."""
    root = places.state / "containerd"
    return f"""\
version = 3
root = "{root}/root"
state = "{root}/state"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.nri.v1.nri",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.differ.v1.erofs",
]

[grpc]
address = "{places.containerd_socket}"

[ttrpc]
address = "{places.containerd_socket}.ttrpc"

"""


def _containerd_cri(*, pause_image: str, places: Places) -> str:
    root, programs = places.state / "containerd", places.programs
    return f"""\
[plugins."io.containerd.cri.v1.runtime"]
# Without CAP_SYS_RESOURCE every sandbox would fail on /proc/self/oom_score_adj.
restrict_oom_score_adj = true
# A loaded profile would stay in the kernel after the cluster is gone.
disable_apparmor = true
netns_mounts_under_state_dir = true
cdi_spec_dirs = []

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{plugin_folder()}"]
conf_dir = "{places.config}/cni"
use_internal_loopback = true

[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
runtime_path = "{programs}/containerd-shim-runc-v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{programs}/runc"
Root = "{root}/runc"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause_image}"

[plugins."io.containerd.grpc.v1.cri"]
disable_tcp_service = true
"""


def _write_kubelet_config(*, places: Places) -> None:
    """A kubelet that accepts this machine as it is: swap, cgroup v1, a full disk."""
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "port": KUBELET_PORT,
        "healthzBindAddress": NODE_ADDRESS,
        "healthzPort": KUBELET_HEALTH_PORT,
        "readOnlyPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(places.certificates / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(places.certificates / "kubelet.crt"),
        "tlsPrivateKeyFile": str(places.certificates / "kubelet.key"),
        "containerRuntimeEndpoint": f"unix://{places.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": CLUSTER_DOMAIN,
        "resolvConf": str(_write(places.config / "resolv.conf", "")),
        "podLogsDir": str(places.state / "pod-logs"),
        "volumePluginDir": str(places.state / "volume-plugins"),
        # kube-proxy works by nftables: there are no iptables chains for the kubelet to keep.
        "makeIPTablesUtilChains": False,
        # 100 switches image collection off: images come from files here, none can be pulled.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
    }
    _write(kubelet_config(places), json.dumps(config, indent=2))


def _write_proxy_config(*, places: Places) -> None:
    """Services by nftables."""
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "bindAddress": NODE_ADDRESS,
        "healthzBindAddress": f"{NODE_ADDRESS}:{PROXY_HEALTH_PORT}",
        "metricsBindAddress": f"{NODE_ADDRESS}:{PROXY_METRICS_PORT}",
        "clusterCIDR": POD_RANGE,
        "hostnameOverride": NODE_NAME,
        "clientConnection": {"kubeconfig": str(places.kubeconfigs / "kube-proxy")},
        # Zeros leave the machine's own connection tracking limits alone.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }
    _write(proxy_config(places), json.dumps(config, indent=2))


def _write_dns_config(*, places: Places) -> None:
    """CoreDNS: the cluster's own names itself, others by asking the machine's name servers."""
    forward = "  forward . /etc/resolv.conf\n" if _has_name_servers() else ""
    _write(
        dns_config(places),
        f""".:53 {{
  bind {NODE_ADDRESS}
  errors
  health {NODE_ADDRESS}:{DNS_HEALTH_PORT}
  kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
    kubeconfig {places.kubeconfigs / "coredns"}
    pods insecure
    ttl 5
  }}
{forward}  cache 5
  reload
}}
""",
    )


def _has_name_servers() -> bool:
    resolver = Path("/etc/resolv.conf")
    return resolver.exists() and "nameserver" in resolver.read_text()


def _write(path: Path, text: str) -> Path:
    """Write a file, but leave one that says the same alone: kube-proxy ends when its file moves."""
    if path.exists() and path.read_text() == text:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
