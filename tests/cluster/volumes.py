"""Lends a folder of this machine to pods, read-only, by a claim they can mount.

The pod that mounts the claim names no host path and so stays within the restricted Pod Security
Standard; only the PersistentVolume, which an administrator makes, knows the folder.
"""

from pathlib import Path

from kubectl import Object, apply
from places import Places

# What a read-only volume's capacity says binds the claim; nothing measures it.
_CAPACITY = "10Gi"


def publish_folder(folder: Path, *, namespace: str, claim: str, places: Places) -> None:
    """Apply the namespace, a volume of the folder, and the claim bound to it."""
    volume = f"{namespace}-{claim}"
    namespace_object: Object = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": namespace},
    }
    apply(
        [
            namespace_object,
            _volume(volume, folder=folder, namespace=namespace, claim=claim),
            _claim(claim, namespace=namespace, volume=volume),
        ],
        places=places,
    )


def _volume(name: str, *, folder: Path, namespace: str, claim: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": _CAPACITY},
            "accessModes": ["ReadOnlyMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": namespace,
                "name": claim,
            },
            "hostPath": {"path": str(folder)},
        },
    }


def _claim(name: str, *, namespace: str, volume: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "volumeName": volume,
            "resources": {"requests": {"storage": _CAPACITY}},
        },
    }
