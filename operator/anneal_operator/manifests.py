"""The objects made for one attempt, complete and deterministic. Pure; held by golden files.

Every pod meets the restricted Pod Security Standard. Image, service account, node selectors,
credentials and claims come from the snapshot of the profile, never from the job.
"""

from __future__ import annotations

from typing import Any

from anneal_operator.admission import dataset_uris
from anneal_operator.api import names
from anneal_operator.api.outcome import ExitCode
from anneal_operator.api.profile import FineTuneProfileSpec
from anneal_operator.api.progress import report_path
from anneal_operator.api.run_config import SIZE_BYTES_MAX, RunConfig
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.errors import ChildRefused
from anneal_operator.observation import Job
from anneal_operator.resources import FINE_TUNE_JOBS
from anneal_operator.stored_config import effective_pipeline, num_gpus

Object = dict[str, Any]

TMP_BYTES = "8Gi"
TOKEN_SECONDS = 3600
GRACE_MARGIN_SECONDS = 10
"""The kubelet's grace period beyond the time for the checkpoint: to send the outcome and exit."""

_FOLDERS = {"tmp": "/tmp", "shm": "/dev/shm", "work": names.WORK_FOLDER}  # noqa: S108
_LABEL_MAX = 63
_NO_TELEMETRY = {
    "DO_NOT_TRACK": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Whatever image the profile names: libraries send no usage data to their makers."""


def ca_config_map_name(release_identity: str) -> str:
    """Name of the ConfigMap that brings the progress server's CA into a job's namespace."""
    return f"anneal-progress-ca-{release_identity.replace('.', '-')}"[:_LABEL_MAX].rstrip("-")


def labels(job: Job, *, release: str, attempt: int | None = None) -> dict[str, str]:
    """Labels of everything made for a job."""
    own = {
        "app.kubernetes.io/name": "anneal",
        "app.kubernetes.io/component": "trainer",
        "app.kubernetes.io/part-of": "anneal",
        "app.kubernetes.io/managed-by": "anneal-operator",
        names.LABEL_JOB: job.name[:_LABEL_MAX].rstrip("-."),
        names.LABEL_JOB_UID: job.uid,
        names.LABEL_RELEASE: release,
    }
    return own if attempt is None else {**own, names.LABEL_ATTEMPT: str(attempt)}


def owner_reference(job: Job) -> Object:
    """Makes the FineTuneJob the owner, so that garbage collection clears up after it."""
    return {
        "apiVersion": FINE_TUNE_JOBS.api_version,
        "kind": FINE_TUNE_JOBS.kind,
        "name": job.name,
        "uid": job.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def run_config_map(job: Job, *, config: RunConfig, release: str) -> Object:
    """The immutable ConfigMap with job.json, used by every attempt."""
    text = config.to_text()
    if len(text.encode()) > SIZE_BYTES_MAX:
        raise ChildRefused(
            f"The stored config (job.json) has {len(text.encode())} bytes, more than "
            f"{SIZE_BYTES_MAX}; apply the job again under another name with a shorter spec."
        )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names.run_config_name(job.name, job.uid),
            "namespace": job.namespace,
            "labels": labels(job, release=release),
            "ownerReferences": [owner_reference(job)],
        },
        "immutable": True,
        "data": {names.RUN_CONFIG_KEY: text},
    }


def child_job(
    job: Job,
    *,
    spec: FineTuneJobSpec,
    profile: FineTuneProfileSpec,
    attempt: int,
    run_id: str,
    progress_url: str,
    release: str,
) -> Object:
    """The batch/v1 Job of one attempt: exactly one set of pods, never retried by itself."""
    marks = labels(job, release=release, attempt=attempt)
    pod_spec = _pod_spec(
        job,
        spec=spec,
        profile=profile,
        environment=_environment(
            profile,
            attempt=attempt,
            run_id=run_id,
            url=progress_url + report_path(job.namespace, job.name),
        ),
        release=release,
    )
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": names.attempt_name(job.name, job.uid, attempt),
            "namespace": job.namespace,
            "labels": marks,
            "ownerReferences": [owner_reference(job)],
        },
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": {"metadata": {"labels": marks}, "spec": pod_spec},
        },
    }


def ca_config_map(
    *, namespace: str, release: str, ca: str, owner_references: tuple[Object, ...]
) -> Object:
    """The progress server's CA in a job's namespace; mounted as a folder, so a new one arrives."""
    metadata: Object = {
        "name": ca_config_map_name(release),
        "namespace": namespace,
        "labels": {
            "app.kubernetes.io/name": "anneal",
            "app.kubernetes.io/managed-by": "anneal-operator",
            names.LABEL_RELEASE: release,
        },
    }
    if owner_references:
        metadata["ownerReferences"] = list(owner_references)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {names.PROGRESS_CA_KEY: ca},
    }


def _failure_rules() -> list[Object]:
    """FailJob only: the operator owns retries. The rules make the Job say which case it was."""
    codes = sorted((ExitCode.USER, ExitCode.INTERRUPTED, ExitCode.INFRASTRUCTURE))
    return [
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": names.TRAINER_CONTAINER,
                "operator": "In",
                "values": [int(code) for code in codes],
            },
        },
        {
            "action": "FailJob",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },
    ]


def _pod_spec(
    job: Job,
    *,
    spec: FineTuneJobSpec,
    profile: FineTuneProfileSpec,
    environment: list[Object],
    release: str,
) -> Object:
    volumes, mounts = _volumes(job, spec=spec, profile=profile, release=release)
    grace = effective_pipeline(spec, profile).checkpoint.grace_seconds
    pod: Object = {
        "restartPolicy": "Never",
        "serviceAccountName": profile.service_account_name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace + GRACE_MARGIN_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": names.TRAINER_UID,
            "runAsGroup": names.TRAINER_UID,
            "fsGroup": names.TRAINER_UID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": names.TRAINER_CONTAINER,
                "image": profile.images.trainer,
                "imagePullPolicy": profile.images.pull_policy,
                "command": ["tini", "--", "anneal-train", names.RUN_CONFIG_PATH],
                "env": environment,
                "resources": _resources(spec, profile),
                "terminationMessagePath": names.TERMINATION_LOG_PATH,
                "terminationMessagePolicy": "File",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if profile.node_selector:
        pod["nodeSelector"] = dict(profile.node_selector)
    if profile.tolerations:
        pod["tolerations"] = [toleration.to_data() for toleration in profile.tolerations]
    return pod


def _resources(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> Object:
    memory = spec.compute.memory or profile.resources.memory
    requests: Object = {"cpu": spec.compute.cpus or profile.resources.cpus, "memory": memory}
    limits: Object = {"memory": memory}
    gpus = num_gpus(spec, profile)
    if gpus:
        limits[profile.gpu_resource] = requests[profile.gpu_resource] = str(gpus)
    return {"requests": requests, "limits": limits}


def _environment(
    profile: FineTuneProfileSpec, *, attempt: int, run_id: str, url: str
) -> list[Object]:
    """The administrator's variables before ours, so that ours win; but for telemetry."""
    pairs = _NO_TELEMETRY | {item.name: item.value for item in profile.env}
    pairs |= {
        "HOME": "/tmp",  # noqa: S108 - an emptyDir of the pod's own
        "HF_HOME": f"{names.WORK_FOLDER}/huggingface",
        names.ENV_ATTEMPT: str(attempt),
        names.ENV_RUN_ID: run_id,
        names.ENV_PROGRESS_URL: url,
        names.ENV_PROGRESS_CA: names.PROGRESS_CA_PATH,
        names.ENV_PROGRESS_TOKEN: names.PROGRESS_TOKEN_PATH,
    }
    if profile.storage.credentials_secret:
        folder = names.STORAGE_CREDENTIALS_FOLDER
        pairs["AWS_SHARED_CREDENTIALS_FILE"] = f"{folder}/{names.STORAGE_CREDENTIALS_KEY}"
    if profile.models.token_secret:
        pairs["HF_TOKEN_PATH"] = f"{names.HUB_CREDENTIALS_FOLDER}/{names.HUB_TOKEN_KEY}"
    environment: list[Object] = [{"name": key, "value": value} for key, value in pairs.items()]
    pod_uid = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.uid"}}
    return [*environment, {"name": names.ENV_POD_UID, "valueFrom": pod_uid}]


def _volumes(
    job: Job, *, spec: FineTuneJobSpec, profile: FineTuneProfileSpec, release: str
) -> tuple[list[Object], list[Object]]:
    """Volumes and their mounts, in the same order."""
    volumes: list[Object] = [
        {"name": "tmp", "emptyDir": {"sizeLimit": TMP_BYTES}},
        {
            "name": "shm",
            "emptyDir": {
                "medium": "Memory",
                "sizeLimit": spec.compute.shared_memory or profile.resources.shared_memory,
            },
        },
        {"name": "work", "emptyDir": {"sizeLimit": profile.resources.scratch}},
        _config_map("job", names.run_config_name(job.name, job.uid)),
        _progress_token(job),
        _config_map("progress-ca", ca_config_map_name(release)),
    ]
    mounts: list[Object] = [
        *({"name": name, "mountPath": path} for name, path in _FOLDERS.items()),
        _read_only("job", names.RUN_CONFIG_FOLDER),
        _read_only("progress-token", names.PROGRESS_TOKEN_FOLDER),
        _read_only("progress-ca", names.PROGRESS_CA_FOLDER),
    ]
    secrets = (
        ("storage", profile.storage.credentials_secret, names.STORAGE_CREDENTIALS_FOLDER),
        ("tracking", profile.tracking.credentials_secret, names.TRACKING_CREDENTIALS_FOLDER),
        ("hub", profile.models.token_secret, names.HUB_CREDENTIALS_FOLDER),
    )
    for name, secret, folder in secrets:
        if secret:
            volumes.append({"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}})
            mounts.append(_read_only(name, folder))
    for number, (claim, path, read_only) in enumerate(_claims(spec, profile)):
        source: Object = {"claimName": claim}
        mount: Object = {"name": f"claim-{number}", "mountPath": path}
        if read_only:
            source["readOnly"] = mount["readOnly"] = True
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": source})
        mounts.append(mount)
    return volumes, mounts


def _config_map(name: str, config_map: str) -> Object:
    return {"name": name, "configMap": {"name": config_map, "defaultMode": 0o444}}


def _read_only(name: str, path: str) -> Object:
    return {"name": name, "mountPath": path, "readOnly": True}


def _progress_token(job: Job) -> Object:
    """A token that is good for reporting this job's progress and for nothing else."""
    source = {
        "serviceAccountToken": {
            "audience": names.progress_audience(job.uid),
            "expirationSeconds": TOKEN_SECONDS,
            "path": "token",
        }
    }
    return {"name": "progress-token", "projected": {"defaultMode": 0o440, "sources": [source]}}


def _claims(spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> list[tuple[str, str, bool]]:
    """Claim, path and read-only of each PersistentVolumeClaim, each claim path once.

    A claim that is written to anywhere is mounted for writing under CLAIMS_FOLDER.
    """
    reads = [spec.model.uri, *(uri for _, uri in dataset_uris(spec))]
    writes = [spec.output.uri or profile.storage.output_uri or ""]
    by_name: dict[str, bool] = {}
    for uris, read_only in ((reads, True), (writes, False)):
        for uri in uris:
            if uri.startswith("pvc://"):
                claim = uri.removeprefix("pvc://").split("/", 1)[0]
                by_name[claim] = read_only and by_name.get(claim, True)
    found = [(c, f"{names.CLAIMS_FOLDER}/{c}", ro) for c, ro in sorted(by_name.items())]
    found += [(v.claim, v.mount_path, v.read_only) for v in profile.volumes]
    return found
