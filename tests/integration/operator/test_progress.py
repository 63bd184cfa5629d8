"""Who may report progress: a pod of the job's current attempt, with a token for this job only."""

import json

from tests.integration.operator.cluster import Cluster, kubectl
from tests.integration.operator.operator_process import Operators
from tests.integration.operator.trainer import outcome


async def test_only_a_pod_of_the_current_attempt_may_report(
    cluster: Cluster, operators: Operators, trainer
) -> None:
    operator = operators()
    await cluster.apply_job(retry={"backoffSeconds": 0})
    first = await cluster.until_child(1)
    old_pod = await cluster.start_pod(first)
    await cluster.until_condition("Running", "True")
    old = await trainer(old_pod, operator=operator)
    assert (await old.post(step=1))[0] == 200

    wrong_audience = await trainer(old_pod, operator=operator, audience="anneal.dev/job/other")
    assert (await wrong_audience.post(step=1))[0] == 401
    assert (await old.post(token="made.up.token", step=1))[0] == 401
    assert (await old.post(step="three"))[0] == 400
    large = [{"name": "n", "message": "x" * 1000}] * 90
    assert (await old.post(step=1, events=large))[0] == 413

    await cluster.end_pod(old_pod, code=203)
    await cluster.end_child(first, result="Failed")
    second = await cluster.until_child(2)
    await cluster.start_pod(second)
    await cluster.until_condition("Running", "True")
    code, text = await old.post(step=2)
    assert code == 409
    assert "no longer the current one" in text


async def test_a_pod_of_another_job_cannot_report(
    cluster: Cluster, operators: Operators, trainer
) -> None:
    operator = operators()
    await cluster.apply_job(name="mine")
    mine = await cluster.until_child(1)
    await cluster.start_pod(mine)
    await cluster.until_condition("Running", "True", name="mine")
    stranger = json.loads(json.dumps(mine))
    labels = stranger["spec"]["template"]["metadata"]["labels"]
    labels["anneal.dev/job-uid"] = "00000000-0000-0000-0000-000000000000"
    pod = await cluster.start_pod(stranger)
    audience = f"anneal.dev/job/{mine['metadata']['labels']['anneal.dev/job-uid']}"
    thief = await trainer(pod, operator=operator, audience=audience)
    assert (await thief.post(step=1))[0] == 403


async def test_an_outcome_outlives_its_pod(cluster: Cluster, operators: Operators, trainer) -> None:
    operator = operators()
    await cluster.apply_job()
    child = await cluster.until_child(1)
    pod = await cluster.start_pod(child)
    await cluster.until_condition("Running", "True")
    reporter = await trainer(pod, operator=operator)
    said = outcome("User", message="Row 17 has no answer; fix the file.")
    assert (await reporter.post(outcome=said))[0] == 200
    operator.kill()
    kubectl(
        cluster.kubeconfig, "delete", "pod", pod["metadata"]["name"], "-n", cluster.namespace,
        "--grace-period=0", "--force",
    )  # fmt: skip
    await cluster.end_child(child, result="Failed")
    operator.start()
    failed = await cluster.until_condition("Failed", "True", reason="DatasetNotFound")
    assert failed["message"] == "Row 17 has no answer; fix the file."
