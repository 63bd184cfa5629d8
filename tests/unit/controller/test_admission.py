"""What a profile allows, and what no URI may contain."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.controller.conftest import profile, seen, spec

from anneal_operator.admission import refusal, uri_allowed
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.observation import Input
from anneal_pipeline.config.schema import ConfigError

ALLOWED = ("s3://team-data/{namespace}", "hf://HuggingFaceTB", "pvc://models")


@pytest.mark.parametrize(
    ("uri", "want"),
    [
        pytest.param("s3://team-data/team-a/x.jsonl", True, id="under the prefix"),
        pytest.param("s3://team-data/team-a", True, id="the prefix itself"),
        pytest.param("s3://team-data/team-a/", True, id="with a slash at the end"),
        pytest.param("hf://HuggingFaceTB/SmolLM2", True, id="a hub organisation"),
        pytest.param("s3://team-data/team-ab/x", False, id="a longer segment"),
        pytest.param("s3://team-data/team-b/x", False, id="another namespace"),
        pytest.param("s3://team-data", False, id="above the prefix"),
        pytest.param("s3://team-data/team-a/../team-b/x", False, id="dots"),
        pytest.param("s3://team-data/team-a/./x", False, id="a dot"),
        pytest.param("s3://team-data/team-a//x", False, id="an empty segment"),
        pytest.param("s3://team-data/team-a/%2e%2e/x", False, id="percent encoding"),
        pytest.param("s3://team-data\\team-a", False, id="a backslash"),
        pytest.param("s3://user@team-data/team-a", False, id="user information"),
        pytest.param("s3://team-data/team-a?x=1", False, id="a query"),
        pytest.param("s3://team-data/team-a#x", False, id="a fragment"),
        pytest.param("s3://team-data/team-a/a\x00b", False, id="a NUL"),
        pytest.param("S3://team-data/team-a/x", False, id="another spelling of the scheme"),
        pytest.param("https://team-data/team-a/x", False, id="another scheme"),
        pytest.param("file:///etc/passwd", False, id="a local file"),
        pytest.param("/etc/passwd", False, id="a path"),
        pytest.param("", False, id="nothing"),
    ],
)
def test_uri_allowed(uri: str, want: bool) -> None:
    assert uri_allowed(uri, allowed=ALLOWED, namespace="team-a") is want


@given(st.text(max_size=60))
def test_whatever_is_allowed_lies_under_a_prefix(tail: str) -> None:
    uri = f"s3://team-data/{tail}"
    if uri_allowed(uri, allowed=ALLOWED, namespace="team-a"):
        assert tail == "team-a" or tail.startswith("team-a/")
        assert ".." not in tail.split("/")


def wrong(data: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        FineTuneJobSpec.parse(data)
    return caught.value


@pytest.mark.parametrize(
    ("picture", "reason", "named"),
    [
        pytest.param(
            seen(spec=wrong({"model": {"uri": "s3://m"}})), "InvalidSpec", "spec.dataset", id="spec"
        ),
        pytest.param(
            seen(spec=spec(training={"packing": True})),
            "NotImplemented",
            "spec.training.packing",
            id="a later feature",
        ),
        pytest.param(seen(profile=None), "ProfileNotFound", "'default'", id="no profile"),
        pytest.param(
            seen(known_tracking_uris=("http://other",)),
            "TrackingNotKnown",
            "http://mlflow.anneal:5000",
            id="an MLflow nobody told of",
        ),
        pytest.param(
            seen(profile=profile(allowedNamespaces=["team-b"])),
            "NamespaceNotAllowed",
            "team-a",
            id="namespace",
        ),
        pytest.param(
            seen(profile=profile(models={"allowedURIs": []})),
            "UriNotAllowed",
            "spec.model.uri",
            id="denied by default",
        ),
        pytest.param(
            seen(spec=spec(output={"uri": "s3://elsewhere"})),
            "UriNotAllowed",
            "spec.output.uri",
            id="output",
        ),
        pytest.param(
            seen(profile=profile(storage={"allowedReadURIs": ["s3://team-data"]})),
            "UriNotAllowed",
            "spec.output.uri is not set",
            id="no output at all",
        ),
        pytest.param(
            seen(spec=spec(model={"uri": "hf://HuggingFaceTB/SmolLM2", "revision": "main"})),
            "RevisionNotPinned",
            "spec.model.revision is main",
            id="a branch",
        ),
        pytest.param(
            seen(spec=spec(compute={"gpusPerWorker": 9})), "LimitExceeded", "at most 8", id="GPUs"
        ),
        pytest.param(
            seen(
                spec=spec(deadlines={"activeSeconds": 100}),
                profile=profile(limits={"activeSeconds": 50}),
            ),
            "LimitExceeded",
            "spec.deadlines.activeSeconds is 100",
            id="time",
        ),
    ],
)
def test_refusal(picture: Input, reason: str, named: str) -> None:
    refused = refusal(picture)
    assert refused is not None
    assert (refused.reason, named in refused.message) == (reason, True), refused.message


def test_the_smallest_job_is_accepted() -> None:
    assert refusal(seen()) is None


def test_tags_pass_where_the_profile_allows_them() -> None:
    allowed = profile(models={"allowedURIs": ["hf://HuggingFaceTB"], "allowTags": True})
    branch = spec(model={"uri": "hf://HuggingFaceTB/SmolLM2", "revision": "main"})
    assert refusal(replace(seen(), spec=branch, profile=allowed)) is None
