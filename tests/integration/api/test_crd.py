"""The generated CRDs on a real API server: accepted and strict."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.integration.api.kubectl import SMALLEST, Kubectl, manifest, merged, new_name

from anneal_jobs.cli.job_file import read_job_file
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_pipeline.config.schema import ConfigError


def test_both_crds_are_structural_and_their_names_accepted(kubectl: Kubectl) -> None:
    crds = json.loads(kubectl("get", "crds", "-o", "json").stdout)["items"]
    conditions = {
        crd["metadata"]["name"]: {c["type"]: c["status"] for c in crd["status"]["conditions"]}
        for crd in crds
    }
    assert set(conditions) == {"finetunejobs.anneal.dev", "finetuneprofiles.anneal.dev"}
    for found in conditions.values():
        assert found == {"Established": "True", "NamesAccepted": "True"}


def test_the_smallest_job_is_accepted_with_every_default_filled_in(kubectl: Kubectl) -> None:
    name = new_name()
    done = kubectl.apply(SMALLEST, name=name)
    assert done.returncode == 0, done.stderr
    stored = json.loads(kubectl("get", "ftj", name, "-o", "json").stdout)["spec"]
    assert stored["training"]["learningRate"] == 2e-4
    assert stored["tuning"]["lora"]["rank"] == 16
    want = FineTuneJobSpec.parse(SMALLEST)
    assert FineTuneJobSpec.parse(stored) == want


REFUSED = [
    pytest.param("training.learning_rate", 1e-4, "unknown field", id="unknown field"),
    pytest.param("training.epochs", "3", "spec.training.epochs", id="string for a number"),
    pytest.param("training.maxSteps", 1.5, "spec.training.maxSteps", id="fraction for an integer"),
    pytest.param("training.learningRate", 0, "spec.training.learningRate", id="rate of zero"),
    pytest.param("tuning.method", "full", "spec.tuning.method", id="value outside an enum"),
    pytest.param("tuning.lora.rank", 0, "spec.tuning.lora.rank", id="rank of zero"),
    pytest.param("model.uri", "/data/model", "model.uri must begin", id="path in a cluster"),
    pytest.param("model.uri", "hf://org/name", "revision is required", id="hub without revision"),
    pytest.param("dataset.uri", None, "exactly one of uri and files", id="no dataset"),
    pytest.param(
        "dataset.files", {"train": "s3://a/b"}, "exactly one of uri and files", id="two datasets"
    ),
    pytest.param(
        "dataset.split", {"train": 0.5}, "must add up to 1", id="split that does not add up"
    ),
    pytest.param(
        "training", {"epochs": 1, "maxSteps": 5}, "exclude each other", id="epochs and maxSteps"
    ),
    pytest.param(
        "training",
        {"warmupSteps": 1, "warmupRatio": 0.1},
        "exclude each other",
        id="both warm-ups",
    ),
    pytest.param(
        "training", {"batchSize": 4, "microBatchSize": 8}, "microBatchSize", id="micro over batch"
    ),
    pytest.param(
        "training",
        {"learningRate": 1e-4, "minLearningRate": 2e-4},
        "minLearningRate",
        id="least rate over the peak",
    ),
    *(
        pytest.param(
            "training",
            {"schedule": schedule, "minLearningRate": 1e-5},
            "minLearningRate has no effect",
            id=f"least rate of {schedule}",
        )
        for schedule in ("constant", "constantWithWarmup")
    ),
    pytest.param(
        "dataset.filters", {"minTokens": 9, "maxTokens": 8}, "maxTokens", id="bounds reversed"
    ),
    pytest.param(
        "compute", {"engine": "Job", "workers": 2}, "exactly one worker", id="Job of two workers"
    ),
    pytest.param(
        "compute",
        {"ranksPerWorker": 17},
        "must not be greater than training.batchSize",
        id="more ranks than rows of a batch",
    ),
    pytest.param(
        "dataset",
        {"uri": "s3://a/b", "format": "parquet", "encoding": "cp1252"},
        "encoding",
        id="encoding of Parquet",
    ),
    pytest.param("tracking.gate", {}, "at least one of", id="gate without a bound"),
    pytest.param(
        "model",
        {"uri": "s3://a/b", "revision": "main"},
        "revision has",
        id="revision of a model outside the hub",
    ),
    pytest.param(
        "dataset.revision", "main", "revision has", id="revision of a dataset outside the hub"
    ),
    *(
        pytest.param(
            "dataset",
            {"files": {"train": "s3://a/b", part: "hf://org/name"}},
            "revision is required",
            id=f"hub {part} file without revision",
        )
        for part in ("train", "validation", "test")
    ),
    pytest.param(
        "dataset",
        {"files": {"train": "s3://a/b", "test": "/data/rows.jsonl"}},
        "every one of dataset.files must begin",
        id="file in a cluster",
    ),
    pytest.param(
        "tuning",
        {"method": "lora", "quantization": {"type": "fp4"}},
        "no effect for method lora",
        id="4-bit type for plain lora",
    ),
    *(
        pytest.param(
            "tuning.lora.initialization", name, "not held in 4 bits", id=f"{name} for 4-bit weights"
        )
        for name in ("orthogonal", "pissa", "pissa_niter_16")
    ),
    pytest.param(
        "tuning",
        {"method": "lora", "lora": {"initialization": "loftq"}},
        "corrects 4-bit weights",
        id="loftq for plain lora",
    ),
    pytest.param("tuning.newTokens", ["<a>", "<b>", "<a>"], "more than once", id="token twice"),
    pytest.param("tuning.newTokens", ["a b"], "spec.tuning.newTokens", id="token with a blank"),
    pytest.param(
        "tuning.lora",
        {"initialization": "loftq", "useDora": True},
        "magnitudes would be those of",
        id="loftq and DoRA",
    ),
    *(
        pytest.param(
            "tuning.lora",
            {"rankAllocation": {}, **other},
            "rankAllocation excludes",
            id=f"rankAllocation and {next(iter(other))}",
        )
        for other in (
            {"useDora": True},
            {"rankPattern": {"q_proj": 4}},
            {"initialization": "gaussian"},
        )
    ),
    pytest.param(
        "tuning.lora",
        {"rank": 8, "rankAllocation": {"initialRank": 8}},
        "must be greater than rank",
        id="ranks that do not fall",
    ),
    pytest.param(
        "tuning.lora.rankAllocation",
        {"startShare": 0.5},
        "must be smaller than endShare",
        id="ranks that fall before they begin to",
    ),
    *(
        pytest.param("tracking.alias", alias, "which MLflow reserves", id=f"alias {alias}")
        for alias in ("latest", "Latest", "v3", "V12")
    ),
    *(
        pytest.param("tracking.tags", {key: "x"}, "are reserved", id=f"tag {key}")
        for key in ("mlflow.runName", "anneal.job.uid")
    ),
    *(
        pytest.param("tracking.tags", {key: "x"}, "a single slash", id=f"tag {key[:8]}")
        for key in ("a//b", "/a", "a/../b", "a?b", "k" * 251)
    ),
    pytest.param("tracking.tags", {"a": "x" * 1025}, "tracking.tags", id="long tag"),
    pytest.param(
        "tracking.registeredModel", "a/b", "spec.tracking.registeredModel", id="model with slash"
    ),
    pytest.param(
        "tracking.experiment", " a", "spec.tracking.experiment", id="experiment with blank"
    ),
    pytest.param(
        "tracking.experiment", "a\nb", "spec.tracking.experiment", id="experiment of two lines"
    ),
]

TAKEN = [
    pytest.param(
        "dataset",
        {"files": {"train": "s3://a/b", "test": "hf://o/n"}, "revision": "main"},
        id="one file on the hub",
    ),
    pytest.param(
        "dataset.split",
        {"train": 0.7, "validation": 0.1999995, "test": 0.1},
        id="split that adds up within 1e-6",
    ),
    *(
        pytest.param(
            "training",
            {"learningRate": 1e-4, "minLearningRate": least, "schedule": schedule},
            id=f"least rate {least:g} of {schedule}",
        )
        for schedule, least in (("cosine", 1e-4), ("inverseSqrt", 1e-5))
    ),
    pytest.param("tuning.lora.initialization", "loftq", id="loftq"),
    pytest.param("compute", {"ranksPerWorker": 16}, id="as many ranks as rows of a batch"),
    pytest.param("tuning.lora.rankAllocation", {}, id="ranks that fall"),
    pytest.param(
        "tuning.lora",
        {"rank": 8, "rankAllocation": {"initialRank": 9, "startShare": 0.0, "everySteps": 10}},
        id="ranks that fall by numbers",
    ),
    pytest.param(
        "tuning", {"method": "lora", "lora": {"initialization": "pissa_niter_8"}}, id="pissa"
    ),
    pytest.param("tracking.alias", "v2-candidate", id="alias that resembles a version"),
    pytest.param(
        "tracking.tags", {"team.x/cost centre:7": "x" * 1024, "k" * 250: ""}, id="long tags"
    ),
    pytest.param("tracking.experiment", "\u00fcbung / 2026", id="experiment not in ASCII"),
    pytest.param(
        "tuning",
        {"method": "lora", "quantization": {"computeDtype": "float32"}},
        id="type of products for plain lora",
    ),
]

CLUSTER_ONLY = {
    "path in a cluster",
    "file in a cluster",
    "Job of two workers",
    "gate without a bound",
}


@pytest.mark.parametrize(("path", "value", "want"), REFUSED)
def test_bad_specs_are_refused_naming_the_field(
    kubectl: Kubectl, path: str, value: object, want: str
) -> None:
    done = kubectl.apply(merged(SMALLEST, path, value), name=new_name())
    assert done.returncode != 0
    assert want in done.stderr


@pytest.mark.parametrize(
    ("path", "value", "want"), [case for case in REFUSED if case.id not in CLUSTER_ONLY]
)
def test_what_the_api_server_refuses_a_local_run_refuses_too(
    path: str, value: object, want: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        FineTuneJobSpec.parse(merged(SMALLEST, path, value))
    assert want.removeprefix("spec.") in str(caught.value)


@pytest.mark.parametrize("num_gpus", [None, 0, 1])
def test_float16_is_refused_only_where_no_gpu_is_asked_for(
    kubectl: Kubectl, num_gpus: int | None
) -> None:
    spec = merged(SMALLEST, "tuning.quantization.computeDtype", "float16")
    spec = merged(spec, "compute.gpusPerWorker", num_gpus)
    done = kubectl.apply(spec, name=new_name())
    if num_gpus != 0:
        assert done.returncode == 0, done.stderr
        FineTuneJobSpec.parse(spec)
        return
    assert "float16 is for GPUs" in done.stderr
    with pytest.raises(ConfigError, match="float16 is for GPUs"):
        FineTuneJobSpec.parse(spec)


@pytest.mark.parametrize(("path", "value"), TAKEN)
def test_what_is_in_order_is_taken_by_the_api_server_and_a_local_run(
    kubectl: Kubectl, path: str, value: object
) -> None:
    spec = merged(SMALLEST, path, value)
    done = kubectl.apply(spec, name=new_name())
    assert done.returncode == 0, done.stderr
    FineTuneJobSpec.parse(spec)


def test_a_profile_whose_default_breaks_its_own_limit_is_refused(kubectl: Kubectl) -> None:
    profile: dict[str, Any] = {
        "apiVersion": "anneal.dev/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": {"name": "no-gpus"},
        "spec": {
            "images": {"trainer": "trainer:1"},
            "tracking": {"uri": "http://mlflow:5000"},
            "limits": {"gpusPerWorker": 0},
        },
    }
    done = kubectl("apply", "-f", "-", stdin=profile)
    assert done.returncode != 0
    assert "must not be greater than limits.gpusPerWorker" in done.stderr
    profile["spec"] = {**profile["spec"], "resources": {"gpusPerWorker": 0}}
    assert kubectl("apply", "-f", "-", stdin=profile).returncode == 0


def test_a_number_in_exponent_form_means_the_same_to_kubectl_and_to_a_local_run(
    kubectl: Kubectl, tmp_path: Path
) -> None:
    name = new_name()
    path = tmp_path / "job.yaml"
    text = json.dumps(manifest(SMALLEST, name=name))
    path.write_text(text[:-2] + ', "training": {"learningRate": 2e-4}}}', encoding="utf-8")
    assert kubectl("apply", "-f", str(path)).returncode == 0
    stored = json.loads(kubectl("get", "ftj", name, "-o", "json").stdout)["spec"]
    read = read_job_file(str(path)).spec.training.learning_rate
    assert stored["training"]["learningRate"] == read == 2e-4


def test_what_another_client_misspells_is_pruned_by_the_api_server(kubectl: Kubectl) -> None:
    name = new_name()
    body = manifest(merged(SMALLEST, "training.learning_rate", 1e-4), name=name)
    done = kubectl("apply", "--validate=ignore", "-f", "-", stdin=body)
    assert done.returncode == 0, done.stderr
    stored = json.loads(kubectl("get", "ftj", name, "-o", "json").stdout)["spec"]
    assert "learning_rate" not in stored["training"]
    assert FineTuneJobSpec.parse(stored) == FineTuneJobSpec.parse(SMALLEST)


def test_a_name_longer_than_a_label_is_refused(kubectl: Kubectl) -> None:
    done = kubectl.apply(SMALLEST, name="a" * 64)
    assert done.returncode != 0
    assert "at most 63 characters" in done.stderr


def test_explain_shows_descriptions_and_defaults(kubectl: Kubectl) -> None:
    text = kubectl("explain", "finetunejob.spec.tuning.lora.rank").stdout
    assert "Rank of the two adapter matrices" in text
