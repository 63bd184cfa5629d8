"""What the demo installs: values the charts accept, and a profile that allows its job."""

import json
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from anneal_operator.api.profile import FineTuneProfileSpec
from failure import DemoError
from layout import CHARTS, JOB_FILE
from pod_images import Images, check_choice, split_reference
from releases import operator_values, profile_spec, services_values
from target import Object

THIN = Images(
    operator="localhost/anneal-thin:abc",
    trainer="localhost/anneal-thin:abc",
    mlflow="localhost/anneal-thin:abc",
    s3="localhost/anneal-s3:def",
    has_environment_volume=True,
    environment="runtime-1/anneal-2",
    pull_policy="Never",
)
FULL = Images(
    operator="registry.example.com:5000/ml/anneal-operator:1",
    trainer="registry.example.com:5000/ml/anneal-trainer:2",
    mlflow="registry.example.com:5000/ml/anneal-mlflow:3",
    s3="registry.example.com:5000/ml/anneal-s3:4",
    has_environment_volume=False,
    environment="registry.example.com:5000/ml/anneal-operator:1",
    pull_policy="IfNotPresent",
)
BOTH = [pytest.param(THIN, id="thin"), pytest.param(FULL, id="full")]


def check_values(values: Object, *, chart: str) -> None:
    schema = json.loads((CHARTS / chart / "values.schema.json").read_text(encoding="utf-8"))
    defaults = YAML(typ="safe").load((CHARTS / chart / "values.yaml").read_text(encoding="utf-8"))
    jsonschema.validate({**defaults, **values}, {**schema, "required": []})


@pytest.mark.parametrize("images", BOTH)
def test_operator_chart_takes_the_values(images: Images) -> None:
    values = operator_values(images, mlflow_url="http://198.18.0.1:30500")

    check_values(values, chart="anneal")
    assert ("extraVolumes" in values) == images.has_environment_volume


@pytest.mark.parametrize("images", BOTH)
def test_operator_starts_anew_when_its_environment_changes(images: Images) -> None:
    values = operator_values(images, mlflow_url="http://198.18.0.1:30500")

    assert values["podAnnotations"] == {"demo.anneal.dev/environment": images.environment}


@pytest.mark.parametrize("images", BOTH)
def test_browsers_are_let_in_at_the_address_that_is_printed(images: Images) -> None:
    test_cluster = services_values(images, is_test_cluster=True)
    given = services_values(images, is_test_cluster=False)

    assert test_cluster["mlflow"]["publicHosts"] == ["198.18.0.1:30500"]
    assert test_cluster["mlflow"]["service"] == {"type": "NodePort", "nodePort": 30500}
    assert given["mlflow"]["publicHosts"] == ["localhost:30500"]
    assert "service" not in given["mlflow"]


@pytest.mark.parametrize("images", BOTH)
def test_profile_is_valid_and_allows_what_the_job_reads(images: Images) -> None:
    profile = FineTuneProfileSpec.parse(profile_spec(images))
    job = YAML(typ="safe").load(Path(JOB_FILE).read_text(encoding="utf-8"))["spec"]

    assert profile.images.trainer == images.trainer
    assert job["model"]["uri"].startswith(f"{profile.models.allowed_uris[0]}/")
    assert job["dataset"]["uri"].startswith(f"{profile.storage.allowed_read_uris[0]}/")
    assert len(profile.volumes) == int(images.has_environment_volume)


def test_reference_with_a_port_in_the_registry_is_split() -> None:
    assert split_reference("registry.example.com:5000/ml/anneal-s3:4") == {
        "registry": "registry.example.com:5000/ml",
        "repository": "anneal-s3",
        "tag": "4",
    }


@pytest.mark.parametrize(
    ("kind", "context", "registry", "want"),
    [
        pytest.param("thin", "", "", "thin", id="test cluster with thin images"),
        pytest.param("full", "", "", "full", id="test cluster with full images"),
        pytest.param("thin", "mine", "reg/x", "full", id="another cluster has no volume to lend"),
    ],
)
def test_choice_of_images(kind: str, context: str, registry: str, want: str) -> None:
    assert check_choice(kind, context=context, registry=registry) == want


@pytest.mark.parametrize(
    ("kind", "context", "registry", "named"),
    [
        pytest.param("fat", "", "", "thin or full", id="unknown kind"),
        pytest.param("thin", "mine", "", "REGISTRY=", id="context without registry"),
        pytest.param("thin", "", "reg/x", "CONTEXT=name", id="registry without context"),
    ],
)
def test_refused_choice_names_the_remedy(
    kind: str, context: str, registry: str, named: str
) -> None:
    with pytest.raises(DemoError, match=named):
        check_choice(kind, context=context, registry=registry)
