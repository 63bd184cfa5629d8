"""A job from `kubectl apply` to the registered model, and everything a user sees of it."""

from pathlib import Path
from typing import Any

import mlflow
import pytest
from harness import stores, tiny_model
from harness.cluster import Cluster
from harness.installation import BUCKET, JOBS, MLFLOW_ADDRESS, PROFILE
from harness.jobs import condition
from harness.scenarios import UNDISTURBED_STEPS as STEPS
from harness.scenarios import Story
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def test_it_succeeds_with_one_child_and_one_attempt(undisturbed: Story) -> None:
    status = undisturbed.status
    assert status["phase"] == "Succeeded"
    assert condition(status, "Registered")["status"] == "True"
    (attempt,) = status["attempts"]
    assert attempt["class"] == "Done"
    assert undisturbed.children == [attempt["child"]]
    assert status["metrics"]["tunedPerplexity"] < 0.4 * status["metrics"]["basePerplexity"]


def test_the_printed_columns_move(undisturbed: Story) -> None:
    seen = {key: [d[key] for d in undisturbed.displays if key in d] for key in ("progress", "step")}
    assert len(set(seen["progress"])) > 2
    assert seen["step"][-1] == f"{STEPS}/{STEPS}"
    assert any("eta" in display for display in undisturbed.displays)
    assert any("loss" in display for display in undisturbed.displays)


def test_kubectl_get_prints_a_line_that_says_it_all(cluster: Cluster, undisturbed: Story) -> None:
    table = cluster.kubectl("get", "ftj", undisturbed.job.name, f"--namespace={JOBS}")
    heading, line = table.splitlines()
    assert heading.split() == [
        "NAME", "PHASE", "PROGRESS", "STEP", "LOSS", "ETA", "MODEL", "RUN", "AGE",
    ]  # fmt: skip
    assert line.split()[:4] == ["undisturbed", "Succeeded", "100%", f"{STEPS}/{STEPS}"]


def test_events_tell_its_life(cluster: Cluster, undisturbed: Story) -> None:
    events = cluster.items("events.events.k8s.io", namespace=JOBS)
    reasons = {
        event["reason"]
        for event in events
        if event.get("regarding", {}).get("name") == undisturbed.job.name
        and event["regarding"]["kind"] == "FineTuneJob"
    }
    assert "Succeeded" in reasons
    assert len(reasons) >= 3


def test_training_pod_is_restricted_and_holds_no_kubernetes_token(undisturbed: Story) -> None:
    (pod,) = undisturbed.job.pods()
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    (container,) = spec["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    audiences = {
        source["serviceAccountToken"]["audience"]
        for volume in spec["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
        if "serviceAccountToken" in source
    }
    assert audiences == {f"anneal.dev/job/{undisturbed.job.read()['metadata']['uid']}"}


def test_mlflow_has_one_finished_run_with_everything(undisturbed: Story) -> None:
    client = stores.mlflow_client()
    mlflow_status = undisturbed.status["mlflow"]
    run = client.get_run(mlflow_status["runId"])
    assert run.info.status == "FINISHED"
    uid = undisturbed.job.read()["metadata"]["uid"]
    runs = client.search_runs(
        [run.info.experiment_id], filter_string=f"tags.`anneal.job.uid` = '{uid}'"
    )
    assert [one.info.run_id for one in runs] == [run.info.run_id]
    assert run.data.params["training.maxSteps"] == str(STEPS)
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in losses] == list(range(1, STEPS + 1))
    assert any(key.startswith("system/") for key in run.data.metrics)
    assert any("responsePerplexity" in key for key in run.data.metrics)
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"config.json"}
    assert run.inputs.dataset_inputs
    assert mlflow_status["url"].startswith(MLFLOW_ADDRESS)


def test_files_lie_in_the_output_folder(cluster: Cluster, undisturbed: Story) -> None:
    prefix = undisturbed.status["outputUri"].removeprefix(f"s3://{BUCKET}/")
    pages = stores.s3_client(cluster).get_paginator("list_objects_v2")
    keys = {
        item["Key"].removeprefix(f"{prefix}/")
        for page in pages.paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        for item in page.get("Contents", [])
    }
    wanted = {
        "config.json",
        "data/report.json",
        "artifacts/adapter/adapter_model.safetensors",
        "evaluation/report.json",
        "logs/attempt-01/outcome.json",
    }
    assert wanted <= keys
    assert not {key for key in keys if key.endswith((".bin", ".pkl"))}


def test_registered_version_carries_its_lineage(undisturbed: Story) -> None:
    version = stores.mlflow_client().get_model_version_by_alias("undisturbed", "candidate")
    (attempt,) = undisturbed.status["attempts"]
    assert version.tags["anneal.artefact.digest"] == attempt["outcome"]["artefactDigest"]
    assert version.tags["anneal.job.uid"] == undisturbed.job.read()["metadata"]["uid"]
    assert str(version.version) == undisturbed.status["mlflow"]["modelVersion"]


def test_registered_model_gives_the_tuned_answers(
    installed: Path, undisturbed: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded by PEFT from the registry alone: no credentials of the S3 server are at hand."""
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    # Else MLflow hands out addresses of the S3 server, whose name only pods can resolve.
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    mlflow.set_tracking_uri(MLFLOW_ADDRESS)
    adapter = mlflow.artifacts.download_artifacts(
        f"models:/{undisturbed.job.name}@candidate", dst_path=str(tmp_path)
    )
    base = AutoModelForCausalLM.from_pretrained(installed)
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    before = {question: _answer(base, tokenizer, question) for question in tiny_model.ANSWERS}
    tuned = PeftModel.from_pretrained(base, adapter)
    after = {question: _answer(tuned, tokenizer, question) for question in tiny_model.ANSWERS}
    right = [q for q, answer in tiny_model.ANSWERS.items() if after[q] == answer]
    assert len(right) >= len(tiny_model.ANSWERS) - 1, after
    assert not [q for q, answer in tiny_model.ANSWERS.items() if before[q] == answer]


def test_a_finished_job_is_never_run_again(cluster: Cluster, undisturbed: Story) -> None:
    cluster.kubectl(
        "delete", "job", *undisturbed.children, f"--namespace={JOBS}", "--cascade=foreground"
    )
    undisturbed.job.patch_spec(ttlSecondsAfterFinished=86400)
    cluster.kubectl("rollout", "restart", "deployment/anneal", "--namespace=e2e-system")
    cluster.kubectl(
        "rollout", "status", "deployment/anneal", "--namespace=e2e-system", "--timeout=120s"
    )
    status = undisturbed.job.status()
    assert undisturbed.job.children() == []
    assert status["phase"] == "Succeeded"
    assert status["profile"]["name"] == PROFILE


def _answer(model: Any, tokenizer: Any, question: str) -> str:
    encoded = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**encoded, max_new_tokens=20, do_sample=False, pad_token_id=0)
    text: str = tokenizer.decode(
        output[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return text
