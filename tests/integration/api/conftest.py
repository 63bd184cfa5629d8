from pathlib import Path

import pytest
from tests.integration.api.kubectl import Kubectl


@pytest.fixture(scope="module")
def kubectl(anneal_api: Path, kubectl_program: Path) -> Kubectl:
    return Kubectl(anneal_api, kubectl_program)
