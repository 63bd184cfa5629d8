"""Names that MLflow would refuse after the training are refused before it, with their path.

MLflow's own validators judge: whatever passes here must pass there.
"""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.utils import validation

from anneal_jobs.tracking.registration import logged_model_name
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.api.tracking import TAG_KEY, TrackingSpec
from anneal_pipeline.config.schema import ConfigError


def fault(**tracking: Any) -> str:
    smallest = {"model": {"uri": "s3://m/x"}, "dataset": {"uri": "s3://d/x"}}
    with pytest.raises(ConfigError) as caught:
        FineTuneJobSpec.parse({**smallest, "tracking": tracking})
    (found,) = caught.value.faults
    return str(found)


@pytest.mark.parametrize(
    "key", ["a//b", "/a", "a/", "a/../b", ".", "..", "", "a?b", "a\nb", "\u00fc", "k" * 251]
)
def test_a_key_that_mlflow_refuses_or_may_misread_is_refused(key: str) -> None:
    assert fault(tags={"ok": "1", key: "2"}).startswith("tracking.tags: got the key ")


@pytest.mark.parametrize("key", ["mlflow.runName", "mlflow.", "anneal.job.uid"])
def test_a_reserved_key_is_refused(key: str) -> None:
    assert fault(tags={key: "x"}) == (
        f"tracking.tags: got the key {key!r}; a key must not begin with mlflow. or anneal., "
        "which are reserved"
    )


def test_a_value_that_is_too_long_is_refused() -> None:
    assert fault(tags={"team": "x" * 1025}).startswith("tracking.tags.team: ")


@given(st.from_regex(TAG_KEY, fullmatch=True), st.text(max_size=1024))
def test_tags_that_pass_here_pass_in_mlflow(key: str, value: str) -> None:
    try:
        TrackingSpec(tags={key: value})
    except ValueError:
        return
    validation._validate_tag(key, value)


@pytest.mark.parametrize("alias", ["latest", "Latest", "LATEST", "v1", "V12", "v007"])
def test_an_alias_that_mlflow_reserves_is_refused(alias: str) -> None:
    with pytest.raises(MlflowException):
        validation._validate_model_alias_name_reserved(alias)
    assert fault(alias=alias) == (
        f"tracking.alias: got {alias!r}, but it must not be latest or a version like v3, which "
        "MLflow reserves"
    )


@given(st.from_regex(r"^[A-Za-z][A-Za-z0-9_-]*$", fullmatch=True).filter(lambda a: len(a) <= 64))
def test_an_alias_that_passes_here_passes_in_mlflow(alias: str) -> None:
    try:
        TrackingSpec(alias=alias)
    except ValueError:
        return
    validation._validate_model_alias_name(alias)
    validation._validate_model_alias_name_reserved(alias)


@pytest.mark.parametrize("name", ["v", "v2-candidate", "latest-good", "champion", "V1a"])
def test_an_alias_that_only_resembles_a_reserved_one_is_taken(name: str) -> None:
    assert TrackingSpec(alias=name).alias == name


@pytest.mark.parametrize("name", ["a/b", "a:b", ".", "..", " a", "a ", "", "a'b", "n" * 257])
def test_a_model_name_that_mlflow_cannot_address_is_refused(name: str) -> None:
    assert fault(registeredModel=name).startswith("tracking.registeredModel: ")


@given(st.text("aZ0 ._-/:'\"%\n", min_size=1, max_size=20))
@example("llama-3.2-support")
def test_a_model_name_that_passes_here_passes_in_mlflow(name: str) -> None:
    try:
        TrackingSpec(registered_model=name)
    except ValueError:
        return
    validation._validate_model_name(name)
    validation._validate_logged_model_name(logged_model_name(name))


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x00b", " a", "a\t", "n" * 257])
def test_an_experiment_name_with_outer_blanks_or_control_characters_is_refused(name: str) -> None:
    assert fault(experiment=name).startswith("tracking.experiment: ")


@pytest.mark.parametrize("name", ["a", "Support bot / 2026", "\u00fcbung"])
def test_other_experiment_names_are_taken(name: str) -> None:
    validation._validate_experiment_name(name)
    assert TrackingSpec(experiment=name).experiment == name
