"""Tells how the cluster is: each process, whether it is well, and where to reach it."""

import sys

from components import Component, all_components
from kubectl import kubectl
from logs import tail
from places import Places
from processes import running
from programs import PROGRAMS
from trust import API_SERVER, trust_in


def show_status(*, places: Places) -> bool:
    """Print one line for each component and the addresses; return whether all are well."""
    if not places.kubeconfig.exists():
        sys.stdout.write("the cluster is down: `python3 tests/cluster/cluster.py up` starts it\n")
        return False
    well = True
    sys.stdout.write(f"{'COMPONENT':<26}{'PID':<9}{'VERSION':<10}HEALTH\n")
    for component in all_components(trust=trust_in(places), places=places):
        pid, health = _state(component, places=places)
        well = well and health == "ok"
        version = next(p.version for p in PROGRAMS if p.name == component.program)
        sys.stdout.write(f"{component.name:<26}{pid:<9}{version:<10}{health}\n")
    if well:
        sys.stdout.write("\n" + kubectl("get", "nodes", "--output=wide", places=places))
    sys.stdout.write(
        f"\nAPI server  {API_SERVER.url}\n"
        f"kubeconfig  {places.kubeconfig}\n"
        f"programs    {places.programs}\n"
        f"images      {places.image_references}\n"
        f"logs        {places.logs}\n"
    )
    return well


def show_logs(*, lines: int, places: Places) -> None:
    """Print the end of each component's log."""
    for log in sorted(places.logs.glob("*.log")):
        sys.stdout.write(f"==> {log}\n{tail(log, lines=lines)}\n\n")


def _state(component: Component, *, places: Places) -> tuple[str, str]:
    identity = running(component.record(places=places))
    if identity is None:
        return "-", f"not running: see {component.log(places=places)}"
    return str(identity.pid), component.check() or "ok"
