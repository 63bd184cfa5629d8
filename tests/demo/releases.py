"""The two charts as the demo installs them: services for trials first, then the operator."""

from dataclasses import dataclass

from layout import (
    BUCKET,
    CHARTS,
    JOB_NAMESPACE,
    OPERATOR_NAMESPACE,
    SERVICES_NAMESPACE,
    STORAGE_SECRET,
)
from pod_images import ENVIRONMENT_CLAIM, ENVIRONMENT_MOUNT, Images, split_reference
from target import TEST_NODE_ADDRESS, Object, Target

MLFLOW_PORT = 5000
MLFLOW_NODE_PORT = 30500
S3_PORT = 7070
S3_NODE_PORT = 30700

MLFLOW_URI = f"http://mlflow.{SERVICES_NAMESPACE}.svc:{MLFLOW_PORT}"
S3_ENDPOINT = f"http://s3.{SERVICES_NAMESPACE}.svc:{S3_PORT}"


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where this machine reaches what pods reach by service names."""

    mlflow: str
    s3: str


TEST_CLUSTER_ADDRESSES = Addresses(
    mlflow=f"http://{TEST_NODE_ADDRESS}:{MLFLOW_NODE_PORT}",
    s3=f"http://{TEST_NODE_ADDRESS}:{S3_NODE_PORT}",
)
# Ports of port-forwards. A fixed one for MLflow, because its address is in the job's status.
FORWARDED_ADDRESSES = Addresses(
    mlflow=f"http://localhost:{MLFLOW_NODE_PORT}", s3=f"http://localhost:{S3_NODE_PORT}"
)


def make_namespaces(target: Target) -> None:
    """Make the three namespaces; the job's admits only pods of the restricted standard."""
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    target.apply(
        *(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name, "labels": enforced},
            }
            for name in (OPERATOR_NAMESPACE, SERVICES_NAMESPACE, JOB_NAMESPACE)
        )
    )


def install_services(target: Target, *, images: Images) -> None:
    """Install or upgrade MLflow and the S3 server, and wait until they serve."""
    values = services_values(images, is_test_cluster=target.is_test_cluster)
    _install(target, "anneal-dev-services", namespace=SERVICES_NAMESPACE, values=values)


def install_operator(target: Target, *, images: Images, addresses: Addresses) -> None:
    """Install or upgrade definitions, operator and the profile `default`."""
    values = operator_values(images, mlflow_url=addresses.mlflow)
    _install(target, "anneal", namespace=OPERATOR_NAMESPACE, values=values)


def _install(target: Target, chart: str, *, namespace: str, values: Object) -> None:
    # A demo that was stopped in the middle of a helm call leaves a revision that is pending for
    # ever, and helm refuses to work beside it.
    states = "pending-install,pending-upgrade,pending-rollback"
    target.kubectl(
        "delete", "secret", f"--namespace={namespace}", "--ignore-not-found",
        f"--selector=owner=helm,name={chart},status in ({states})",
    )  # fmt: skip
    target.helm(
        "upgrade", "--install", chart, str(CHARTS / chart), f"--namespace={namespace}",
        # Definitions may have come with another release; the newer ones replace them.
        "--take-ownership", "--wait", "--timeout=10m", values=values,
    )  # fmt: skip


def services_values(images: Images, *, is_test_cluster: bool) -> Object:
    """Values of the chart anneal-dev-services."""
    mlflow, s3 = split_reference(images.mlflow), split_reference(images.s3)
    values: Object = {
        "image": {"registry": mlflow.pop("registry"), "pullPolicy": images.pull_policy},
        "jobNamespaces": [JOB_NAMESPACE],
        "mlflow": {"image": mlflow, **_environment(images)},
        "s3": {
            "image": {"repository": s3["repository"], "tag": s3["tag"]},
            "buckets": [BUCKET],
            "credentials": {"secretName": STORAGE_SECRET},
        },
    }
    if is_test_cluster:
        host = TEST_CLUSTER_ADDRESSES.mlflow.removeprefix("http://")
        values["mlflow"]["publicHosts"] = [host]
        values["mlflow"]["service"] = {"type": "NodePort", "nodePort": MLFLOW_NODE_PORT}
        values["s3"]["service"] = {"type": "NodePort", "nodePort": S3_NODE_PORT}
        values["s3"]["publicEndpoint"] = TEST_CLUSTER_ADDRESSES.s3
    else:
        host = FORWARDED_ADDRESSES.mlflow.removeprefix("http://")
        values["mlflow"]["publicHosts"] = [host]
    return values


def operator_values(images: Images, *, mlflow_url: str) -> Object:
    """Values of the chart anneal."""
    return {
        "image": {**split_reference(images.operator), "pullPolicy": images.pull_policy},
        # A standby would cost half of what the trainer has on a machine of two cores.
        "replicas": 1,
        # Leaves the rest of the cluster to other releases: the end-to-end tests bring their own.
        "watch": {"namespaces": [JOB_NAMESPACE]},
        # The operator imports its code at start; a changed environment must start it anew.
        "podAnnotations": {"demo.anneal.dev/environment": images.environment},
        "tracking": {"servers": [{"uri": MLFLOW_URI, "publicUrl": mlflow_url}]},
        "profiles": [{"name": "default", "spec": profile_spec(images)}],
        **_environment(images),
    }


def profile_spec(images: Images) -> Object:
    """The profile `default`: one CPU pod of modest size, this demo's stores and nothing else."""
    volumes = []
    if images.has_environment_volume:
        volumes = [{"claim": ENVIRONMENT_CLAIM, "mountPath": ENVIRONMENT_MOUNT, "readOnly": True}]
    return {
        "images": {"trainer": images.trainer, "pullPolicy": images.pull_policy},
        "storage": {
            "endpoint": S3_ENDPOINT,
            "credentialsSecret": STORAGE_SECRET,
            "outputURI": f"s3://{BUCKET}/outputs",
            "allowedReadURIs": [f"s3://{BUCKET}/datasets"],
        },
        "models": {"allowedURIs": [f"s3://{BUCKET}/models"]},
        "tracking": {"uri": MLFLOW_URI},
        "allowedNamespaces": [JOB_NAMESPACE],
        "resources": {
            "gpusPerWorker": 0,
            "cpus": "1",
            "memory": "6Gi",
            "sharedMemory": "1Gi",
            "scratch": "10Gi",
        },
        "volumes": volumes,
    }


def _environment(images: Images) -> Object:
    """Volume values of a chart whose pods find their Python in a claim."""
    if not images.has_environment_volume:
        return {}
    return {
        "extraVolumes": [
            {
                "name": "environment",
                "persistentVolumeClaim": {"claimName": ENVIRONMENT_CLAIM, "readOnly": True},
            }
        ],
        "extraVolumeMounts": [
            {"name": "environment", "mountPath": ENVIRONMENT_MOUNT, "readOnly": True}
        ],
    }
