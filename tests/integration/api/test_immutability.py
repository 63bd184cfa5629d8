"""What may change in a job that exists, field by field on a real API server."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.api.kubectl import SMALLEST, Kubectl, merged, new_name

from anneal_operator.api.spec import MUTABLE_FIELDS
from anneal_operator.generate.crd import job_crd

SPECIAL: dict[str, object] = {
    "tuning.lora.initialization": "loftq",
    "training.microBatchSize": 2,
    "training.minLearningRate": 1e-5,
    "compute.ranksPerWorker": 2,
    "tuning.lora.rankAllocation": {"initialRank": 24},
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
    name = new_name()
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
    name = new_name()
    assert kubectl.apply(SMALLEST, name=name).returncode == 0
    value = 7 if path.endswith("minTokens") else "s3://other/place"
    patch = json.dumps({"spec": merged({}, path, value)})
    done = kubectl("patch", "ftj", name, "--type=merge", "-p", patch)
    assert done.returncode != 0
    assert f"{owner(path)} cannot be changed after creation" in done.stderr


@pytest.mark.parametrize("path", MUTABLE_FIELDS)
def test_a_mutable_field_can_be_added_changed_and_removed(kubectl: Kubectl, path: str) -> None:
    name = new_name()
    assert kubectl.apply(SMALLEST, name=name).returncode == 0
    for value in (other_value(path), None):
        patch = merged({}, path, "VALUE")
        text = json.dumps({"spec": patch}).replace('"VALUE"', json.dumps(value))
        done = kubectl("patch", "ftj", name, "--type=merge", "-p", text)
        assert done.returncode == 0, done.stderr
