"""Talks to the running cluster by kubectl, as its administrator."""

import json
from collections.abc import Sequence
from typing import Any

from builds import program_path
from commands import run
from places import Places

Object = dict[str, Any]


def kubectl(*arguments: str, places: Places, stdin: str | None = None) -> str:
    """Run kubectl against this cluster, whatever the person's own context is."""
    program = program_path("kubectl", places=places)
    return run([program, f"--kubeconfig={places.kubeconfig}", *arguments], stdin=stdin)


def apply(objects: Sequence[Object], *, places: Places) -> None:
    """Create or update objects; the same call twice changes nothing."""
    bundle = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    manner = ["--server-side", "--force-conflicts", "--field-manager=anneal-test-cluster"]
    kubectl("apply", *manner, "--filename=-", places=places, stdin=json.dumps(bundle))
