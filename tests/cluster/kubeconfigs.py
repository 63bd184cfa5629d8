"""Writes kubeconfig files: who one is, and where the API server is."""

import base64
import json
from pathlib import Path

from certificates import Pair


def write_kubeconfig(path: Path, *, server: str, authority: Path, user: Pair) -> Path:
    """Write a self-contained kubeconfig (JSON is YAML), readable by its owner alone."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "anneal",
                "cluster": {"server": server, "certificate-authority-data": _inline(authority)},
            }
        ],
        "users": [
            {
                "name": "anneal",
                "user": {
                    "client-certificate-data": _inline(user.certificate),
                    "client-key-data": _inline(user.key),
                },
            }
        ],
        "contexts": [{"name": "anneal", "context": {"cluster": "anneal", "user": "anneal"}}],
        "current-context": "anneal",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.new")
    part.touch(mode=0o600)
    part.write_text(json.dumps(config, indent=2) + "\n")
    part.replace(path)
    return path


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
