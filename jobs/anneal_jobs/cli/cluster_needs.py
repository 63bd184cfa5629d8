"""What a job that runs on this machine lacks for a cluster, as far as its file tells."""

from __future__ import annotations

import re
from collections.abc import Iterator

from anneal_operator.api.spec import FineTuneJobSpec

_REMOTE = ("s3://", "hf://", "pvc://")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def cluster_needs(spec: FineTuneJobSpec) -> tuple[str, ...]:
    """One clause for each field a cluster refuses; a profile may ask for more."""
    return tuple(_needs(spec))


def _needs(spec: FineTuneJobSpec) -> Iterator[str]:
    data = [(f"dataset.{path}", uri) for path, uri in spec.dataset.sources()]
    for path, uri in [("model.uri", spec.model.uri), *data]:
        if not uri.startswith(_REMOTE):
            yield f"spec.{path} at s3://, hf:// or pvc:// (got {uri})"
    if spec.output.uri is not None and not spec.output.uri.startswith("s3://"):
        yield f"spec.output.uri at s3:// (got {spec.output.uri})"
    for path, revision in (
        ("model.revision", spec.model.revision),
        ("dataset.revision", spec.dataset.revision),
    ):
        if revision is not None and not _COMMIT.fullmatch(revision):
            yield (
                f"the 40-digit commit hash in spec.{path} (got {revision}), unless its profile "
                "allows tags"
            )
