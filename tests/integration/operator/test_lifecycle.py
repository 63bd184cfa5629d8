"""From `kubectl apply` to a registered model, and what the status says on the way."""

import json
from collections.abc import Awaitable, Callable

from tests.integration.operator.cluster import Cluster, kubectl
from tests.integration.operator.eventually import eventually
from tests.integration.operator.mlflow_server import Mlflow
from tests.integration.operator.operator_process import Operators
from tests.integration.operator.trainer import DIGEST, Trainer, outcome

from anneal_operator.api.names import run_config_name
from anneal_operator.resources import CONFIG_MAPS

MakeTrainer = Callable[..., Awaitable[Trainer]]


async def test_the_smallest_job_becomes_one_child(cluster: Cluster, operators: Operators) -> None:
    operators()
    await cluster.apply_job()
    child = await cluster.until_child(1)
    status = await cluster.status()

    assert (await cluster.condition("Accepted"))["status"] == "True"
    assert status["attempts"][0]["child"] == child["metadata"]["name"]
    assert status["phase"] == "Starting"
    assert "finalizers" not in (await cluster.job())["metadata"]
    assert len(await cluster.children()) == 1


async def test_a_job_is_watched_to_a_registered_model(
    cluster: Cluster, operators: Operators, trainer: MakeTrainer, mlflow: Mlflow
) -> None:
    operator = operators()
    job = await cluster.apply_job()
    child = await cluster.until_child(1)
    pod = await cluster.start_pod(child)
    await cluster.until_condition("Running", "True")
    reporter = await trainer(pod, operator=operator)
    train = {"name": "train", "done": 120, "total": 285, "unit": "steps"}
    code, text = await reporter.post(
        percent=42,
        step=120,
        totalSteps=285,
        loss=1.3141,
        stage=train,
        checkpoint="step-000120-a01-1f2e3d4c",
        checkpointStep=120,
    )
    assert (code, text) == (200, '{"message": "ok"}')
    await cluster.until_condition("CheckpointAvailable", "True")
    printed = kubectl(cluster.kubeconfig, "get", "ftj", "support-bot", "-n", cluster.namespace)
    for shown in ("Running", "42%", "120/285", "1.314", "6m", "SmolLM2-135M-Instruct"):
        assert shown in printed

    (run,) = mlflow.runs(job["metadata"]["uid"])
    assert run.info.status == "RUNNING"
    version = mlflow.register(f"bot-{cluster.namespace}", run_id=run.info.run_id)
    said = outcome(modelVersion=version, metrics={"tunedPerplexity": 17.0})
    code, _ = await reporter.post(percent=100, outcome=said)
    assert code == 200
    assert (await cluster.status())["attempts"][0]["outcome"]["artefactDigest"] == DIGEST
    await cluster.end_pod(pod, code=0)
    await cluster.end_child(child, result="Complete")
    await cluster.until_condition("Succeeded", "True")

    status = await cluster.status()
    assert status["phase"] == "Succeeded"
    assert status["mlflow"]["runClosed"] == "FINISHED"
    assert status["metrics"] == {"tunedPerplexity": 17.0}
    assert (await cluster.condition("Registered"))["status"] == "True"
    (run,) = mlflow.runs(job["metadata"]["uid"])
    assert run.info.status == "FINISHED"


async def test_a_mistake_in_the_input_is_not_repeated(
    cluster: Cluster, operators: Operators, mlflow: Mlflow
) -> None:
    operators()
    job = await cluster.apply_job()
    child = await cluster.until_child(1)
    pod = await cluster.start_pod(child)
    sentence = "s3://team-data/support.jsonl does not exist; upload it or correct dataset.uri"
    await cluster.end_pod(pod, code=65, message=json.dumps(outcome("User", message=sentence)))
    await cluster.end_child(child, result="Failed")
    failed = await cluster.until_condition("Failed", "True")

    assert failed["reason"] == "DatasetNotFound"
    assert failed["message"] == sentence

    async def closed() -> bool:
        return (await cluster.status())["mlflow"].get("runClosed") == "FAILED"

    await eventually(closed, what="the run to be closed")
    assert len(await cluster.children()) == 1
    (run,) = mlflow.runs(job["metadata"]["uid"])
    assert run.info.status == "FAILED"


