"""Whether a job may run at all: the checks that CEL cannot make. Pure.

A person who may create FineTuneJobs must gain nothing else, so everything is refused that the
profile does not allow. The verdict is made again while a job is refused, and never once it has been
accepted: from then on the snapshot of the profile counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from anneal_operator.api.names import output_folder
from anneal_operator.api.profile import FineTuneProfileSpec
from anneal_operator.api.reasons import Reason
from anneal_operator.api.run_config import SIZE_BYTES_MAX
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.api.unsupported import unsupported_fields, unsupported_profile_fields
from anneal_operator.observation import Input, Job
from anneal_operator.stored_config import num_gpus, run_config
from anneal_pipeline.config.schema import ConfigError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_LONGEST_RELEASE = "x" * (53 + 1 + 63)
"""In place of the release's identity, <release>.<namespace>, while job.json is measured."""
_FORBIDDEN_IN_URI = re.compile(r"[\x00-\x20\\%?#@\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a job is not accepted."""

    reason: Reason
    message: str


def refusal(seen: Input) -> Refusal | None:
    """The first reason against the job, or None if it may run."""
    if isinstance(seen.spec, ConfigError):
        return Refusal(
            reason=Reason.INVALID_SPEC,
            message=f"{seen.spec.under('spec')}; delete the job, correct it and apply it again",
        )
    unsupported = unsupported_fields(seen.spec)
    if unsupported:
        return Refusal(
            reason=Reason.NOT_IMPLEMENTED, message="; ".join(map(str, unsupported)) + "."
        )
    if seen.profile is None:
        return Refusal(
            reason=Reason.PROFILE_NOT_FOUND,
            message=f"spec.compute.profile names {seen.spec.compute.profile!r}, and there is no "
            "FineTuneProfile of that name; name one of `kubectl get finetuneprofiles`, or ask the "
            "administrator to make it.",
        )
    problem = profile_problem(seen.profile.spec, known_uris=seen.known_tracking_uris)
    if problem is not None:
        return problem
    if isinstance(seen.profile.spec, ConfigError):
        raise AssertionError("profile_problem refuses a profile that cannot be read")
    return _against_profile(seen.spec, seen.profile.spec, job=seen.job)


def profile_problem(
    profile: FineTuneProfileSpec | ConfigError, *, known_uris: Iterable[str]
) -> Refusal | None:
    """What is wrong with a profile, whatever the job."""
    if isinstance(profile, ConfigError):
        return Refusal(
            reason=Reason.PROFILE_NOT_READY,
            message=f"The profile is wrong: {profile.under('spec')}; the administrator must "
            "correct it.",
        )
    unsupported = unsupported_profile_fields(profile)
    if unsupported:
        return Refusal(
            reason=Reason.NOT_IMPLEMENTED,
            message=f"The profile asks for what this release cannot do: "
            f"{'; '.join(map(str, unsupported))}; the administrator must correct it.",
        )
    known = {uri.rstrip("/") for uri in known_uris}
    if profile.tracking.uri.rstrip("/") not in known:
        return Refusal(
            reason=Reason.TRACKING_NOT_KNOWN,
            message=f"The profile's tracking.uri is {profile.tracking.uri}, and the operator was "
            f"told of {', '.join(sorted(known)) or 'no MLflow server'}; the administrator must add "
            "it to the chart's tracking values.",
        )
    return None


def _against_profile(
    spec: FineTuneJobSpec, profile: FineTuneProfileSpec, *, job: Job
) -> Refusal | None:
    if not {"*", job.namespace} & set(profile.allowed_namespaces):
        return Refusal(
            reason=Reason.NAMESPACE_NOT_ALLOWED,
            message=f"Profile {spec.compute.profile} is not for namespace {job.namespace}; use "
            "another profile, or ask the administrator to add the namespace to its "
            "allowedNamespaces.",
        )
    return (
        _uris(spec, profile, job=job)
        or _revisions(spec, profile)
        or _limits(spec, profile)
        or _ranks(spec, profile)
        or _size(spec, profile, job=job)
    )


def _uris(spec: FineTuneJobSpec, profile: FineTuneProfileSpec, *, job: Job) -> Refusal | None:
    reads = profile.storage.allowed_read_uris
    checks = [("model.uri", spec.model.uri, profile.models.allowed_uris)]
    checks += [(path, uri, reads) for path, uri in dataset_uris(spec)]
    if spec.output.uri is not None:
        writes = profile.storage.allowed_write_uris
        if profile.storage.output_uri is not None:
            writes = (*writes, profile.storage.output_uri)
        checks.append(("output.uri", spec.output.uri, writes))
    elif profile.storage.output_uri is None:
        return Refusal(
            reason=Reason.URI_NOT_ALLOWED,
            message="spec.output.uri is not set and the profile names no storage.outputURI; set "
            "spec.output.uri to a folder that the profile allows.",
        )
    for path, uri, allowed in checks:
        if not uri_allowed(uri, allowed=allowed, namespace=job.namespace):
            listed = ", ".join(p.replace("{namespace}", job.namespace) for p in allowed)
            return Refusal(
                reason=Reason.URI_NOT_ALLOWED,
                message=f"spec.{path} is {uri}, and profile {spec.compute.profile} allows "
                f"{listed or 'nothing'}; use an allowed place, or ask the administrator to allow "
                "this one.",
            )
    return None


def dataset_uris(spec: FineTuneJobSpec) -> tuple[tuple[str, str], ...]:
    """Field path and URI of every dataset file or folder."""
    return tuple((f"dataset.{path}", uri) for path, uri in spec.dataset.sources())


def uri_allowed(uri: str, *, allowed: Iterable[str], namespace: str) -> bool:
    """Whether `uri` lies at or under one of the prefixes, whole path segments compared.

    `..`, empty segments and every character that servers read in more than one way are refused.
    """
    scheme, _, rest = uri.partition("://")
    segments = rest.rstrip("/").split("/")
    if _FORBIDDEN_IN_URI.search(uri) or {"", ".", ".."} & set(segments):
        return False
    for prefix in allowed:
        prefix_scheme, _, prefix_rest = prefix.replace("{namespace}", namespace).partition("://")
        wanted = [part for part in prefix_rest.split("/") if part]
        if scheme == prefix_scheme and segments[: len(wanted)] == wanted:
            return True
    return False


def _revisions(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> Refusal | None:
    named = [("model.revision", spec.model.uri, spec.model.revision)]
    named += [("dataset.revision", uri, spec.dataset.revision) for _, uri in dataset_uris(spec)]
    for path, uri, revision in named:
        if not uri.startswith("hf://") or profile.models.allow_tags:
            continue
        if not _COMMIT.fullmatch(revision or ""):
            return Refusal(
                reason=Reason.REVISION_NOT_PINNED,
                message=f"spec.{path} is {revision}, which is not a commit, and the profile "
                "allows no tags; write the 40-digit commit hash.",
            )
    return None


def _limits(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> Refusal | None:
    limits = profile.limits
    asked: list[tuple[str, int | None, int | None]] = [
        ("compute.gpusPerWorker", spec.compute.gpus_per_worker, limits.gpus_per_worker),
        ("deadlines.activeSeconds", spec.deadlines.active_seconds, limits.active_seconds),
    ]
    for path, value, most in asked:
        if value is not None and most is not None and value > most:
            return Refusal(
                reason=Reason.LIMIT_EXCEEDED,
                message=f"spec.{path} is {value}, and profile {spec.compute.profile} allows at "
                f"most {most}; ask for less, or use another profile.",
            )
    return None


def _ranks(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> Refusal | None:
    """Each rank has one GPU of its own, or none of them has any."""
    ranks, gpus = spec.compute.ranks_per_worker, num_gpus(spec, profile)
    if ranks is None or gpus in (0, ranks):
        return None
    return Refusal(
        reason=Reason.INVALID_SPEC,
        message=f"spec.compute.ranksPerWorker is {ranks}, and each pod has {gpus} "
        f"{'GPU' if gpus == 1 else 'GPUs'}: every rank needs one of its own; delete the "
        "job, remove ranksPerWorker, or set spec.compute.gpusPerWorker to 0 to train on CPUs, and "
        "apply it again.",
    )


def _size(spec: FineTuneJobSpec, profile: FineTuneProfileSpec, *, job: Job) -> Refusal | None:
    """job.json must fit into its ConfigMap, and only here can the user still be told so."""
    config = run_config(
        job,
        spec=spec,
        profile=profile,
        output_uri=output_uri(spec, profile, job=job),
        release=_LONGEST_RELEASE,
    )
    size = len(config.to_text().encode())
    if size <= SIZE_BYTES_MAX:
        return None
    path, part = _largest(spec.to_data())
    return Refusal(
        reason=Reason.INVALID_SPEC,
        message=f"The spec makes a job.json of {size} bytes, and its ConfigMap takes "
        f"{SIZE_BYTES_MAX}; spec.{path} alone has {part} bytes: delete the job, shorten it and "
        "apply it again.",
    )


def _largest(data: dict[str, Any]) -> tuple[str, int]:
    """Path and JSON size in bytes of the largest field, inside its sections."""
    sizes = {
        key: len(json.dumps(value, ensure_ascii=False).encode()) for key, value in data.items()
    }
    name = max(sizes, key=lambda key: sizes[key])
    if isinstance(data[name], dict) and data[name]:
        path, size = _largest(data[name])
        return f"{name}.{path}", size
    return name, sizes[name]


def output_uri(spec: FineTuneJobSpec, profile: FineTuneProfileSpec, *, job: Job) -> str:
    """The job's own output folder. The job has been accepted, so one of the two is set."""
    base = spec.output.uri or profile.storage.output_uri
    if base is None:
        raise AssertionError("admission refuses a job without an output folder")
    base = base.replace("{namespace}", job.namespace)
    return output_folder(base, namespace=job.namespace, job_name=job.name, job_uid=job.uid)
