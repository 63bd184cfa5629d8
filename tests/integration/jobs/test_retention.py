"""Which checkpoints stay: the same on a local disk and on a real S3 server."""

from pathlib import Path

import pytest

from anneal_jobs.storage.s3 import S3Folder, connect
from anneal_jobs.storage.uri import parse_uri
from anneal_pipeline.checkpoint.local import LocalFolder
from anneal_pipeline.checkpoint.manifest import CheckpointInfo, order_of
from anneal_pipeline.checkpoint.store import Best, BlobFolder, CheckpointStore

from .conftest import BUCKET, S3Server


class Place:
    """One folder of checkpoints and the attempts that write into it."""

    def __init__(self, folder: BlobFolder, scratch: Path) -> None:
        self.folder = folder
        self.scratch = scratch

    def store(self, *, attempt: int, keep: int) -> CheckpointStore:
        return CheckpointStore(
            self.folder,
            scratch=self.scratch / f"attempt-{attempt}",
            attempt=attempt,
            writer="1f2e3d4c",
            keep=keep,
        )

    def save(self, store: CheckpointStore, *steps: int) -> str:
        """Save each step; returns the name of the last."""
        source = self.scratch / "source"
        source.mkdir(parents=True, exist_ok=True)
        name = ""
        for step in steps:
            (source / "adapter.bin").write_text(f"weights {step}")
            info = CheckpointInfo(step=step, config_hash="c", dataset_digest="d", libraries={})
            name = store.save(source, info).name
        return name

    def kept(self) -> list[tuple[int, int]]:
        """(step, attempt) of every folder that has any file."""
        folders = {name.split("/", 1)[0] for name in self.folder.list_names()}
        return sorted(order for name in folders if (order := order_of(name)) is not None)


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return Place(LocalFolder(tmp_path / "checkpoints"), tmp_path / "scratch")
    server: S3Server = request.getfixturevalue("s3")
    uri = parse_uri(f"s3://{BUCKET}/retention/{tmp_path.name}")
    return Place(S3Folder(connect(server.settings), uri), tmp_path / "scratch")


def test_the_newest_stay(place: Place) -> None:
    place.save(place.store(attempt=1, keep=2), 10, 20, 30)
    assert place.kept() == [(20, 1), (30, 1)]


def test_a_damaged_newest_costs_no_good_one_its_place(place: Place) -> None:
    newest = place.save(place.store(attempt=1, keep=3), 10, 20)
    place.folder.write(f"{newest}/adapter.bin", b"damaged")
    second = place.store(attempt=2, keep=1)
    saved = second.latest()
    assert saved is not None
    assert saved.manifest.step == 10
    just_saved = place.save(second, 12)
    assert place.kept() == [(10, 1), (12, 2)]
    found = place.store(attempt=3, keep=1).latest()
    assert found is not None
    assert found.manifest.name == just_saved


def test_a_run_that_starts_anew_is_not_pruned_behind_an_older_one(place: Place) -> None:
    place.save(place.store(attempt=1, keep=2), 80, 90)
    anew = place.store(attempt=2, keep=2)
    place.save(anew, 10)
    assert place.kept() == [(10, 2), (90, 1)]
    place.save(anew, 20, 30)
    assert place.kept() == [(20, 2), (30, 2)]


def test_the_best_stays(place: Place) -> None:
    store = place.store(attempt=1, keep=1)
    best = place.save(store, 10)
    store.pin_best(Best(name=best, step=10, metric="responsePerplexity", value=2.0))
    place.save(store, 20, 30)
    assert place.kept() == [(10, 1), (30, 1)]


def test_what_was_resumed_from_stays_while_its_attempt_runs(place: Place) -> None:
    place.save(place.store(attempt=1, keep=1), 10)
    second = place.store(attempt=2, keep=1)
    assert second.latest() is not None
    place.save(second, 20, 30)
    assert place.kept() == [(10, 1), (30, 2)]
    third = place.store(attempt=3, keep=1)
    assert third.latest() is not None
    place.save(third, 40)
    assert place.kept() == [(30, 2), (40, 3)]
