"""The volume that lends a folder to pods: a real API server accepts it, and accepts it again."""

import json
import subprocess
from pathlib import Path

from places import Places
from volumes import publish_folder


def test_a_folder_is_published_read_only_and_twice(
    api_server: Path, kubectl_program: Path, tmp_path: Path
) -> None:
    places = Places(cache=kubectl_program.parent.parent, state=api_server.parent)
    for _ in range(2):
        publish_folder(tmp_path, namespace="team-a", claim="runtime", places=places)
    shown = subprocess.run(
        [
            str(kubectl_program),
            f"--kubeconfig={api_server}",
            "get",
            "pv,pvc",
            "--output=json",
            "--all-namespaces",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    volume, claim = json.loads(shown.stdout)["items"]
    assert volume["spec"]["hostPath"]["path"] == str(tmp_path)
    assert volume["spec"]["accessModes"] == claim["spec"]["accessModes"] == ["ReadOnlyMany"]
    assert volume["spec"]["claimRef"]["name"] == claim["metadata"]["name"] == "runtime"
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
