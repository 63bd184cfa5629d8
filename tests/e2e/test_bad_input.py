"""Bad input ends in one sentence that names the thing and the remedy; nothing is tried twice."""

import json
from typing import Any

import pytest
from harness import stores
from harness.cluster import Cluster, CommandFailedError
from harness.installation import ABSENT_BUCKET, WRONG_SECRET
from harness.jobs import condition, manifest
from harness.scenarios import BAD_INPUTS, Story

NAMED: dict[str, tuple[str, ...]] = {
    "absent-dataset": ("absent.jsonl",),
    "empty-dataset": ("empty.jsonl",),
    "no-answers": ("assistant", "unanswered.jsonl"),
    "absent-bucket": (ABSENT_BUCKET,),
    "pickled-model": ("safetensors",),
    "wrong-secret": (WRONG_SECRET, "storage.credentialsSecret", "access key id is unknown"),
    "no-mlflow": ("mlflow-absent",),
    "forbidden-uri": ("somebody-elses-bucket", "e2e"),
    "later-feature": ("queue.name",),
}
RUN_ATTEMPTS = {
    "absent-dataset", "empty-dataset", "no-answers", "absent-bucket", "pickled-model",
    "wrong-secret",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_status_names_the_mistake_in_a_sentence(name: str, bad_inputs: dict[str, Story]) -> None:
    status = bad_inputs[name].status
    kind = "Failed" if status["phase"] == "Failed" else "Accepted"
    message = condition(status, kind)["message"]
    for word in NAMED[name]:
        assert word in message
    assert "\n" not in message
    assert "Traceback" not in message


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_nothing_is_tried_twice(name: str, bad_inputs: dict[str, Story]) -> None:
    story = bad_inputs[name]
    attempts = story.status.get("attempts", [])
    assert len(attempts) == (1 if name in RUN_ATTEMPTS else 0)
    assert len(story.children) == len(attempts)
    if attempts:
        assert attempts[0]["class"] == "User"
        assert attempts[0]["exitCode"] == 65


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_nothing_is_registered_and_the_run_is_closed(
    name: str, bad_inputs: dict[str, Story]
) -> None:
    client = stores.mlflow_client()
    assert client.search_registered_models(f"name = '{name}'") == []
    run_id = bad_inputs[name].status.get("mlflow", {}).get("runId")
    if name in RUN_ATTEMPTS:
        assert client.get_run(run_id).info.status == "FAILED"
    else:
        assert run_id is None


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        pytest.param({"trainig": {}}, "spec.trainig", id="unknown section"),
        pytest.param({"training": {"epoch": 3}}, "spec.training.epoch", id="unknown field"),
        pytest.param({"training": {"maxSteps": "many"}}, "spec.training.maxSteps", id="type"),
        pytest.param({"training": {"learningRate": -1}}, "spec.training.learningRate", id="bound"),
        pytest.param({"tuning": {"method": "full"}}, "spec.tuning.method", id="choice"),
        pytest.param({"model": {"uri": "/tmp/model"}}, "spec", id="local path"),
    ],
)
def test_apply_refuses_a_malformed_job_by_path(
    spec: dict[str, Any], path: str, cluster: Cluster, installed: object
) -> None:
    job = json.dumps(manifest("malformed", **spec))
    with pytest.raises(CommandFailedError) as refusal:
        cluster.kubectl("apply", "--filename=-", stdin=job)
    assert path in str(refusal.value)


def test_a_running_jobs_spec_is_fixed(cluster: Cluster, bad_inputs: dict[str, Story]) -> None:
    with pytest.raises(CommandFailedError, match="training"):
        bad_inputs["absent-dataset"].job.patch_spec(training={"maxSteps": 7})
