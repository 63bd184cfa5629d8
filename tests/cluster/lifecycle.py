"""Brings the whole cluster up, step by step; every step may be repeated, and stopped at any time.

What a step makes can be found again without remembering that it was made: processes by their
records, mounts by their place below the state folder, interfaces and tables by names of ours.
So `up` after a broken `up` goes on, and `down` (teardown.py) cleans up after either.
"""

import os
import shutil
from pathlib import Path

from builds import build_all, program_path
from components import Component, container_runtime, control_plane, node
from dns import publish_dns
from errors import ClusterError
from health import wait_until_well
from images import build_images
from kubectl import kubectl
from links import point
from loading import load_images
from network import set_up_network
from node import NODE_NAME, write_configs
from places import Places
from processes import running, start
from programs import PROGRAMS
from steps import say, step
from teardown import pod_cgroups
from trust import make_trust

_START_SECONDS = 180.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def bring_up(*, places: Places) -> None:
    """Start what does not run yet, and return when pods can be scheduled."""
    _refuse_beside_another(places)
    build_all(places=places)
    pause_image = build_images(["pause"], places=places)["pause"]
    _prepare_state(places)
    with step("network"):
        set_up_network(places=places)
    with step("certificates"):
        trust = make_trust(places=places)
    for component in control_plane(trust=trust, places=places):
        ensure_running(component, places=places)
    write_configs(pause_image=pause_image, places=places)
    ensure_running(container_runtime(places=places), places=places)
    load_images(places=places)
    for component in node(places=places):
        ensure_running(component, places=places)
    with step("cluster DNS"):
        publish_dns(places=places)
    with step("node Ready"):
        kubectl(
            "wait", "--for=condition=Ready", f"node/{NODE_NAME}", "--timeout=120s", places=places
        )
        _wait_for_default_account(places)
    say(f"  the cluster is up: export KUBECONFIG={places.kubeconfig}")


def ensure_running(component: Component, *, places: Places) -> None:
    """Start a component unless it runs, and wait until it is well."""
    record, log = component.record(places=places), component.log(places=places)
    with step(component.name):
        if running(record) is None:
            start(
                [program_path(component.program, places=places), *component.arguments],
                record=record,
                log=log,
                environment={
                    # Where containerd finds its shim and runc, and kube-proxy nft.
                    "PATH": f"{places.programs}:{os.environ['PATH']}:/usr/sbin:/sbin",
                    **component.environment,
                },
            )
        wait_until_well(
            component.name,
            check=component.check,
            alive=lambda: running(record) is not None,
            log=log,
            seconds=_START_SECONDS,
        )


def _refuse_beside_another(places: Places) -> None:
    """Two kubelets on one machine would tear down each other's pods."""
    if not (places.state / "kubelet").exists() and pod_cgroups():
        raise ClusterError(
            f"another kubelet runs pods on this machine ({pod_cgroups()[-1]}): take that cluster "
            "down first, or use its own context with `make demo CONTEXT=name`"
        )


def _prepare_state(places: Places) -> None:
    for folder in (places.state, places.config, places.logs, places.records, places.programs):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _forget_former_boot(places)
    for program in PROGRAMS:
        target = program_path(program.name, places=places)
        point(places.programs / program.name, target=target)


def _forget_former_boot(places: Places) -> None:
    """Drop containerd's notes on processes and mounts that a reboot has ended."""
    note, boot_id = places.state / "boot-id", _BOOT_ID.read_text()
    if note.exists() and note.read_text() != boot_id:
        shutil.rmtree(places.state / "containerd" / "state", ignore_errors=True)
    note.write_text(boot_id)


def _wait_for_default_account(places: Places) -> None:
    """Pods need it, and the controller manager makes it a moment after it has started."""
    account = ["serviceaccount/default", "--namespace=default"]
    kubectl("wait", "--for=create", *account, "--timeout=60s", places=places)
