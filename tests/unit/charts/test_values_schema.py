"""values.schema.json: strict everywhere, right about values.yaml, exact about errors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

OPERATOR, SERVICES = "anneal", "anneal-dev-services"


def _schema(chart: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((chart / "values.schema.json").read_text())
    return loaded


def _values(chart: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((chart / "values.yaml").read_text())
    return loaded


def _paths(values: Any, path: str = "") -> Iterator[str]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield f"{path}{key}"
            yield from _paths(value, f"{path}{key}.")


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        values = values[key]
    values[last] = value


@pytest.mark.parametrize("name", [OPERATOR, SERVICES])
def test_values_file_meets_its_schema(name: str, charts: Path) -> None:
    jsonschema.Draft7Validator(_schema(charts / name)).validate(_values(charts / name))


@pytest.mark.parametrize("name", [OPERATOR, SERVICES])
def test_an_unknown_key_is_refused_beside_every_known_one(name: str, charts: Path) -> None:
    validator = jsonschema.Draft7Validator(_schema(charts / name))
    open_maps = {
        "commonLabels", "podAnnotations", "podLabels", "nodeSelector", "affinity",
        "serviceAccount.annotations", "metrics.service.annotations",
        "metrics.serviceMonitor.labels",
    }  # fmt: skip
    parents = {path.rpartition(".")[0] for path in _paths(_values(charts / name))}
    parents -= {p for p in parents if p.endswith(("requests", "limits"))}
    for parent in sorted(parents - open_maps):
        values = _values(charts / name)
        _set(values, f"{parent}.unknownKey".lstrip("."), 1)
        assert not validator.is_valid(values), f"{parent or 'the top level'} takes any key"


@pytest.mark.parametrize(
    ("chart", "path", "value"),
    [
        pytest.param(OPERATOR, "replicas", 0, id="no replicas"),
        pytest.param(OPERATOR, "replicas", "2", id="replicas as text"),
        pytest.param(OPERATOR, "image.repository", "", id="no image"),
        pytest.param(OPERATOR, "image.digest", "sha256:abc", id="short digest"),
        pytest.param(OPERATOR, "image.pullPolicy", "Sometimes", id="unknown pull policy"),
        pytest.param(OPERATOR, "crds.install", "yes", id="text for a switch"),
        pytest.param(OPERATOR, "watch.namespaces", "team-a", id="one namespace as text"),
        pytest.param(OPERATOR, "watch.namespaces", ["Team_A"], id="no namespace's name"),
        pytest.param(OPERATOR, "watch.namespaces", ["a", "a"], id="a namespace twice"),
        pytest.param(OPERATOR, "logLevel", "loud", id="unknown log level"),
        pytest.param(OPERATOR, "tracking.servers", [{"url": "http://m"}], id="url for uri"),
        pytest.param(OPERATOR, "tracking.servers", [{"uri": "file:///runs"}], id="file store"),
        pytest.param(
            OPERATOR, "tracking.servers", [{"uri": "http://me:pw@mlflow"}], id="password in the uri"
        ),
        pytest.param(OPERATOR, "progress.port", 443, id="privileged port"),
        pytest.param(OPERATOR, "progress.tls.source", "None", id="no TLS"),
        pytest.param(OPERATOR, "profiles", {"default": {}}, id="profiles as a map"),
        pytest.param(OPERATOR, "profiles", [{"name": "default"}], id="profile without spec"),
        pytest.param(OPERATOR, "runAsUser", 0, id="root"),
        pytest.param(
            OPERATOR, "extraVolumes", [{"name": "x", "hostPath": {"path": "/"}}], id="host path"
        ),
        pytest.param(OPERATOR, "extraEnv", [{"name": "A B"}], id="no variable's name"),
        pytest.param(OPERATOR, "podDisruptionBudget.minAvailable", "half", id="budget as a word"),
        pytest.param(SERVICES, "mlflow.bucket", "ml", id="bucket name of two characters"),
        pytest.param(SERVICES, "s3.buckets", [], id="no bucket"),
        pytest.param(SERVICES, "mlflow.service.type", "Ingress", id="unknown service type"),
        pytest.param(SERVICES, "mlflow.publicHosts", ["http://x"], id="address for a host"),
        pytest.param(SERVICES, "mlflow.publicHosts", ["*"], id="every host"),
        pytest.param(SERVICES, "s3.persistence.size", "big", id="no size"),
        pytest.param(SERVICES, "jobNamespaces", "default", id="one job namespace as text"),
    ],
)
def test_wrong_value_is_refused_by_path(chart: str, path: str, value: Any, charts: Path) -> None:
    values = _values(charts / chart)
    _set(values, path, value)
    errors = list(jsonschema.Draft7Validator(_schema(charts / chart)).iter_errors(values))
    assert errors
    for error in errors:
        assert ".".join(map(str, error.absolute_path)).startswith(path)


def test_helm_itself_refuses_an_unknown_key(render: Any) -> None:
    result = render(OPERATOR, arguments=("--set", "replica=3"))
    assert result.returncode != 0
    assert "additional properties 'replica' not allowed" in result.stderr
