"""One door to every place of files: an address in, something that lists and copies out.

`pvc://claim/path` is a volume that the operator has mounted read-only below a known folder; a local
path is itself. Both need no copying: their files are used where they lie.
"""

from __future__ import annotations

from pathlib import Path

from anneal_jobs.errors import URI_INVALID
from anneal_jobs.storage.s3 import S3Folder, S3Settings, connect
from anneal_jobs.storage.uri import StorageUri
from anneal_operator.api.names import CLAIMS_FOLDER
from anneal_pipeline.checkpoint.local import LocalFolder
from anneal_pipeline.checkpoint.store import BlobFolder
from anneal_pipeline.errors import UserError


def path_of(uri: StorageUri, *, claims_folder: Path = Path(CLAIMS_FOLDER)) -> Path | None:
    """Where the files of `uri` lie in this file system; None when they have to be fetched."""
    if uri.scheme == "file":
        return Path(uri.path).expanduser()
    if uri.scheme == "pvc":
        return claims_folder / uri.container / uri.path
    return None


def open_folder(uri: StorageUri, settings: S3Settings) -> BlobFolder:
    """The folder at a `uri` one can write to: S3 or a local path."""
    if uri.scheme == "s3":
        return S3Folder(connect(settings), uri, credentials=settings.credentials)
    if uri.scheme != "file":
        raise UserError(
            URI_INVALID, f"{uri} cannot be written to; name an s3:// address as output."
        )
    root = Path(uri.path).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    return LocalFolder(root)
