"""Which images the demo's pods run, and where their Python comes from."""

import json
import sys
from dataclasses import dataclass
from typing import Literal

import execution
from failure import DemoError
from layout import CACHE, CLUSTER_PROGRAM

Kind = Literal["thin", "full"]

ENVIRONMENT_CLAIM = "anneal-runtime"
ENVIRONMENT_MOUNT = "/opt/anneal/env"


@dataclass(frozen=True, kw_only=True)
class Images:
    """References of the images by the part they play."""

    operator: str
    trainer: str
    mlflow: str
    s3: str
    has_environment_volume: bool
    """Thin images: all Python is mounted from a claim in each namespace."""
    environment: str
    """Changes when the mounted Python does, so that pods can be made to follow."""
    pull_policy: Literal["Never", "IfNotPresent"]


def split_reference(reference: str) -> dict[str, str]:
    """Return registry, repository and tag as chart values."""
    name, _, tag = reference.rpartition(":")
    registry, _, repository = name.rpartition("/")
    return {"registry": registry, "repository": repository, "tag": tag}


def prepare_test_cluster_images(kind: Kind, *, namespaces: list[str]) -> Images:
    """Build the images, load them into the test cluster's node, and lend out the environment."""
    words = [sys.executable, str(CLUSTER_PROGRAM)]
    references = _references([*words, "images", *(["--full"] if kind == "full" else [])])
    execution.run([*words, "load"])
    if kind == "full":
        return Images(
            operator=references["operator"],
            trainer=references["trainer"],
            mlflow=references["mlflow"],
            s3=references["s3"],
            has_environment_volume=False,
            environment=references["operator"],
            pull_policy="Never",
        )
    for namespace in namespaces:
        execution.run([*words, "runtime", "--publish", namespace, "--claim", ENVIRONMENT_CLAIM])
    runtime = (CACHE / "runtime").resolve()
    thin = references["thin"]
    return Images(
        operator=thin,
        trainer=thin,
        mlflow=thin,
        s3=references["s3"],
        has_environment_volume=True,
        environment=f"{runtime.name}/{(runtime / 'anneal').resolve().name}",
        pull_policy="Never",
    )


def push_images(registry: str) -> Images:
    """Build the full images and push them to a registry that the cluster's nodes pull from."""
    words = [sys.executable, str(CLUSTER_PROGRAM)]
    _references([*words, "images", "--full"])
    references = _references([*words, "push", registry])
    return Images(
        operator=references["operator"],
        trainer=references["trainer"],
        mlflow=references["mlflow"],
        s3=references["s3"],
        has_environment_volume=False,
        environment=references["operator"],
        pull_policy="IfNotPresent",
    )


def check_choice(kind: str, *, context: str, registry: str) -> Kind:
    """Refuse choices that cannot work together, with the one that would."""
    if kind not in ("thin", "full"):
        raise DemoError(f"IMAGES must be thin or full, got {kind}")
    if context and not registry:
        raise DemoError(
            f"CONTEXT={context} also needs REGISTRY=, a registry that you may push to and that the "
            "cluster's nodes pull from, e.g. REGISTRY=registry.example.com/ml"
        )
    if registry and not context:
        raise DemoError("REGISTRY is for CONTEXT=name; the test cluster gets its images directly")
    return "full" if context or kind == "full" else "thin"


def _references(words: list[str]) -> dict[str, str]:
    found: dict[str, str] = json.loads(execution.run(words))
    return found
