"""What a person needs to see when an end-to-end test fails: who said what last."""

from harness.cluster import Cluster, CommandFailedError, run_cluster_program
from harness.installation import NAMESPACES, SYSTEM

LINES = 60


def describe(cluster: Cluster) -> list[tuple[str, str]]:
    """Titles and texts, most telling first."""
    parts = [
        ("FineTuneJobs", _say(cluster, "get", "finetunejobs", "-A", "-o", "wide")),
        ("describe", _say(cluster, "describe", "finetunejobs", "-A")),
        ("operator", _logs(cluster, SYSTEM, "app.kubernetes.io/component=operator")),
    ]
    for namespace in NAMESPACES:
        where = f"--namespace={namespace}"
        parts += [
            (f"pods of {namespace}", _say(cluster, "get", "pods", where, "-o", "wide")),
            (
                f"events of {namespace}",
                _last(_say(cluster, "get", "events", where, "--sort-by=.lastTimestamp")),
            ),
            (f"training pods of {namespace}", _logs(cluster, namespace, "anneal.dev/job")),
        ]
    parts.append(("cluster", run_cluster_program("logs", "--lines=15")))
    return parts


def _logs(cluster: Cluster, namespace: str, labels: str) -> str:
    return _say(
        cluster, "logs", f"--namespace={namespace}", f"--selector={labels}", f"--tail={LINES}",
        "--prefix", "--all-containers",
    )  # fmt: skip


def _say(cluster: Cluster, *arguments: str) -> str:
    try:
        return cluster.kubectl(*arguments)
    except CommandFailedError as error:
        return str(error)


def _last(text: str) -> str:
    return "\n".join(text.splitlines()[-LINES:])
