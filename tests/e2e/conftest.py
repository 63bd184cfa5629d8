"""One cluster, one installation and all jobs of the end-to-end tests, started together.

The test cluster is started if it does not run, and then stopped afterwards. ANNEAL_E2E_KEEP=1
leaves installation and cluster as they are after the tests, for looking around.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness import installation, report, scenarios, stores
from harness.cluster import STATE, Cluster, CommandFailedError, run_cluster_program
from harness.scenarios import Story

Scenario = Callable[[Cluster], Any]

SCENARIOS: dict[str, Scenario] = {
    "undisturbed": scenarios.undisturbed,
    "killed_operator": scenarios.killed_operator,
    "killed_pod": scenarios.killed_pod,
    "deleted_pod": scenarios.deleted_pod,
    "signalled": scenarios.signalled,
    "suspended": scenarios.suspended,
    "bad_inputs": scenarios.bad_inputs,
}
REPORTED_FAILURES = 2
"""Failures described at length; the same picture again would only bury them."""

_cluster_key = pytest.StashKey[Cluster]()
_reports_key = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    try:
        run_cluster_program("status")
        ours = False
    except CommandFailedError:
        run_cluster_program("up")
        ours = True
    found = Cluster(programs=STATE / "bin", kubeconfig=STATE / "kubeconfig")
    request.session.stash[_cluster_key] = found
    yield found
    if ours and not _keep():
        run_cluster_program("down")


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> Iterator[Path]:
    """Services, operator, model and data; yields the model's local folder."""
    installation.remove(cluster)
    installation.prepare(cluster)
    installation.install_services(cluster)
    with tempfile.TemporaryDirectory() as folder:
        model = stores.fill(stores.s3_client(cluster), folder=Path(folder))
        cluster.apply(stores.wrong_secret())
        installation.install_operator(cluster)
        yield model
    if not _keep():
        installation.remove(cluster)


@pytest.fixture(scope="session")
def futures(
    request: pytest.FixtureRequest, cluster: Cluster, installed: Path
) -> Iterator[dict[str, "Future[Any]"]]:
    """Every scenario that a selected test asks for, begun at once."""
    wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    with ThreadPoolExecutor(max_workers=len(SCENARIOS)) as pool:
        yield {
            name: pool.submit(scenario, cluster)
            for name, scenario in SCENARIOS.items()
            if name in wanted
        }


@pytest.fixture(scope="session")
def undisturbed(futures: dict[str, "Future[Story]"]) -> Story:
    return futures["undisturbed"].result()


@pytest.fixture(scope="session")
def killed_operator(futures: dict[str, "Future[Story]"]) -> Story:
    return futures["killed_operator"].result()


@pytest.fixture(scope="session")
def killed_pod(futures: dict[str, "Future[Story]"]) -> Story:
    return futures["killed_pod"].result()


@pytest.fixture(scope="session")
def deleted_pod(futures: dict[str, "Future[Story]"]) -> Story:
    return futures["deleted_pod"].result()


@pytest.fixture(scope="session")
def signalled(futures: dict[str, "Future[Story]"]) -> Story:
    return futures["signalled"].result()


@pytest.fixture(scope="session")
def suspended(futures: dict[str, "Future[Story]"]) -> Story:
    return futures["suspended"].result()


@pytest.fixture(scope="session")
def bad_inputs(futures: dict[str, "Future[dict[str, Story]]"]) -> dict[str, Story]:
    return futures["bad_inputs"].result()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    result: Any = yield
    stash = item.session.stash
    count = stash.get(_reports_key, 0)
    if result.failed and _cluster_key in stash and count < REPORTED_FAILURES:
        stash[_reports_key] = count + 1
        result.sections.extend(report.describe(stash[_cluster_key]))
    return result


def _keep() -> bool:
    return bool(os.environ.get("ANNEAL_E2E_KEEP"))
