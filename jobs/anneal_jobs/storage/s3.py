"""S3-compatible storage: a client with bounded waits, and a folder the pipeline can save into.

Every upload is checked: the server gets the SHA-256 of each part and refuses a damaged one, and the
stored object's size and checksum are read back before the call returns. Nothing relies on
conditional writes or on versioning, which several S3 servers lack.
"""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from anneal_jobs.errors import StorageUnreachableError
from anneal_jobs.storage.credentials import CredentialsPlace
from anneal_jobs.storage.faults import s3_faults
from anneal_jobs.storage.meter import OnChunk
from anneal_jobs.storage.uri import StorageUri
from anneal_pipeline.checkpoint.manifest import ignore_chunk

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_MIB = 1 << 20
_PART_BYTES = 16 * _MIB
_MAX_PARTS = 9_000  # S3 allows 10,000; the rest is room for rounding.
_SHA256_METADATA = "anneal-sha256"


@dataclass(frozen=True, kw_only=True)
class S3Settings:
    """Where the S3 server is. Credentials come from the environment as boto3 finds them."""

    credentials: CredentialsPlace | None = None
    """Where they come from, for messages; None: from this machine."""
    endpoint: str | None = None
    """None means AWS, or AWS_ENDPOINT_URL."""
    region: str | None = None
    max_attempts: int = 5
    """Of one request, with growing pauses."""


@dataclass(frozen=True, kw_only=True)
class S3Object:
    name: str
    """Relative to the folder listed; empty when the address itself is an object."""
    size: int


def connect(settings: S3Settings) -> S3Client:
    """Make a client; no request is sent yet."""
    # Path style, because a server with an address of our own rarely has a DNS name per bucket.
    variables = (os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    endpoint = settings.endpoint or next(filter(None, variables), None)
    config = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "max_attempts": settings.max_attempts},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    session = boto3.session.Session()
    region = settings.region or session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)


class S3Folder:
    """`BlobFolder` over the objects below one address."""

    def __init__(
        self, client: S3Client, uri: StorageUri, *, credentials: CredentialsPlace | None = None
    ) -> None:
        self._client = client
        self._credentials = credentials
        self.uri = uri
        self.endpoint = client.meta.endpoint_url

    def list_objects(self) -> list[S3Object]:
        """All objects at or below the address, sorted by name.

        One request answers what exists: an exact object, a folder, or neither (an empty list).
        """
        with s3_faults(
            self.uri, doing="list", endpoint=self.endpoint, credentials=self._credentials
        ):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.uri.container, Prefix=self.uri.path
            )
            entries = [entry for page in pages for entry in page.get("Contents", [])]
        found = [(entry["Key"], entry["Size"]) for entry in entries]
        base = f"{self.uri.path}/" if self.uri.path else ""
        exact = [S3Object(name="", size=size) for key, size in found if key == self.uri.path]
        below = [
            S3Object(name=key.removeprefix(base), size=size)
            for key, size in found
            if key.startswith(base) and not key.endswith("/")
        ]
        return sorted(exact or below, key=lambda entry: entry.name)

    def list_names(self) -> list[str]:
        return [entry.name for entry in self.list_objects()]

    def read(self, name: str) -> bytes | None:
        uri = self._at(name)
        try:
            with s3_faults(
                uri, doing="read", endpoint=self.endpoint, credentials=self._credentials
            ):
                answer = self._client.get_object(Bucket=uri.container, Key=uri.path)
                return answer["Body"].read()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        uri = self._at(name)
        digest = hashlib.sha256(data)
        with s3_faults(uri, doing="write", endpoint=self.endpoint, credentials=self._credentials):
            self._client.put_object(
                Bucket=uri.container,
                Key=uri.path,
                Body=data,
                ChecksumSHA256=_encode(digest.digest()),
                Metadata={_SHA256_METADATA: digest.hexdigest()},
            )

    def upload(self, source: Path, name: str, *, on_chunk: OnChunk = ignore_chunk) -> None:
        uri = self._at(name)
        sums = _checksums(source)
        with s3_faults(uri, doing="write", endpoint=self.endpoint, credentials=self._credentials):
            if sums.is_multipart:
                self._client.upload_file(
                    str(source),
                    uri.container,
                    uri.path,
                    ExtraArgs={
                        "ChecksumAlgorithm": "SHA256",
                        "Metadata": {_SHA256_METADATA: sums.sha256},
                    },
                    Config=_transfer(sums.part_bytes),
                    Callback=on_chunk,
                )
            else:
                with source.open("rb") as body:
                    self._client.put_object(
                        Bucket=uri.container,
                        Key=uri.path,
                        Body=body,
                        ChecksumSHA256=sums.checksum,
                        Metadata={_SHA256_METADATA: sums.sha256},
                    )
            stored = self._client.head_object(
                Bucket=uri.container, Key=uri.path, ChecksumMode="ENABLED"
            )
        if difference := _difference(sums, dict(stored)):
            raise StorageUnreachableError(f"Wrote {uri}, but {self.endpoint} stored {difference}.")

    def download(self, name: str, target: Path, *, on_chunk: OnChunk = ignore_chunk) -> None:
        """Copy an object; where `on_chunk` raises, that passes through and no file is left."""
        uri = self._at(name)
        partial = target.with_name(f"{target.name}.partial")
        with s3_faults(uri, doing="read", endpoint=self.endpoint, credentials=self._credentials):
            self._client.download_file(
                uri.container,
                uri.path,
                str(partial),
                Config=_transfer(_PART_BYTES),
                Callback=on_chunk,
            )
        os.replace(partial, target)

    def delete(self, name: str) -> None:
        uri = self._at(name)
        with s3_faults(uri, doing="delete", endpoint=self.endpoint, credentials=self._credentials):
            self._client.delete_object(Bucket=uri.container, Key=uri.path)

    def _at(self, name: str) -> StorageUri:
        return self.uri.child(name) if name else self.uri


@dataclass(frozen=True, kw_only=True)
class _Checksums:
    size: int
    sha256: str
    checksum: str
    """What S3 reports: base64, of the whole object or (with `-parts`) of the parts' digests."""
    part_bytes: int

    @property
    def is_multipart(self) -> bool:
        return self.size >= self.part_bytes


def _checksums(path: Path) -> _Checksums:
    size = path.stat().st_size
    part_bytes = _PART_BYTES
    while size > part_bytes * _MAX_PARTS:
        part_bytes *= 2
    whole = hashlib.sha256()
    parts: list[bytes] = []
    with path.open("rb") as file:
        while part := file.read(part_bytes):
            whole.update(part)
            parts.append(hashlib.sha256(part).digest())
    checksum = _encode(whole.digest())
    if size >= part_bytes:
        checksum = f"{_encode(hashlib.sha256(b''.join(parts)).digest())}-{len(parts)}"
    return _Checksums(size=size, sha256=whole.hexdigest(), checksum=checksum, part_bytes=part_bytes)


def _difference(sums: _Checksums, stored: dict[str, Any]) -> str | None:
    if stored["ContentLength"] != sums.size:
        return f"{stored['ContentLength']} bytes instead of {sums.size}"
    # Servers without SHA-256 support report none: the size is then all there is to compare.
    reported = stored.get("ChecksumSHA256", sums.checksum)
    if reported != sums.checksum:
        return f"the SHA-256 {reported} instead of {sums.checksum}"
    return None


def _transfer(part_bytes: int) -> TransferConfig:
    return TransferConfig(
        multipart_threshold=part_bytes, multipart_chunksize=part_bytes, max_concurrency=4
    )


def _encode(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
