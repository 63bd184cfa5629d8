"""`anneal models import` and `anneal upload`: bringing models and data to where jobs read them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from anneal_jobs.errors import URI_INVALID
from anneal_jobs.storage.outputs import files_below
from anneal_jobs.storage.s3 import S3Folder, S3Settings, connect
from anneal_jobs.storage.uri import parse_uri
from anneal_pipeline.errors import DATASET_NOT_FOUND, MODEL_NOT_FOUND, UserError

SMOLLM2 = "smollm2"


def import_to(source: str, output: str, *, s3_endpoint: str | None) -> str:
    """Convert a GGUF file and put the model folder at `output`; returns that address."""
    if source != SMOLLM2 and not Path(source).is_file():
        raise UserError(
            MODEL_NOT_FOUND,
            f"There is no GGUF file at {source}; give the path of one, or {SMOLLM2} for the model "
            "that comes with Anneal.",
        )
    from anneal_pipeline.model.gguf_import import find_packaged_gguf, import_gguf

    gguf = find_packaged_gguf() if source == SMOLLM2 else Path(source)
    if parse_uri(output).scheme == "file":
        return str(import_gguf(gguf, Path(output).expanduser().absolute()))
    with tempfile.TemporaryDirectory() as folder:
        model = import_gguf(gguf, Path(folder) / "model")
        return upload_to(model, output, s3_endpoint=s3_endpoint)


def upload_to(source: Path, target: str, *, s3_endpoint: str | None) -> str:
    """Copy a file, or the files below a folder, to S3; returns the address.

    A file keeps its name where the target is a bucket or ends in a slash.
    """
    uri = parse_uri(target)
    if uri.scheme != "s3":
        raise UserError(URI_INVALID, f"{target} is no s3:// address; upload copies to S3 only.")
    if not source.exists():
        raise UserError(DATASET_NOT_FOUND, f"{source} does not exist; name a file or a folder.")
    if source.is_file() and (target.endswith("/") or not uri.path):
        uri = uri.child(source.name)
    region = os.environ.get("AWS_REGION")
    folder = S3Folder(connect(S3Settings(endpoint=s3_endpoint, region=region)), uri)
    for path in files_below(source):
        folder.upload(path, path.relative_to(source).as_posix() if source.is_dir() else "")
    return str(uri)
