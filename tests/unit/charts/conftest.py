"""Renders the charts with the pinned helm, and holds the value sets the tests look at."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

CHARTS = Path(__file__).resolve().parents[3] / "charts"
VALUES = Path(__file__).resolve().parent / "values"

Manifest = dict[str, Any]

CASES = {
    "operator-default": ("anneal", "operator-default.yaml"),
    "operator-namespaced": ("anneal", "operator-namespaced.yaml"),
    "operator-everything": ("anneal", "operator-everything.yaml"),
    "services-default": ("anneal-dev-services", "services-default.yaml"),
    "services-thin": ("anneal-dev-services", "services-thin.yaml"),
}


@dataclass(frozen=True)
class Rendered:
    """What one `helm template` came to."""

    returncode: int
    stderr: str
    manifests: list[Manifest]

    def of_kind(self, kind: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] == kind]


Render = Callable[..., Rendered]


def _helm() -> str:
    cache = Path(os.environ.get("ANNEAL_CACHE") or Path.home() / ".cache" / "anneal")
    pinned = cache / "bin" / "helm"
    if pinned.exists():
        return str(pinned)
    found = shutil.which("helm")
    if found is None:
        pytest.fail(
            f"helm is neither at {pinned} nor on PATH; "
            "run `python3 tests/cluster/cluster.py build helm`",
            pytrace=False,
        )
    return found


@pytest.fixture(scope="session")
def render() -> Render:
    """Return a function that renders a chart: render(chart, values_file=..., arguments=[...])."""
    helm = _helm()

    def run(chart: str, *, values: str | None = None, arguments: tuple[str, ...] = ()) -> Rendered:
        command = [helm, "template", "trial", str(CHARTS / chart), "--namespace", "anneal-system"]
        if values is not None:
            command += ["--values", str(VALUES / values)]
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False, timeout=60
        )
        manifests = [one for one in yaml.safe_load_all(done.stdout) if one]
        return Rendered(done.returncode, done.stderr, manifests)

    return run


@pytest.fixture(scope="session")
def rendered(render: Render) -> dict[str, Rendered]:
    """Every value set of `CASES`, rendered once."""
    results = {name: render(chart, values=values) for name, (chart, values) in CASES.items()}
    for name, result in results.items():
        assert result.returncode == 0, f"{name}: {result.stderr}"
    return results


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, rendered: dict[str, Rendered]) -> Rendered:
    """One rendered value set after the other."""
    return rendered[request.param]


@pytest.fixture
def charts() -> Path:
    return CHARTS
