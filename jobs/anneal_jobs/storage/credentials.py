"""Where S3 credentials come from, in words for the person who has to mend them; never their values.

In a cluster the profile names a Secret, or the pod has an identity of its own. On this machine
boto3 finds them, and says where.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import boto3

from anneal_operator.api.names import STORAGE_CREDENTIALS_KEY
from anneal_operator.api.run_config import RunConfig

_FILE_VARIABLE = "AWS_SHARED_CREDENTIALS_FILE"
_FOUND_BY = {
    "env": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in your environment",
    "shared-credentials-file": "profile {profile} in {file}",
    "config-file": "profile {profile} in your AWS config file",
}


@dataclass(frozen=True, kw_only=True)
class CredentialsPlace:
    """Two ends of a sentence."""

    wrong: str
    """What to do about credentials that are refused."""
    absent: str
    """What to do where there are none."""


def credentials_of(config: RunConfig) -> CredentialsPlace | None:
    """Where a run in a cluster gets them; None in a local run."""
    if not config.tracking.release:
        return None
    secret = config.storage.credentials_secret
    if secret is None:
        return CredentialsPlace(
            wrong="correct the rights of the pod's own identity, or name a Secret in "
            "storage.credentialsSecret of the FineTuneProfile",
            absent="name a Secret in storage.credentialsSecret of the FineTuneProfile, or give the "
            "pod's service account an identity",
        )
    place = (
        f"key '{STORAGE_CREDENTIALS_KEY}' of Secret {secret} in namespace {config.job.namespace} "
        "(storage.credentialsSecret of the FineTuneProfile)"
    )
    return CredentialsPlace(
        wrong=f"correct {place}", absent=f"put an AWS shared credentials file into {place}"
    )


def wrong_here() -> str:
    """What to do about the credentials that boto3 found on this machine, which were refused."""
    session = boto3.session.Session()
    found = session.get_credentials()
    method = found.method if found is not None else ""
    file = os.environ.get(_FILE_VARIABLE) or "~/.aws/credentials"
    place = _FOUND_BY.get(method, f"your AWS credentials ({method or 'none found'})")
    return f"correct {place.format(profile=session.profile_name, file=file)}"


def absent_here() -> str:
    """What to do where boto3 finds none on this machine."""
    return (
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them to ~/.aws/credentials; or "
        "name a copy on this machine (--set dataset.uri=FILE, --set model.uri=FOLDER)"
    )
