"""From a run config to the settings of an S3 client."""

from __future__ import annotations

from anneal_jobs.storage.credentials import credentials_of
from anneal_jobs.storage.s3 import S3Settings
from anneal_operator.api.run_config import RunConfig


def s3_settings_of(config: RunConfig) -> S3Settings:
    return S3Settings(
        endpoint=config.storage.endpoint,
        region=config.storage.region,
        credentials=credentials_of(config),
    )
