"""What a profile allows, and what no URI may contain."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.controller.conftest import JOB, MLFLOW, profile, profile_spec, seen, spec

from anneal_operator.admission import profile_problem, refusal, uri_allowed
from anneal_operator.api.run_config import RunConfig
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.manifests import run_config_map
from anneal_operator.observation import Input
from anneal_operator.stored_config import run_config
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
            seen(
                spec=wrong(
                    {
                        "model": {"uri": "s3://m"},
                        "dataset": {"uri": "s3://team-data/x.jsonl"},
                        "training": {"batchSize": 4},
                        "compute": {"ranksPerWorker": 5},
                    }
                )
            ),
            "InvalidSpec",
            "lower ranksPerWorker or raise batchSize; delete the job",
            id="more ranks than rows of a batch",
        ),
        pytest.param(
            seen(spec=spec(queue={"name": "team-a"})),
            "NotImplemented",
            "spec.queue.name",
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
            seen(spec=spec(compute={"gpusPerWorker": 2})),
            "NotImplemented",
            "spec.compute.gpusPerWorker: 2",
            id="several GPUs",
        ),
        pytest.param(
            seen(profile=profile(resources={"gpusPerWorker": 4})),
            "NotImplemented",
            "spec.resources.gpusPerWorker: 4",
            id="several GPUs by the profile's default",
        ),
        pytest.param(
            seen(
                spec=spec(compute={"gpusPerWorker": 1}),
                profile=profile(resources={"gpusPerWorker": 0}, limits={"gpusPerWorker": 0}),
            ),
            "LimitExceeded",
            "at most 0",
            id="GPUs",
        ),
        pytest.param(
            seen(
                spec=spec(compute={"ranksPerWorker": 2}),
                profile=profile(resources={"gpusPerWorker": 1}),
            ),
            "InvalidSpec",
            "spec.compute.ranksPerWorker is 2, and each pod has 1 GPU:",
            id="two ranks for one GPU",
        ),
        pytest.param(
            seen(
                spec=spec(
                    dataset={
                        "files": {
                            "train": "s3://team-data/x.jsonl",
                            "test": "hf://HuggingFaceTB/smoltalk",
                        },
                        "revision": "main",
                    }
                ),
                profile=profile(
                    storage={
                        "outputURI": "s3://models",
                        "allowedReadURIs": ["s3://team-data", "hf://HuggingFaceTB"],
                    }
                ),
            ),
            "RevisionNotPinned",
            "spec.dataset.revision is main",
            id="a branch of one of several dataset files",
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


def test_ranks_without_gpus_are_accepted() -> None:
    cpus = profile(resources={"gpusPerWorker": 0})
    assert refusal(seen(spec=spec(compute={"ranksPerWorker": 2}), profile=cpus)) is None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        pytest.param({"models": {"cache": {"pvc": "hub"}}}, "spec.models.cache", id="cache"),
        pytest.param({"ray": {"version": "2.52.0"}}, "spec.ray.version", id="Ray's version"),
        pytest.param(
            {"ray": {"rayStartParams": {"num-cpus": "2"}}}, "spec.ray.rayStartParams", id="Ray"
        ),
        pytest.param({"queue": {"default": "team-a"}}, "spec.queue.default", id="queue"),
        pytest.param({"limits": {"workers": 8}}, "spec.limits.workers", id="workers"),
        pytest.param({"gpuMemoryBytes": 80 << 30}, "spec.gpuMemoryBytes", id="memory of a GPU"),
    ],
)
def test_a_profile_that_asks_for_a_later_feature_is_refused(
    fields: dict[str, Any], named: str
) -> None:
    problem = profile_problem(profile_spec(**fields), known_uris=(MLFLOW,))
    assert problem is not None
    assert problem.reason == "NotImplemented"
    assert named in problem.message
    assert "administrator" in problem.message


PROMPT_CHARS, NUM_PROMPTS = 8192, 64
"""The most that the schema lets through: 512 KiB of prompts if every character is one byte."""


def test_a_spec_too_large_for_its_config_map_is_refused_with_the_sizes() -> None:
    prompts = ["x" * PROMPT_CHARS] * NUM_PROMPTS
    refused = refusal(seen(spec=spec(evaluation={"prompts": prompts})))
    assert refused is not None
    assert refused.reason == "InvalidSpec"
    assert "its ConfigMap takes 524288" in refused.message
    assert "spec.evaluation.prompts alone has 524544 bytes" in refused.message


def test_what_is_not_ascii_counts_as_the_bytes_it_is_stored_as() -> None:
    prompts = ["\u00fc" * PROMPT_CHARS] * 31  # 2 bytes each in UTF-8, 6 as an escape
    large = spec(evaluation={"prompts": prompts})
    assert refusal(seen(spec=large)) is None
    config = run_config(
        JOB, spec=large, profile=profile_spec(), output_uri="s3://models/x", release="anneal.anneal"
    )
    stored = run_config_map(JOB, config=config, release="anneal.anneal")["data"]["job.json"]
    assert "\u00fc" in stored
    assert RunConfig.parse(json.loads(stored)) == config


def test_the_smallest_job_is_accepted() -> None:
    assert refusal(seen()) is None


def test_tags_pass_where_the_profile_allows_them() -> None:
    allowed = profile(models={"allowedURIs": ["hf://HuggingFaceTB"], "allowTags": True})
    branch = spec(model={"uri": "hf://HuggingFaceTB/SmolLM2", "revision": "main"})
    assert refusal(replace(seen(), spec=branch, profile=allowed)) is None
