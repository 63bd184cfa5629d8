"""The rendered charts against reviewed files.

Refresh them with `ANNEAL_UPDATE_GOLDEN=1 pytest tests/unit/charts`, and read the diff.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

GOLDEN = Path(__file__).resolve().parent / "golden"


def _stable(manifest: dict[str, Any]) -> dict[str, Any]:
    """Drop what differs from run to run (keys) and what has a test of its own (schemas)."""
    if manifest["kind"] == "Secret":
        return {**manifest, "data": {key: "(generated)" for key in manifest["data"]}}
    if manifest["kind"] == "CustomResourceDefinition":
        return {**manifest, "spec": "(generated)"}
    return manifest


def _text(manifests: list[dict[str, Any]]) -> str:
    ordered = sorted(
        (_stable(manifest) for manifest in manifests),
        key=lambda m: (m["kind"], m["metadata"].get("namespace", ""), m["metadata"]["name"]),
    )
    return yaml.safe_dump_all(ordered, sort_keys=True, width=120)


def test_rendered_chart_is_as_reviewed(case: Any, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["case"]
    path = GOLDEN / f"{name}.yaml"
    got = _text(case.manifests)
    if os.environ.get("ANNEAL_UPDATE_GOLDEN"):
        path.write_text(got)
    assert got == path.read_text()
