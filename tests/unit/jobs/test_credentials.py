"""Who is told to mend which credentials, by name and never by value."""

from pathlib import Path

import pytest

from anneal_jobs.storage.access import s3_settings_of
from anneal_jobs.storage.credentials import CredentialsPlace, wrong_here
from anneal_operator.api.run_config import JobIdentity, RunConfig, RunTracking, StorageAccess
from anneal_pipeline.config.pipeline import PipelineConfig


def place(secret: str | None, *, release: str = "anneal.system") -> CredentialsPlace | None:
    config = RunConfig(
        job=JobIdentity(namespace="team-a", name="bot", uid="u"),
        pipeline=PipelineConfig.parse({"model": {"uri": "s3://m"}, "dataset": {"uri": "s3://d"}}),
        output_uri="s3://out",
        storage=StorageAccess(credentials_secret=secret),
        tracking=RunTracking(
            uri="http://mlflow", experiment="e", registered_model="bot", alias="a", release=release
        ),
    )
    return s3_settings_of(config).credentials


def test_the_secret_is_named_with_its_namespace_and_the_profiles_field() -> None:
    named = place("team-s3")
    assert named is not None
    for sentence in (named.wrong, named.absent):
        assert "key 'credentials' of Secret team-s3 in namespace team-a" in sentence
        assert "storage.credentialsSecret" in sentence


def test_without_a_secret_the_pods_identity_is_meant() -> None:
    named = place(None)
    assert named is not None
    assert "the pod's own identity" in named.wrong


def test_a_local_run_names_what_boto3_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place(None, release="") is None
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = canary\naws_secret_access_key = canary\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    assert wrong_here() == f"correct profile default in {file}"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canary")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    assert wrong_here() == "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in your environment"
