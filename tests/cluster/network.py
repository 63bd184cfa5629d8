"""The node's own network: addresses, bridges, kernel switches, and how pods reach the world.

All addresses are from 198.18.0.0/15, which is reserved for tests and so clashes with no real
network. What is changed here has fixed names of ours, and each kernel switch's former value is
kept in the state folder, so that `down` can undo it whatever happened to `up`.
"""

import json
from pathlib import Path

from commands import run, succeeds
from errors import ClusterError
from places import Places

NODE_ADDRESS = "198.18.0.1"
POD_RANGE = "198.18.16.0/24"
SERVICE_RANGE = "198.19.0.0/20"
KUBERNETES_SERVICE = "198.19.0.1"
DNS_SERVICE = "198.19.0.10"

NODE_BRIDGE = "anneal-node"
POD_BRIDGE = "anneal-pods"
CNI_NETWORK = "anneal"
MASQUERADE_TABLE = "anneal-cluster"
_TEST_RANGE = "198.18.0.0/15"

# The second: without it a pod that calls a service backed by a pod of the same bridge gets an
# answer from the wrong address, because bridged packets would bypass the translation.
_SWITCHES = {
    "net/ipv4/ip_forward": "1",
    "net/bridge/bridge-nf-call-iptables": "1",
}
_PROC_SYS = Path("/proc/sys")
_CNI_PLUGIN_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
# The smallest that is still usual, so that packets pass through tunnelled hosts.
_MTU = 1400


def set_up_network(*, places: Places) -> None:
    """Make the node's address, switches, pod network and masquerading; safe to repeat."""
    if not (_PROC_SYS / "net/bridge").exists():
        succeeds(["modprobe", "br_netfilter"])
    _set_switches(places.state / "kernel-switches.json")
    if not succeeds(["ip", "link", "show", NODE_BRIDGE]):
        run(["ip", "link", "add", NODE_BRIDGE, "type", "bridge"])
    run(["ip", "address", "replace", f"{NODE_ADDRESS}/32", "dev", NODE_BRIDGE])
    run(["ip", "link", "set", NODE_BRIDGE, "up"])
    run(["nft", "--file", "-"], stdin=_masquerade_rules())
    _write_pod_network(places.config / "cni" / "10-anneal.conflist", places=places)


def take_down_network(*, places: Places) -> None:
    """Remove our interfaces and tables, and put the kernel's switches back."""
    for bridge in (POD_BRIDGE, NODE_BRIDGE):
        if succeeds(["ip", "link", "show", bridge]):
            run(["ip", "link", "delete", bridge])
    if succeeds(["nft", "list", "table", "ip", MASQUERADE_TABLE]):
        run(["nft", "delete", "table", "ip", MASQUERADE_TABLE])
    _restore_switches(places.state / "kernel-switches.json")


def plugin_folder() -> Path:
    """Where the CNI plugins were installed."""
    for folder in _CNI_PLUGIN_FOLDERS:
        if (folder / "bridge").exists() and (folder / "host-local").exists():
            return folder
    raise ClusterError(
        "there are no CNI plugins (bridge, host-local) in "
        f"{' or '.join(str(folder) for folder in _CNI_PLUGIN_FOLDERS)}: "
        "install Debian's containernetworking-plugins, or run `cluster.py needs`"
    )


def _set_switches(kept: Path) -> None:
    if not kept.exists():
        former = {
            name: (_PROC_SYS / name).read_text().strip()
            for name in _SWITCHES
            if (_PROC_SYS / name).exists()
        }
        part = kept.with_suffix(".new")
        part.write_text(json.dumps(former))
        part.replace(kept)
    for name, value in _SWITCHES.items():
        path = _PROC_SYS / name
        if not path.exists():
            raise ClusterError(
                f"the kernel has no switch {path}: load its module (modprobe br_netfilter)"
            )
        if path.read_text().strip() != value:
            path.write_text(value)


def _restore_switches(kept: Path) -> None:
    if not kept.exists():
        return
    former: dict[str, str] = json.loads(kept.read_text())
    for name, value in former.items():
        if (_PROC_SYS / name).exists():
            (_PROC_SYS / name).write_text(value)
    kept.unlink()


def _masquerade_rules() -> str:
    """Pods leave the machine under its own address; the table is replaced as a whole."""
    return f"""\
table ip {MASQUERADE_TABLE}
delete table ip {MASQUERADE_TABLE}
table ip {MASQUERADE_TABLE} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {POD_RANGE} ip daddr != {_TEST_RANGE} masquerade
  }}
}}
"""


def _write_pod_network(path: Path, *, places: Places) -> None:
    network = {
        "cniVersion": "1.0.0",
        "name": CNI_NETWORK,
        "plugins": [
            {
                "type": "bridge",
                "bridge": POD_BRIDGE,
                "isGateway": True,
                "hairpinMode": True,
                "mtu": _MTU,
                # Our own nftables table does it: the plugin's rules would outlive the cluster.
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(places.state / "cni"),
                    "ranges": [[{"subnet": POD_RANGE}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(network, indent=2))
