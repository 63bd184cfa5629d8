"""The generated CRDs on a real API server: accepted, strict, and immutable where they say so."""

import copy
import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anneal_jobs.cli.job_file import read_job_file
from anneal_operator.api.spec import MUTABLE_FIELDS, FineTuneJobSpec
from anneal_operator.generate.crd import job_crd
from anneal_pipeline.config.schema import ConfigError

SMALLEST: dict[str, Any] = {
    "model": {"uri": "s3://models/smollm2"},
    "dataset": {"uri": "s3://team-data/support.jsonl"},
}
_names = (f"job-{number}" for number in itertools.count())


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


@pytest.fixture(scope="module")
def kubectl(anneal_api: Path, kubectl_program: Path) -> Kubectl:
    return Kubectl(anneal_api, kubectl_program)


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
    name = next(_names)
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
        "dataset.filters", {"minTokens": 9, "maxTokens": 8}, "maxTokens", id="bounds reversed"
    ),
    pytest.param(
        "compute", {"engine": "Job", "workers": 2}, "exactly one worker", id="Job of two workers"
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
    pytest.param("tuning.lora.initialization", "loftq", id="loftq"),
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
    done = kubectl.apply(merged(SMALLEST, path, value), name=next(_names))
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


@pytest.mark.parametrize(("path", "value"), TAKEN)
def test_what_is_in_order_is_taken_by_the_api_server_and_a_local_run(
    kubectl: Kubectl, path: str, value: object
) -> None:
    spec = merged(SMALLEST, path, value)
    done = kubectl.apply(spec, name=next(_names))
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


SPECIAL: dict[str, object] = {
    "tuning.lora.initialization": "loftq",
    "training.microBatchSize": 2,
    "checkpoint.acceptChanges": ["training.learningRate"],
    "training.earlyStopping": {"patience": 2},
    "export.gguf": {"types": ["q8_0"]},
    "tracking.gate": {"max": 2.5},
    "compute.cpus": "500m",
    "compute.memory": "3Gi",
    "compute.sharedMemory": "1Gi",
}
"""Values for fields whose rules the schema alone does not tell."""


def other_value(path: str) -> object:
    """Return some valid value for a field, different from its default."""
    return SPECIAL.get(path) or changed(LEAVES[path])


def changed(schema: dict[str, Any]) -> object:
    if "enum" in schema:
        return next(value for value in schema["enum"] if value != schema.get("default"))
    match schema["type"]:
        case "boolean":
            return not schema.get("default", False)
        case "integer" | "number":
            return changed_number(schema)
        case "array":
            return [changed(schema["items"])]
        case "object":
            if "additionalProperties" in schema:
                return {"key": changed(schema["additionalProperties"])}
            return {name: changed(schema["properties"][name]) for name in schema["required"]}
    return "s3://other/place" if schema.get("maxLength") == 1024 else "other"


def changed_number(schema: dict[str, Any]) -> float:
    low, top = schema.get("minimum", 0), schema.get("maximum", 1000)
    middle = (low + top) / 2 if schema["type"] == "number" else (low + top) // 2
    return next(n for n in (middle, low, top) if n != schema.get("default"))


def leaves(schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in schema["properties"].items():
        if "properties" in field and "default" in field:
            yield from leaves(field, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


SPEC_SCHEMA = job_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
LEAVES = dict(leaves(SPEC_SCHEMA))
IMMUTABLE = [path for path in LEAVES if path not in MUTABLE_FIELDS and path not in SMALLEST]
"""Every optional field that may not change; model and dataset have a test of their own."""


def owner(path: str) -> str:
    """Return the path the refusal names: a top-level field, or one of queue's."""
    return path if path.startswith("queue.") else path.split(".")[0]


@pytest.mark.parametrize("path", IMMUTABLE)
def test_a_field_cannot_be_added_changed_or_removed(kubectl: Kubectl, path: str) -> None:
    name = next(_names)
    one = other_value(path)
    patch = {"spec": merged({}, path, one)}
    assert kubectl.apply(SMALLEST, name=name).returncode == 0
    done = kubectl("patch", "ftj", name, "--type=merge", "-p", json.dumps(patch))
    assert done.returncode != 0
    assert f"{owner(path)} cannot be changed after creation" in done.stderr
    remove = {"spec": merged({}, path, "REMOVE")}
    text = json.dumps(remove).replace('"REMOVE"', "null")
    with_field = kubectl.apply(merged(SMALLEST, path, one), name=f"{name}-set")
    assert with_field.returncode == 0, with_field.stderr
    done = kubectl("patch", "ftj", f"{name}-set", "--type=merge", "-p", text)
    assert done.returncode != 0
    assert f"{owner(path)} cannot be changed after creation" in done.stderr


@pytest.mark.parametrize("path", ["model.uri", "dataset.uri", "dataset.filters.minTokens"])
def test_model_and_data_cannot_be_changed(kubectl: Kubectl, path: str) -> None:
    name = next(_names)
    assert kubectl.apply(SMALLEST, name=name).returncode == 0
    value = 7 if path.endswith("minTokens") else "s3://other/place"
    patch = json.dumps({"spec": merged({}, path, value)})
    done = kubectl("patch", "ftj", name, "--type=merge", "-p", patch)
    assert done.returncode != 0
    assert f"{owner(path)} cannot be changed after creation" in done.stderr


@pytest.mark.parametrize("path", MUTABLE_FIELDS)
def test_a_mutable_field_can_be_added_changed_and_removed(kubectl: Kubectl, path: str) -> None:
    name = next(_names)
    assert kubectl.apply(SMALLEST, name=name).returncode == 0
    for value in (other_value(path), None):
        patch = merged({}, path, "VALUE")
        text = json.dumps({"spec": patch}).replace('"VALUE"', json.dumps(value))
        done = kubectl("patch", "ftj", name, "--type=merge", "-p", text)
        assert done.returncode == 0, done.stderr


def test_a_number_in_exponent_form_means_the_same_to_kubectl_and_to_a_local_run(
    kubectl: Kubectl, tmp_path: Path
) -> None:
    name = next(_names)
    path = tmp_path / "job.yaml"
    text = json.dumps(manifest(SMALLEST, name=name))
    path.write_text(text[:-2] + ', "training": {"learningRate": 2e-4}}}', encoding="utf-8")
    assert kubectl("apply", "-f", str(path)).returncode == 0
    stored = json.loads(kubectl("get", "ftj", name, "-o", "json").stdout)["spec"]
    read = read_job_file(str(path)).spec.training.learning_rate
    assert stored["training"]["learningRate"] == read == 2e-4


def test_what_another_client_misspells_is_pruned_by_the_api_server(kubectl: Kubectl) -> None:
    name = next(_names)
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
