"""Every name that two sides of Anneal must spell alike: labels, paths, variables, tags."""

GROUP = "anneal.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

JOB_KIND = "FineTuneJob"
JOB_PLURAL = "finetunejobs"
PROFILE_KIND = "FineTuneProfile"
PROFILE_PLURAL = "finetuneprofiles"
DEFAULT_PROFILE = "default"

FIELD_MANAGER = "anneal-operator"

# Labels on every object the operator makes.
LABEL_JOB = f"{GROUP}/job"
LABEL_JOB_UID = f"{GROUP}/job-uid"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_RELEASE = f"{GROUP}/release"

# The training pod.
TRAINER_CONTAINER = "trainer"
TRAINER_UID = 65532
RUN_CONFIG_KEY = "job.json"
RUN_CONFIG_FOLDER = "/etc/anneal"
RUN_CONFIG_PATH = f"{RUN_CONFIG_FOLDER}/{RUN_CONFIG_KEY}"
TERMINATION_LOG_PATH = "/dev/termination-log"
WORK_FOLDER = "/work"
"""Scratch space of the pod: downloads, prepared data, local checkpoints."""
CLAIMS_FOLDER = "/mnt/claims"
"""pvc://NAME/path is read at CLAIMS_FOLDER/NAME/path."""
STORAGE_CREDENTIALS_FOLDER = "/var/run/secrets/anneal/storage"
STORAGE_CREDENTIALS_KEY = "credentials"
"""Key of the storage Secret: an AWS shared credentials file."""
TRACKING_CREDENTIALS_FOLDER = "/var/run/secrets/anneal/tracking"
"""Keys username and password, or token."""
HUB_CREDENTIALS_FOLDER = "/var/run/secrets/anneal/hub"
HUB_TOKEN_KEY = "token"
PROGRESS_TOKEN_FOLDER = "/var/run/secrets/anneal/progress"
PROGRESS_TOKEN_PATH = f"{PROGRESS_TOKEN_FOLDER}/token"
PROGRESS_CA_FOLDER = "/var/run/secrets/anneal/progress-ca"
PROGRESS_CA_KEY = "ca.crt"
PROGRESS_CA_PATH = f"{PROGRESS_CA_FOLDER}/{PROGRESS_CA_KEY}"

# Environment of the training pod; everything else is in job.json.
ENV_ATTEMPT = "ANNEAL_ATTEMPT"
ENV_POD_UID = "ANNEAL_POD_UID"
ENV_RUN_ID = "ANNEAL_RUN_ID"
ENV_PROGRESS_URL = "KUBEFLOW_TRAINER_SERVER_URL"
ENV_PROGRESS_CA = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
ENV_PROGRESS_TOKEN = "KUBEFLOW_TRAINER_SERVER_TOKEN"

# MLflow run tags.
TAG_JOB_UID = "anneal.job.uid"
TAG_JOB_NAME = "anneal.job.name"
TAG_JOB_NAMESPACE = "anneal.job.namespace"
TAG_RELEASE = "anneal.release"
TAG_ATTEMPT = "anneal.attempt"

# MLflow model version tags.
TAG_ARTEFACT_DIGEST = "anneal.artefact.digest"
TAG_BASE_MODEL = "anneal.base.model"
TAG_BASE_REVISION = "anneal.base.revision"
TAG_DATASET_DIGEST = "anneal.dataset.digest"
TAG_CONFIG_HASH = "anneal.config.hash"
TAG_RUN_ID = "anneal.run.id"
TAG_OUTPUT_URI = "anneal.output.uri"

NAME_STEM_MAX = 36
"""A job's name is cut to this in its children's names, so that they stay valid labels."""


def progress_audience(job_uid: str) -> str:
    """Return the audience of the token that may report progress for this job and no other."""
    return f"{GROUP}/job/{job_uid}"


def child_stem(job_name: str, job_uid: str) -> str:
    """Return the common start of a job's children's names: unique, and at most 45 characters."""
    return f"{job_name[:NAME_STEM_MAX].rstrip('-.').replace('.', '-')}-{job_uid[:8]}"


def attempt_name(job_name: str, job_uid: str, attempt: int) -> str:
    """Return the name of the child object of one attempt (counted from 1)."""
    return f"{child_stem(job_name, job_uid)}-{attempt}"


def run_config_name(job_name: str, job_uid: str) -> str:
    """Return the name of the ConfigMap that holds the job's stored run config."""
    return f"{child_stem(job_name, job_uid)}-config"


def output_folder(base_uri: str, *, namespace: str, job_name: str, job_uid: str) -> str:
    """Return the URI of the job's output folder, common to all its attempts."""
    return f"{base_uri.rstrip('/')}/{namespace}/{job_name}-{job_uid[:8]}"
