"""The cluster the demo runs on: the repository's test cluster, or one of a kubectl context."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import execution
from failure import DemoError
from layout import CACHE, CLUSTER_PROGRAM, STATE

TEST_NODE_ADDRESS = "198.18.0.1"
"""The test cluster's only node; a range reserved for tests, so it is the same everywhere."""

Object = dict[str, Any]
"""A Kubernetes object, as kubectl prints it."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """How kubectl and helm reach the cluster."""

    kubectl_program: Path
    helm_program: Path
    kubeconfig: Path | None
    """None: the user's own."""
    context: str | None
    """None: the kubeconfig's current one."""

    @property
    def is_test_cluster(self) -> bool:
        return self.context is None

    @property
    def kubectl_words(self) -> list[str]:
        words = [str(self.kubectl_program)]
        if self.kubeconfig is not None:
            words.append(f"--kubeconfig={self.kubeconfig}")
        if self.context is not None:
            words.append(f"--context={self.context}")
        return words

    @property
    def kubectl_hint(self) -> str:
        """How a person calls kubectl for this cluster."""
        if self.kubeconfig is not None:
            return f"KUBECONFIG={self.kubeconfig} kubectl"
        return f"kubectl --context {self.context}"

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        return execution.run([*self.kubectl_words, *words], stdin=stdin)

    def look(self, *words: str) -> str:
        """Return what kubectl says, even if it fails."""
        return execution.output_of([*self.kubectl_words, *words])

    def get(self, *words: str) -> Object | None:
        """Return one object, None where it does not exist."""
        text = self.kubectl("get", *words, "--ignore-not-found", "--output=json")
        return json.loads(text) if text.strip() else None

    def apply(self, *objects: Object) -> None:
        bundle = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl(
            "apply", "--server-side", "--field-manager=anneal-demo", "--force-conflicts",
            "--filename=-", stdin=json.dumps(bundle),
        )  # fmt: skip

    def helm(self, *words: str, values: Object) -> str:
        where = []
        if self.kubeconfig is not None:
            where.append(f"--kubeconfig={self.kubeconfig}")
        if self.context is not None:
            where.append(f"--kube-context={self.context}")
        # JSON is YAML; helm reads values from standard input where the file is called "-".
        return execution.run(
            [self.helm_program, *where, *words, "--values=-"], stdin=json.dumps(values)
        )


def start_test_cluster() -> Target:
    """Build what is missing, start the test cluster unless it runs, and return it."""
    execution.run_aloud([sys.executable, CLUSTER_PROGRAM, "up"])
    return Target(
        kubectl_program=STATE / "bin/kubectl",
        helm_program=CACHE / "bin/helm",
        kubeconfig=STATE / "kubeconfig",
        context=None,
    )


def given_cluster(context: str) -> Target:
    """The cluster of a kubectl context, proven to answer."""
    execution.run_aloud([sys.executable, CLUSTER_PROGRAM, "build", "kubectl", "helm"])
    target = Target(
        kubectl_program=CACHE / "bin/kubectl",
        helm_program=CACHE / "bin/helm",
        kubeconfig=None,
        context=context,
    )
    if target.look("auth", "can-i", "*", "*", "--all-namespaces").split()[-1:] != ["yes"]:
        raise DemoError(
            f"context {context} does not answer, or its user is no cluster administrator, which "
            f"installing the chart needs:\n{target.look('cluster-info').strip()}"
        )
    return target
