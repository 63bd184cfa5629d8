"""Addresses of models, datasets and outputs.

    s3://bucket/prefix   hf://organisation/name[/path]   pvc://claim/path   path (or file:///path)

Parsing is strict, because an address comes from a user and decides what is read: no user info, no
`..`, no control characters, no backslash.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from anneal_jobs.errors import URI_INVALID
from anneal_operator.api.object_name import SUBDOMAIN_PATTERN
from anneal_pipeline.errors import UserError

Scheme = Literal["s3", "hf", "pvc", "file"]

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://(.*)$", re.DOTALL)
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")
_BUCKET = re.compile(r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
_CLAIM = re.compile(SUBDOMAIN_PATTERN)
_REPOSITORY_PART = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")


@dataclass(frozen=True, kw_only=True)
class StorageUri:
    scheme: Scheme
    container: str
    """Bucket, claim, or organisation/name of a hub repository; empty for a path."""
    path: str
    """Below the container, without leading or trailing slash; for a local file its path."""

    def __str__(self) -> str:
        if self.scheme == "file":
            return self.path
        return f"{self.scheme}://{self.container}/{self.path}".rstrip("/")

    def child(self, name: str) -> StorageUri:
        """The address of `name` below this one."""
        return replace(self, path=f"{self.path}/{name}" if self.path else name)


def parse_uri(text: str) -> StorageUri:
    """Read an address, or raise a UserError that names it and says what is wrong."""
    if _FORBIDDEN.search(text) or text.strip() != text or not text:
        raise _invalid(text, "it must not hold control characters, backslashes or outer blanks")
    match = _SCHEME.match(text)
    if match is None:
        return StorageUri(scheme="file", container="", path=text)
    scheme, rest = match[1].lower(), match[2]
    if ".." in rest.split("/"):
        raise _invalid(text, "it must not hold '..'")
    if scheme == "file":
        return _local(text, rest)
    if scheme == "hf":
        return _hub(text, rest)
    if scheme in ("s3", "pvc"):
        return _container(text, "s3" if scheme == "s3" else "pvc", rest)
    raise _invalid(text, f"{scheme}:// is not supported; use s3://, hf://, pvc:// or a local path")


def _local(text: str, rest: str) -> StorageUri:
    if not rest.startswith("/"):
        raise _invalid(
            text, "a file:// address needs an absolute path, as in file:///data/rows.jsonl"
        )
    return StorageUri(scheme="file", container="", path=rest)


def _hub(text: str, rest: str) -> StorageUri:
    parts = rest.rstrip("/").removeprefix("datasets/").split("/")
    repository, below = parts[:2], parts[2:]
    if len(repository) != 2 or not all(_REPOSITORY_PART.match(part) for part in repository):
        raise _invalid(text, "expected hf://organisation/name")
    if "" in below:
        raise _invalid(text, "it must not hold an empty path segment ('//')")
    return StorageUri(scheme="hf", container="/".join(repository), path="/".join(below))


def _container(text: str, scheme: Literal["s3", "pvc"], rest: str) -> StorageUri:
    container, _, path = rest.partition("/")
    name_ok = (_BUCKET if scheme == "s3" else _CLAIM).match(container)
    if not name_ok:
        noun = "bucket" if scheme == "s3" else "claim"
        raise _invalid(text, f"'{container}' is no {noun} name; expected {scheme}://{noun}/path")
    path = path.strip("/")
    if path and "" in path.split("/"):
        raise _invalid(text, "it must not hold an empty path segment ('//')")
    return StorageUri(scheme=scheme, container=container, path=path)


def _invalid(text: str, why: str) -> UserError:
    return UserError(URI_INVALID, f"{text!r} is not an address that can be read: {why}.")
