"""kubectl against a real API server, and the jobs that tests give to it."""

import copy
import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

SMALLEST: dict[str, Any] = {
    "model": {"uri": "s3://models/smollm2"},
    "dataset": {"uri": "s3://team-data/support.jsonl"},
}
_numbers = itertools.count()


class Kubectl:
    """kubectl with one kubeconfig, the way a user calls it (strict validation is its default)."""

    def __init__(self, kubeconfig: Path, program: Path) -> None:
        self._argv = [str(program), "--kubeconfig", str(kubeconfig)]

    def __call__(self, *words: str, stdin: object = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._argv, *words],
            input=stdin if isinstance(stdin, str) else json.dumps(stdin),
            capture_output=True,
            text=True,
            check=False,
        )

    def apply(self, spec: dict[str, Any], *, name: str) -> subprocess.CompletedProcess[str]:
        return self("apply", "-f", "-", stdin=manifest(spec, name=name))


def manifest(spec: dict[str, Any], *, name: str) -> dict[str, Any]:
    return {
        "apiVersion": "anneal.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


def merged(spec: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Return a copy of the spec with one dotted path set, or removed when the value is None."""
    result = copy.deepcopy(spec)
    *parents, last = path.split(".")
    node = result
    for parent in parents:
        node = node.setdefault(parent, {})
    if value is None:
        node.pop(last, None)
    else:
        node[last] = value
    return result


def new_name() -> str:
    """A job's name that no test has used."""
    return f"job-{next(_numbers)}"
