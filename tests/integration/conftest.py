"""What several integration areas share: a bare, real API server with Anneal's CRDs in it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("ANNEAL_CACHE") or Path.home() / ".cache" / "anneal")
KUBECTL = CACHE / "bin" / "kubectl"


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real etcd and API server on loopback; yields the administrator's kubeconfig."""
    folder = tmp_path_factory.mktemp("api-server")
    with subprocess.Popen(
        [sys.executable, "tests/cluster/cluster.py", "api-server", "--dir", str(folder)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            words = next((line.split() for line in process.stdout if line.startswith("ready ")), [])
            assert len(words) == 2, "the API server did not start; see its messages above"
            yield Path(words[1])
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def anneal_api(api_server: Path) -> Path:
    """The same API server with Anneal's CRDs established."""
    crds = REPOSITORY / "charts" / "anneal" / "files" / "crds"
    kubectl = [str(KUBECTL), "--kubeconfig", str(api_server)]
    subprocess.run([*kubectl, "apply", "--server-side", "-f", str(crds)], check=True)
    subprocess.run(
        [*kubectl, "wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"],
        check=True,
    )
    return api_server


@pytest.fixture(scope="session")
def kubectl_program() -> Path:
    """The kubectl that was built for the test cluster."""
    assert KUBECTL.exists(), f"{KUBECTL} is missing: run `make programs`"
    return KUBECTL
