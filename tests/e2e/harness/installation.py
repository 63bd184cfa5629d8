"""What the tests install: services, operator and profiles, in namespaces of their own.

Everything is named e2e-*, so that the tests can share the test cluster with a demo. The thin image
is used: its environment is a volume, made from the sources as they are.
"""

import json

from harness.cluster import NODE_ADDRESS, REPOSITORY, STATE, Cluster, Object, run_cluster_program

SYSTEM, SERVICES, JOBS = "e2e-system", "e2e-services", "e2e-jobs"
SECOND_SYSTEM, SECOND_JOBS = "e2e-second", "e2e-second-jobs"
NAMESPACES = (SYSTEM, SERVICES, JOBS, SECOND_SYSTEM, SECOND_JOBS)
RELEASE = "anneal"

MLFLOW_PORT, S3_PORT = 30510, 30710
"""Ports of the node at which the tests themselves reach the services."""
MLFLOW_ADDRESS = f"http://{NODE_ADDRESS}:{MLFLOW_PORT}"
S3_ADDRESS = f"http://{NODE_ADDRESS}:{S3_PORT}"
MLFLOW_URI = f"http://mlflow.{SERVICES}.svc:5000"
ABSENT_MLFLOW_URI = f"http://mlflow-absent.{SERVICES}.svc:5000"
S3_ENDPOINT = f"http://s3.{SERVICES}.svc:7070"

BUCKET, ABSENT_BUCKET = "e2e-bucket", "e2e-absent-bucket"
STORAGE_SECRET, WRONG_SECRET = "anneal-storage", "wrong-storage"
PROFILE, WRONG_SECRET_PROFILE, NO_MLFLOW_PROFILE = "e2e", "e2e-wrong-secret", "e2e-no-mlflow"
PROFILES = (PROFILE, WRONG_SECRET_PROFILE, NO_MLFLOW_PROFILE)

_CLAIM = "anneal-runtime"
_ENVIRONMENT = {
    "extraVolumes": [
        {"name": "runtime", "persistentVolumeClaim": {"claimName": _CLAIM, "readOnly": True}}
    ],
    "extraVolumeMounts": [{"name": "runtime", "mountPath": "/opt/anneal/env", "readOnly": True}],
}


def prepare(cluster: Cluster) -> None:
    """Make the namespaces, restricted, each with the environment that thin pods mount."""
    run_cluster_program("images")
    run_cluster_program("load")
    for namespace in NAMESPACES:
        run_cluster_program("runtime", "--publish", namespace, "--claim", _CLAIM)
        cluster.kubectl(
            "label", "--overwrite", "namespace", namespace,
            "pod-security.kubernetes.io/enforce=restricted",
        )  # fmt: skip


def remove(cluster: Cluster) -> None:
    """Take away everything the tests made; the definitions stay."""
    for release in json.loads(cluster.helm("list", "--all-namespaces", "--output=json")):
        if release["namespace"] in NAMESPACES:
            cluster.helm(
                "uninstall", release["name"], f"--namespace={release['namespace']}", "--wait"
            )
    if cluster.kubectl("get", "crd", "finetuneprofiles.anneal.dev", "--ignore-not-found"):
        cluster.kubectl("delete", "finetuneprofile", "--ignore-not-found", *PROFILES)
    cluster.kubectl("delete", "namespace", "--ignore-not-found", "--wait", *NAMESPACES)
    cluster.kubectl(
        "delete", "persistentvolume", "--ignore-not-found", *(f"{n}-{_CLAIM}" for n in NAMESPACES)
    )


