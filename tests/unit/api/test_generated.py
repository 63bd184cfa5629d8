"""What is made from the typed models: complete, and strict where people type."""

import json
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from anneal_operator.api.reasons import REASON_DOCS, Reason
from anneal_operator.generate.__main__ import editor_schema, generated_files
from anneal_operator.generate.crd import job_crd, profile_crd

JOB: dict[str, Any] = {
    "apiVersion": "anneal.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "support-bot"},
    "spec": {"model": {"uri": "s3://m/x"}, "dataset": {"uri": "s3://d/x"}},
}


def objects(schema: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = [(path, schema)]
    for name, child in schema.get("properties", {}).items():
        found += objects(child, f"{path}.{name}")
    if "items" in schema:
        found += objects(schema["items"], f"{path}[]")
    return found


def schemas() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for crd in (job_crd(), profile_crd()):
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        found += objects(schema["properties"]["spec"], f"{crd['spec']['names']['kind']}.spec")
    return found


def test_every_field_of_spec_has_a_description() -> None:
    exempt = ("tolerations[]", "env[].")
    bare = [p for p, s in schemas() if "description" not in s and not any(e in p for e in exempt)]
    assert [path for path in bare if not path.endswith(("[]", ".spec"))] == []


def test_every_list_map_and_free_string_of_the_job_is_bounded() -> None:
    unbounded = []
    for path, schema in schemas():
        if schema["type"] == "array" and "maxItems" not in schema:
            unbounded.append(path)
        if "additionalProperties" in schema and "maxProperties" not in schema:
            unbounded.append(path)
        if schema["type"] == "string" and "enum" not in schema and path.startswith("FineTuneJob"):
            unbounded += [] if {"maxLength", "format"} & set(schema) else [path]
    assert unbounded == []


def test_parents_with_defaults_inside_default_to_an_empty_object() -> None:
    defaults = {path: schema["default"] for path, schema in schemas() if "default" in schema}
    assert defaults["FineTuneJob.spec.training"] == {}
    assert defaults["FineTuneJob.spec.dataset.filters"] == {}
    assert "FineTuneJob.spec.dataset.split" not in defaults
    assert not [path for path, value in defaults.items() if isinstance(value, list)]


DERIVED = {
    "checkpoint.everySteps",
    "compute.cpus",
    "compute.gpusPerWorker",
    "compute.memory",
    "compute.ranksPerWorker",
    "compute.sharedMemory",
    "dataset.files.validation",
    "dataset.split",
    "evaluation.everySteps",
    "output.uri",
    "tracking.experiment",
    "tracking.registeredModel",
    "training.epochs",
    "training.microBatchSize",
    "training.minLearningRate",
    "training.warmupRatio",
}
"""Fields whose default follows from other fields or from the profile."""


def test_a_derived_default_stands_in_the_description_and_nowhere_else() -> None:
    fields = {path.removeprefix("FineTuneJob.spec."): schema for path, schema in schemas()}
    assert set(fields) >= DERIVED
    for path in DERIVED:
        assert "Default: " in fields[path]["description"], path
        assert "default" not in fields[path], path


def test_every_reason_is_documented() -> None:
    assert set(REASON_DOCS) == set(Reason)


def test_the_editor_schema_takes_a_job_and_refuses_unknown_keys() -> None:
    schema = editor_schema()
    jsonschema.validate(JOB, schema)
    wrong = json.loads(json.dumps(JOB))
    wrong["spec"]["training"] = {"learning_rate": 1}
    with pytest.raises(jsonschema.ValidationError, match="learning_rate"):
        jsonschema.validate(wrong, schema)


def test_the_crd_files_read_back_as_what_they_were_made_from() -> None:
    files = generated_files()
    yaml = YAML(typ="safe", pure=True)
    assert yaml.load(files["charts/anneal/files/crds/finetunejobs.yaml"]) == job_crd()
