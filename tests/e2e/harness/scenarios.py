"""Lives of whole jobs, each with its own trouble on the way; run side by side, read by the tests.

Each function submits a job, does to it what its name says, waits for its end and returns what it
saw. The scheduler lets two or three run at a time.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from harness.cluster import Cluster, Object, kill_container, wait_for
from harness.installation import (
    ABSENT_BUCKET,
    NO_MLFLOW_PROFILE,
    RELEASE,
    SYSTEM,
    WRONG_SECRET_PROFILE,
)
from harness.jobs import END_SECONDS, Job, manifest, submit
from harness.stores import (
    ABSENT_DATASET_URI,
    EMPTY_DATASET_URI,
    PICKLED_MODEL_URI,
    UNANSWERED_DATASET_URI,
)

LONG = {
    "training": {"maxSteps": 2400},
    "evaluation": {"everySteps": 800},
    "checkpoint": {"everySteps": 50},
}
"""Long enough to be interrupted in the middle, even by a slow hand, and then to go on."""

UNDISTURBED_STEPS = 1200
"""Long enough for several reports of progress, which are 5 s apart, on a fast machine too."""

BAD_INPUTS: dict[str, Object] = {
    "absent-dataset": {"dataset": {"uri": ABSENT_DATASET_URI}},
    "empty-dataset": {"dataset": {"uri": EMPTY_DATASET_URI}},
    "no-answers": {"dataset": {"uri": UNANSWERED_DATASET_URI}},
    "absent-bucket": {"dataset": {"uri": f"s3://{ABSENT_BUCKET}/data/rows.jsonl"}},
    "pickled-model": {"model": {"uri": PICKLED_MODEL_URI}},
    "wrong-secret": {"compute": {"profile": WRONG_SECRET_PROFILE}},
    "no-mlflow": {
        "compute": {"profile": NO_MLFLOW_PROFILE},
        "deadlines": {"pendingSeconds": 30},
    },
    "forbidden-uri": {"dataset": {"uri": "s3://somebody-elses-bucket/rows.jsonl"}},
    "later-feature": {"queue": {"name": "team-a"}},
}


@dataclass(kw_only=True)
class Story:
    """A finished job and what was seen on the way."""

    job: Job
    status: Object
    displays: list[Object] = field(default_factory=list)
    children: list[str] = field(default_factory=list)
    """Children that were ever seen."""
    at_trouble: Object = field(default_factory=dict)
    """The status just before the trouble."""


def undisturbed(cluster: Cluster) -> Story:
    fields = {
        "tuning": {"method": "qlora"},
        "training": {"maxSteps": UNDISTURBED_STEPS},
        "evaluation": {"everySteps": UNDISTURBED_STEPS // 4},
    }
    job = submit(cluster, manifest("undisturbed", **fields))
    displays: list[Object] = []

    def probe() -> Object | None:
        status = job.status()
        display = status.get("display", {})
        if display not in displays:
            displays.append(display)
        return status if status.get("phase") in ("Succeeded", "Failed") else None

    status = wait_for("the end of the job", probe, seconds=END_SECONDS)
    return Story(job=job, status=status, displays=displays, children=job.children())


def killed_pod(cluster: Cluster) -> Story:
    job = submit(cluster, manifest("killed-pod", **LONG))
    at_trouble = job.wait_for_checkpoint()
    (pod,) = job.pods()
    kill_container(pod, program="anneal-train")
    return _to_the_end(job, at_trouble)


def deleted_pod(cluster: Cluster) -> Story:
    job = submit(cluster, manifest("deleted-pod", **LONG))
    at_trouble = job.wait_for_checkpoint()
    (pod,) = job.pods()
    cluster.kubectl(
        "delete", "pod", pod["metadata"]["name"], f"--namespace={job.namespace}", "--wait=false"
    )
    return _to_the_end(job, at_trouble)


def signalled(cluster: Cluster) -> Story:
    job = submit(cluster, manifest("signalled", **LONG))
    at_trouble = job.wait_for_checkpoint()
    (pod,) = job.pods()
    cluster.kubectl(
        "exec", pod["metadata"]["name"], f"--namespace={job.namespace}", "--",
        "sh", "-c", "kill -TERM 1",
    )  # fmt: skip
    return _to_the_end(job, at_trouble)


def killed_operator(cluster: Cluster) -> Story:
    job = submit(cluster, manifest("killed-operator", **LONG))
    kill_container(leader_pod(cluster), program="anneal-operator")
    at_trouble = job.wait_for_checkpoint()
    kill_container(leader_pod(cluster), program="anneal-operator")
    return _to_the_end(job, at_trouble)


def suspended(cluster: Cluster) -> Story:
    job = submit(cluster, manifest("suspended", **LONG))
    job.wait_for_checkpoint()
    seen = job.children()  # before the suspension takes them away
    job.patch_spec(suspend=True)
    at_trouble = job.wait_for_phase("Suspended")
    wait_for(
        "the end of its pods",
        lambda: True if not _running(job) else None,
        seconds=60,
    )
    job.patch_spec(suspend=False)
    return _to_the_end(job, at_trouble, seen=seen)


def bad_inputs(cluster: Cluster) -> dict[str, Story]:
    """Submit all at once; return each one's end by name."""
    jobs = {name: submit(cluster, manifest(name, **spec)) for name, spec in BAD_INPUTS.items()}
    return {
        name: Story(
            job=job, status=job.wait_for_phase("Failed", "Rejected"), children=job.children()
        )
        for name, job in jobs.items()
    }


def leader_pod(cluster: Cluster, *, namespace: str = SYSTEM) -> Object:
    """The operator pod that holds the Lease."""

    def probe() -> Object | None:
        lease = cluster.get("lease", f"{RELEASE}-leader", namespace=namespace)
        holder = (lease["spec"].get("holderIdentity") or "").partition("@")[0]
        pods = cluster.items(
            "pods", namespace=namespace, labels="app.kubernetes.io/component=operator"
        )
        return next((pod for pod in pods if pod["metadata"]["name"] == holder), None)

    return wait_for("a leader", probe, seconds=60)


def _to_the_end(job: Job, at_trouble: Object, *, seen: Iterable[str] = ()) -> Story:
    children = set(seen)

    def probe() -> Object | None:
        children.update(job.children())
        status = job.status()
        return status if status.get("phase") in ("Succeeded", "Failed", "Rejected") else None

    status = wait_for(f"the end of {job.name}", probe, seconds=END_SECONDS)
    return Story(job=job, status=status, children=sorted(children), at_trouble=at_trouble)


def _running(job: Job) -> list[Object]:
    return [pod for pod in job.pods() if pod["status"].get("phase") in ("Pending", "Running")]
