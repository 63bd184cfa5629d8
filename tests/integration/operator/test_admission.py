"""What is refused, by whom, and in which words."""

import json

import pytest
from tests.integration.operator.cluster import Cluster, apply_profile, kubectl, smallest_spec
from tests.integration.operator.eventually import eventually
from tests.integration.operator.operator_process import Operators, free_port

from anneal_operator.kube import Object


@pytest.mark.parametrize(
    ("change", "reason", "named"),
    [
        pytest.param(
            {"queue": {"name": "team-a"}}, "NotImplemented", "spec.queue.name", id="a queue"
        ),
        pytest.param(
            {"dataset": {"uri": "s3://secrets/payroll.jsonl"}},
            "UriNotAllowed",
            "spec.dataset.uri",
            id="a bucket of somebody else",
        ),
        pytest.param(
            {"compute": {"profile": "absent"}}, "ProfileNotFound", "'absent'", id="no such profile"
        ),
        pytest.param(
            {"compute": {"gpusPerWorker": 2}}, "NotImplemented", "use 0 or 1", id="two GPUs"
        ),
    ],
)
async def test_a_refused_job_gets_no_child(
    cluster: Cluster, operators: Operators, change: Object, reason: str, named: str
) -> None:
    operators()
    await cluster.apply_job(**change)
    refused = await cluster.until_condition("Accepted", "False", reason=reason)

    assert named in refused["message"]
    assert (await cluster.status())["phase"] == "Rejected"
    assert await cluster.children() == ()


async def test_a_job_waits_for_its_profile(
    cluster: Cluster, operators: Operators, mlflow_uri: str
) -> None:
    operators()
    await cluster.apply_job(compute={"profile": cluster.namespace})
    await cluster.until_condition("Accepted", "False", reason="ProfileNotFound")
    await apply_profile(cluster.kube, mlflow_uri=mlflow_uri, name=cluster.namespace)
    await cluster.until_condition("Accepted", "True")
    await cluster.until_child(1)


async def test_an_mlflow_that_does_not_answer_holds_the_job_and_says_so(
    cluster: Cluster, operators: Operators
) -> None:
    silent = f"http://127.0.0.1:{free_port()}"
    await apply_profile(cluster.kube, mlflow_uri=silent, name=cluster.namespace)
    operators(ANNEAL_TRACKING_SERVERS=json.dumps([{"uri": silent}]))
    await cluster.apply_job(compute={"profile": cluster.namespace}, deadlines={"pendingSeconds": 8})
    waiting = await cluster.until_condition("Provisioned", "False", reason="TrackingUnreachable")
    assert silent in waiting["message"]
    assert (await cluster.condition("Accepted"))["status"] == "True"
    failed = await cluster.until_condition("Failed", "True", reason="PendingDeadlineExceeded")

    assert "does not answer" in failed["message"]
    assert await cluster.children() == ()


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        pytest.param({"trainig": {}}, "spec.trainig", id="unknown field"),
        pytest.param({"training": {"epochs": "3"}}, "spec.training.epochs", id="wrong type"),
    ],
)
def test_kubectl_refuses_what_the_schema_does_not_know(
    cluster: Cluster, spec: Object, path: str
) -> None:
    body = {
        "apiVersion": "anneal.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "wrong", "namespace": cluster.namespace},
        "spec": {**smallest_spec(cluster.namespace), **spec},
    }
    file = cluster.kubeconfig.parent / "wrong.json"
    file.write_text(json.dumps(body))
    said = kubectl(cluster.kubeconfig, "apply", "-f", str(file), check=False)
    assert path.rsplit(".", maxsplit=1)[-1] in said
    assert "rror" in said


async def test_the_spec_of_a_running_job_cannot_be_changed(
    cluster: Cluster, operators: Operators
) -> None:
    operators()
    await cluster.apply_job()
    await cluster.until_child(1)
    patch = '{"spec":{"training":{"epochs":9}}}'
    said = kubectl(
        cluster.kubeconfig, "patch", "ftj", "support-bot", "-n", cluster.namespace,
        "--type=merge", "-p", patch, check=False,
    )  # fmt: skip
    assert "immutable" in said or "cannot be changed" in said or "Invalid value" in said


async def test_events_tell_of_each_change_once(cluster: Cluster, operators: Operators) -> None:
    operators()
    await cluster.apply_job(queue={"name": "team-a"})
    await cluster.until_condition("Accepted", "False")

    async def told() -> list[str]:
        listed = kubectl(
            cluster.kubeconfig, "get", "events.events.k8s.io", "-n", cluster.namespace, "-o",
            "jsonpath={range .items[*]}{.type} {.reason}{'\\n'}{end}",
        )  # fmt: skip
        return listed.split("\n")[:-1]

    assert await eventually(told, what="the event") == ["Warning NotImplemented"]
