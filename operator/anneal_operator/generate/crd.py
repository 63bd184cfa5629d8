"""The CustomResourceDefinitions of Anneal's two kinds."""

from collections.abc import Iterator
from typing import Any

from anneal_operator.api.names import (
    GROUP,
    JOB_KIND,
    JOB_PLURAL,
    PROFILE_KIND,
    PROFILE_PLURAL,
    VERSION,
)
from anneal_operator.api.profile import FineTuneProfileSpec, FineTuneProfileStatus
from anneal_operator.api.spec import MUTABLE_FIELDS, FineTuneJobSpec
from anneal_operator.api.status import FineTuneJobStatus
from anneal_operator.generate.structural import Json, structural_schema

NAME_RULE = {
    "rule": "self.metadata.name.size() <= 63",
    "message": "metadata.name must have at most 63 characters, because it becomes a label",
}

JOB_COLUMNS: tuple[Json, ...] = (
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Progress", "type": "string", "jsonPath": ".status.display.progress"},
    {"name": "Step", "type": "string", "jsonPath": ".status.display.step"},
    {"name": "Loss", "type": "string", "jsonPath": ".status.display.loss"},
    {"name": "ETA", "type": "string", "jsonPath": ".status.display.eta"},
    {"name": "Model", "type": "string", "jsonPath": ".status.display.model"},
    {"name": "Run", "type": "string", "jsonPath": ".status.display.run"},
    {"name": "Queue", "type": "string", "jsonPath": ".status.queue.name", "priority": 1},
    {"name": "Attempts", "type": "integer", "jsonPath": ".status.attempt", "priority": 1},
    {"name": "GPUs", "type": "integer", "jsonPath": ".status.display.gpus", "priority": 1},
    {"name": "MLflow", "type": "string", "jsonPath": ".status.mlflow.url", "priority": 1},
    {"name": "Version", "type": "string", "jsonPath": ".status.mlflow.modelVersion", "priority": 1},
    {"name": "Reason", "type": "string", "jsonPath": ".status.display.reason", "priority": 1},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
)

PROFILE_COLUMNS: tuple[Json, ...] = (
    {
        "name": "Ready",
        "type": "string",
        "jsonPath": '.status.conditions[?(@.type=="Ready")].status',
    },
    {"name": "Tracking", "type": "string", "jsonPath": ".spec.tracking.uri"},
    {"name": "Image", "type": "string", "jsonPath": ".spec.images.trainer", "priority": 1},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
)


def job_crd() -> Json:
    """Return the CRD of FineTuneJob."""
    spec = structural_schema(FineTuneJobSpec)
    spec["x-kubernetes-validations"] = [
        *spec.get("x-kubernetes-validations", ()),
        *immutability_rules(spec),
    ]
    return _crd(
        kind=JOB_KIND,
        plural=JOB_PLURAL,
        short_name="ftj",
        scope="Namespaced",
        description="A fine-tuning run: model and data in, a registered model out.",
        spec=spec,
        status=structural_schema(FineTuneJobStatus),
        columns=JOB_COLUMNS,
    )


def profile_crd() -> Json:
    """Return the CRD of FineTuneProfile."""
    return _crd(
        kind=PROFILE_KIND,
        plural=PROFILE_PLURAL,
        short_name="ftp",
        scope="Cluster",
        description="What an administrator decides for the FineTuneJobs that name it.",
        spec=structural_schema(FineTuneProfileSpec),
        status=structural_schema(FineTuneProfileStatus),
        columns=PROFILE_COLUMNS,
    )


def immutability_rules(spec: Json) -> Iterator[Json]:
    """Yield one rule per immutable field, written on the spec itself.

    A rule on an optional field would be skipped when the field is added or removed, so each rule
    compares presence first. Parents of mutable fields are descended into.
    """
    mutable = {tuple(path.split(".")) for path in MUTABLE_FIELDS}
    parents = {path[0] for path in mutable if len(path) > 1}
    for name, child in spec["properties"].items():
        if (name,) in mutable:
            continue
        if name in parents:
            for inner in child["properties"]:
                if (name, inner) not in mutable:
                    yield _unchanged_below(name, inner)
            continue
        yield {"rule": _unchanged("", name), "message": _message(name)}


def _unchanged(parent: str, name: str) -> str:
    now, old = f"self{parent}.{name}", f"oldSelf{parent}.{name}"
    return f"has({now}) == has({old}) && (!has({now}) || {now} == {old})"


def _unchanged_below(parent: str, name: str) -> Json:
    """A parent that is absent counts as one without the field."""
    now = f"(has(self.{parent}) && has(self.{parent}.{name}))"
    old = f"(has(oldSelf.{parent}) && has(oldSelf.{parent}.{name}))"
    same = f"self.{parent}.{name} == oldSelf.{parent}.{name}"
    return {
        "rule": f"{now} == {old} && (!{now} || {same})",
        "message": _message(f"{parent}.{name}"),
    }


def _message(path: str) -> str:
    return f"{path} cannot be changed after creation; delete the job and create a new one"


def _crd(
    *,
    kind: str,
    plural: str,
    short_name: str,
    scope: str,
    description: str,
    spec: Json,
    status: Json,
    columns: tuple[Json, ...],
) -> Json:
    schema: dict[str, Any] = {
        "type": "object",
        "description": description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
        "x-kubernetes-validations": [NAME_RULE],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short_name],
                "categories": ["anneal"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": list(columns),
                }
            ],
        },
    }
