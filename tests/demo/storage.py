"""The demo's S3 server, seen from this machine."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from failure import DemoError
from layout import BUCKET, SERVICES_NAMESPACE, STORAGE_SECRET
from target import Target

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class Storage:
    """The bucket that holds model, data and outputs."""

    client: "S3Client"

    def upload(self, file: Path, *, key: str) -> bool:
        """Put a file unless one of its size is there and no older; return whether it was put."""
        try:
            if self._is_current(file, key=key):
                return False
            self.client.upload_file(str(file), BUCKET, key)
        except (BotoCoreError, ClientError) as error:
            raise DemoError(f"{file} cannot be stored as s3://{BUCKET}/{key}: {error}") from error
        return True

    def read(self, uri: str) -> bytes:
        """Return the content of s3://bucket/key."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        try:
            return self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        except (BotoCoreError, ClientError) as error:
            raise DemoError(f"{uri} cannot be read: {error}") from error

    def _is_current(self, file: Path, *, key: str) -> bool:
        try:
            head = self.client.head_object(Bucket=BUCKET, Key=key)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return False
            raise
        stat = file.stat()
        return (
            head["ContentLength"] == stat.st_size
            and head["LastModified"].timestamp() >= stat.st_mtime
        )


def open_storage(target: Target, *, endpoint: str) -> Storage:
    """Open the S3 server with the key that its chart made."""
    secret = target.get("secret", STORAGE_SECRET, f"--namespace={SERVICES_NAMESPACE}")
    if secret is None:
        raise DemoError(
            f"there is no Secret {SERVICES_NAMESPACE}/{STORAGE_SECRET}: the chart "
            "anneal-dev-services makes it; run the demo again"
        )
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=base64.b64decode(secret["data"]["accessKey"]).decode(),
        aws_secret_access_key=base64.b64decode(secret["data"]["secretKey"]).decode(),
        # The first call may come before the address of a new pod has reached every table.
        config=Config(retries={"mode": "standard", "total_max_attempts": 8}, connect_timeout=5),
    )
    return Storage(client)