async def test_an_infrastructure_failure_is_repeated_in_the_same_run(
    cluster: Cluster, operators: Operators, mlflow: Mlflow
) -> None:
    operators()
    job = await cluster.apply_job(retry={"infrastructure": 1, "backoffSeconds": 0})
    first = await cluster.until_child(1)
    await cluster.end_pod(await cluster.start_pod(first), code=203)
    await cluster.end_child(first, result="Failed")
    second = await cluster.until_child(2)
    assert (await cluster.status())["spent"]["infrastructure"] == 1
    await cluster.end_pod(await cluster.start_pod(second), code=1)
    await cluster.end_child(second, result="Failed")
    failed = await cluster.until_condition("Failed", "True", reason="RetriesExhausted")

    assert "exit code 1" in failed["message"]
    assert len(await cluster.children()) == 2
    assert len(mlflow.runs(job["metadata"]["uid"])) == 1


async def test_somebody_elses_config_is_not_trained_by(
    cluster: Cluster, operators: Operators
) -> None:
    operators()
    job = await cluster.apply_job(suspend=True)
    await cluster.until_condition("Suspended", "True")
    name = run_config_name("support-bot", job["metadata"]["uid"])
    forged = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": cluster.namespace},
        "immutable": True,
        "data": {"job.json": "{}"},
    }
    await cluster.kube.create(CONFIG_MAPS, forged, namespace=cluster.namespace)
    await cluster.apply_job(suspend=False)
    told = await cluster.until_condition("Provisioned", "False", reason="PodRefused")
    assert f"ConfigMap {name} exists and does not belong to this job" in told["message"]
    assert await cluster.children() == ()

    kubectl(cluster.kubeconfig, "delete", "configmap", name, "-n", cluster.namespace)
    await cluster.until_child(1)


async def test_suspending_stops_the_pod_and_resuming_goes_on(
    cluster: Cluster, operators: Operators
) -> None:
    operators()
    await cluster.apply_job()
    child = await cluster.until_child(1)
    pod = await cluster.start_pod(child)
    await cluster.until_condition("Running", "True")
    await cluster.apply_job(suspend=True)
    await cluster.until_condition("Suspended", "False", reason="SuspendRequested")
    await cluster.end_pod(pod, code=75, message=json.dumps(outcome("Interrupted", step=110)))
    await cluster.collect(child, pods=(pod,))
    await cluster.until_condition("Suspended", "True")
    status = await cluster.status()
    assert status["phase"] == "Suspended"
    assert status["attempts"][0]["class"] == "Suspension"
    assert await cluster.children() == ()

    await cluster.apply_job(suspend=False)
    second = await cluster.until_child(2)
    assert second["metadata"]["labels"]["anneal.dev/attempt"] == "2"
    assert (await cluster.status())["spent"] == {
        "infrastructure": 0,
        "interruptionsWithoutCheckpoint": 0,
        "preemption": 0,
        "user": 0,
    }


async def test_a_finished_job_is_deleted_after_its_time_and_never_run_again(
    cluster: Cluster, operators: Operators
) -> None:
    operators()
    await cluster.apply_job(ttlSecondsAfterFinished=1)
    child = await cluster.until_child(1)
    pod = await cluster.start_pod(child)
    await cluster.end_pod(pod, code=65)
    await cluster.end_child(child, result="Failed")

    async def deleting() -> bool:
        listed = kubectl(
            cluster.kubeconfig, "get", "ftj", "-n", cluster.namespace, "-o",
            "jsonpath={.items[*].metadata.deletionTimestamp}",
        )  # fmt: skip
        return bool(listed.strip())

    await eventually(deleting, what="the deletion of the job")
    assert len(await cluster.children()) == 1
