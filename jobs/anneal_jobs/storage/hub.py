"""Files of a hub repository at a pinned revision. No code of a repository is ever run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from anneal_jobs.errors import STORAGE_ACCESS_DENIED, StorageUnreachableError
from anneal_jobs.storage.meter import OnChunk
from anneal_pipeline.errors import UserError

_TIMEOUT_SECONDS = 30.0
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class HubRepository:
    name: str
    """organisation/name."""
    kind: Literal["model", "dataset"]
    revision: str
    not_found_reason: str
    """What a missing repository or revision is called: ModelNotFound or DatasetNotFound."""

    def __str__(self) -> str:
        return f"hf://{self.name}"


@dataclass(frozen=True, kw_only=True)
class HubContents:
    files: list[tuple[str, int]]
    """(name, bytes) of every file."""
    configurations: list[dict[str, Any]]
    """Of a dataset, as its card lists them; empty where it lists none."""


def look_into(repository: HubRepository, *, endpoint: str | None) -> HubContents:
    """What the repository holds at the revision."""

    def ask() -> HubContents:
        info: Any = _api(endpoint).repo_info(
            repository.name,
            repo_type=repository.kind,
            revision=repository.revision,
            files_metadata=True,
            timeout=_TIMEOUT_SECONDS,
        )
        return HubContents(
            files=[(file.rfilename, file.size or 0) for file in info.siblings or []],
            configurations=list(getattr(info.card_data, "configs", None) or ()),
        )

    return _translated(repository, ask)


class _Chunks:
    """Takes the place of the progress bar that the hub client writes to."""

    def __init__(self, on_chunk: OnChunk) -> None:
        self._on_chunk = on_chunk

    def __call__(self, **options: Any) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to close."""

    def update(self, count: int) -> None:
        self._on_chunk(count)


def download_file(
    repository: HubRepository, name: str, *, to: Path, endpoint: str | None, on_chunk: OnChunk
) -> Path:
    """Fetch one file below `to`, keeping its name; what `on_chunk` raises ends the transfer."""
    bar: Any = _Chunks(on_chunk)

    def fetch() -> Path:
        return Path(
            _api(endpoint).hf_hub_download(
                repository.name,
                name,
                repo_type=repository.kind,
                revision=repository.revision,
                local_dir=str(to),
                tqdm_class=bar,
            )
        )

    return _translated(repository, fetch)


def _api(endpoint: str | None) -> HfApi:
    token_path = os.environ.get("HF_TOKEN_PATH")
    token = None
    if token_path and Path(token_path).is_file():
        token = Path(token_path).read_text(encoding="utf-8").strip()
    return HfApi(endpoint=endpoint, token=token)


def _translated(repository: HubRepository, call: Callable[[], _T]) -> _T:
    where = f"{repository} at revision {repository.revision}"
    try:
        return call()
    except GatedRepoError as error:
        raise UserError(
            STORAGE_ACCESS_DENIED,
            f"Cannot read {where}: the repository is gated; accept its licence on the hub and name "
            "a token that may read it in the FineTuneProfile (locally: HF_TOKEN_PATH).",
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            repository.not_found_reason,
            f"Cannot read {where}: the hub knows no such {repository.kind} repository, or it is "
            "private and the token may not read it; correct the name or the token.",
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            repository.not_found_reason,
            f"Cannot read {where}: the repository has no such revision; name one of its commits.",
        ) from error
    except (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        httpx2.HTTPError,
    ) as error:
        raise StorageUnreachableError(
            f"Cannot read {where}: the hub does not answer ({str(error)[:200]}); check the network "
            "or put the files into s3:// or pvc:// and name that address."
        ) from error