def install_services(cluster: Cluster) -> None:
    thin, s3 = _image("thin"), _image("s3")
    values: Object = {
        "image": {"registry": "localhost", "pullPolicy": "Never"},
        "jobNamespaces": [JOBS, SECOND_JOBS],
        "mlflow": {
            "image": thin,
            "publicHosts": [MLFLOW_ADDRESS.removeprefix("http://")],
            "service": {"type": "NodePort", "nodePort": MLFLOW_PORT},
            **_ENVIRONMENT,
        },
        "s3": {
            "image": s3,
            "buckets": [BUCKET],
            "credentials": {"secretName": STORAGE_SECRET},
            "service": {"type": "NodePort", "nodePort": S3_PORT},
        },
    }
    cluster.helm(
        "upgrade", "--install", "services", str(REPOSITORY / "charts" / "anneal-dev-services"),
        f"--namespace={SERVICES}", "--wait", "--timeout=5m", values=values,
    )  # fmt: skip


def install_operator(
    cluster: Cluster, *, namespace: str = SYSTEM, watched: str = JOBS, replicas: int = 2
) -> None:
    """Install a release in namespaced mode. The first one brings the definitions.

    The profiles come after it and by themselves: a demo's operator that serves the whole cluster
    and does not know our MLflow calls them not Ready, and helm would wait for that to change.
    """
    is_first = namespace == SYSTEM
    values: Object = {
        "image": {"registry": "localhost", **_image("thin"), "pullPolicy": "Never"},
        "replicas": replicas,
        "crds": {"install": is_first},
        "watch": {"namespaces": [watched]},
        "tracking": {
            "servers": [
                {"uri": MLFLOW_URI, "publicUrl": MLFLOW_ADDRESS},
                {"uri": ABSENT_MLFLOW_URI},
            ]
        },
        **_ENVIRONMENT,
    }
    cluster.helm(
        "upgrade", "--install", RELEASE, str(REPOSITORY / "charts" / "anneal"),
        # The definitions may be another release's, a demo's.
        f"--namespace={namespace}", "--take-ownership", "--wait", "--timeout=5m", values=values,
    )  # fmt: skip
    if is_first:
        cluster.apply(*_profiles())


def _profiles() -> list[Object]:
    spec = _profile_spec()
    wrong_storage = {**spec["storage"], "credentialsSecret": WRONG_SECRET}
    specs = {
        PROFILE: spec,
        WRONG_SECRET_PROFILE: {**spec, "storage": wrong_storage},
        NO_MLFLOW_PROFILE: {**spec, "tracking": {"uri": ABSENT_MLFLOW_URI}},
    }
    return [
        {
            "apiVersion": "anneal.dev/v1alpha1",
            "kind": "FineTuneProfile",
            "metadata": {"name": name},
            "spec": one,
        }
        for name, one in specs.items()
    ]


def _profile_spec() -> Object:
    thin = _image("thin")
    return {
        "images": {
            "trainer": f"localhost/{thin['repository']}:{thin['tag']}",
            "pullPolicy": "Never",
        },
        "storage": {
            "endpoint": S3_ENDPOINT,
            "credentialsSecret": STORAGE_SECRET,
            "outputURI": f"s3://{BUCKET}/outputs",
            "allowedReadURIs": [f"s3://{BUCKET}/data", f"s3://{ABSENT_BUCKET}/data"],
        },
        "models": {"allowedURIs": [f"s3://{BUCKET}/models"]},
        "tracking": {"uri": MLFLOW_URI},
        "allowedNamespaces": [JOBS, SECOND_JOBS],
        "resources": {
            "gpusPerWorker": 0,
            # Two such pods at a time leave each a core of a machine of two.
            "cpus": "700m",
            "memory": "3Gi",
            "sharedMemory": "512Mi",
            "scratch": "4Gi",
        },
        "volumes": [{"claim": _CLAIM, "mountPath": "/opt/anneal/env", "readOnly": True}],
    }


def _image(name: str) -> dict[str, str]:
    reference: str = json.loads((STATE / "images.json").read_text())[name]
    repository, _, tag = reference.removeprefix("localhost/").rpartition(":")
    return {"repository": repository, "tag": tag}
