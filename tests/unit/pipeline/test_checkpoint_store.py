"""A checkpoint that is not whole is never taken, and what is kept is what was promised."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from anneal_pipeline.checkpoint.local import LocalFolder
from anneal_pipeline.checkpoint.manifest import (
    CheckpointInfo,
    folder_name,
    order_of,
    parse_manifest,
)
from anneal_pipeline.checkpoint.store import Best, CheckpointStore
from anneal_pipeline.errors import CheckpointError


def info(step: int) -> CheckpointInfo:
    return CheckpointInfo(step=step, config_hash="c", dataset_digest="d", libraries={"torch": "2"})


def save(store: CheckpointStore, root: Path, step: int, *, content: str = "weights") -> str:
    source = root / "source"
    (source / "sub").mkdir(parents=True, exist_ok=True)
    (source / "adapter.bin").write_text(f"{content} {step}")
    (source / "sub" / "state.json").write_text("{}")
    return store.save(source, info(step)).name


@pytest.fixture
def rejected() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def store(kit: ModuleType, tmp_path: Path, rejected: list[tuple[str, str]]) -> Any:
    return kit.make_store(tmp_path, on_rejected=lambda name, why: rejected.append((name, why)))


def test_what_was_saved_comes_back(store: CheckpointStore, tmp_path: Path) -> None:
    name = save(store, tmp_path, 120)
    assert name == "step-000120-a01-1f2e3d4c"
    saved = store.latest()
    assert saved is not None
    assert saved.manifest.step == 120
    assert (saved.folder / "adapter.bin").read_text() == "weights 120"
    assert (saved.folder / "sub" / "state.json").read_text() == "{}"


def tear(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def flip(folder: Path) -> None:
    path = folder / "adapter.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def shorten(folder: Path) -> None:
    (folder / "adapter.bin").write_bytes(b"w")


def remove(folder: Path) -> None:
    (folder / "sub" / "state.json").unlink()


def scribble(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": [')


def reach_out(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][0]["path"] = "../../outside"
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", [tear, flip, shorten, remove, scribble, reach_out])
def test_falls_back_to_the_previous_good_one(
    store: CheckpointStore, tmp_path: Path, rejected: list[tuple[str, str]], damage: Any
) -> None:
    save(store, tmp_path, 10)
    newest = save(store, tmp_path, 20)
    damage(tmp_path / "checkpoints" / newest)
    saved = store.latest()
    assert saved is not None
    assert saved.manifest.step == 10
    assert [name for name, _ in rejected] == ([] if damage is tear else [newest])


def test_nothing_good_is_nothing(store: CheckpointStore, tmp_path: Path) -> None:
    assert store.latest() is None
    flip(tmp_path / "checkpoints" / save(store, tmp_path, 10))
    assert store.latest() is None


def test_keeps_the_newest_and_the_best(kit: ModuleType, tmp_path: Path) -> None:
    store = kit.make_store(tmp_path, keep=2)
    best = save(store, tmp_path, 10)
    store.pin_best(Best(name=best, step=10, metric="responsePerplexity", value=3.0))
    for step in (20, 30, 40):
        save(store, tmp_path, step)
    assert [order_of(name) for name in store.names()] == [(40, 1), (30, 1), (10, 1)]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "best.json",
        *sorted(store.names()),
    ]
    assert store.best() == Best(name=best, step=10, metric="responsePerplexity", value=3.0)


def test_what_was_just_saved_stays_though_a_damaged_one_has_a_higher_step(
    kit: ModuleType, tmp_path: Path
) -> None:
    first = kit.make_store(tmp_path, keep=2)
    save(first, tmp_path, 10)
    flip(tmp_path / "checkpoints" / save(first, tmp_path, 20))
    second = kit.make_store(tmp_path, attempt=2, keep=1)
    assert second.latest().manifest.step == 10
    save(second, tmp_path, 12)
    assert [order_of(name) for name in second.names()] == [(12, 2), (10, 1)]


def test_a_run_that_starts_anew_keeps_its_own(kit: ModuleType, tmp_path: Path) -> None:
    save(kit.make_store(tmp_path, attempt=1, keep=1), tmp_path, 90)
    anew = kit.make_store(tmp_path, attempt=2, keep=1)
    save(anew, tmp_path, 10)
    assert [order_of(name) for name in anew.names()] == [(10, 2)]


def test_going_back_forgets_a_best_from_after_it(kit: ModuleType, tmp_path: Path) -> None:
    store = kit.make_store(tmp_path)
    save(store, tmp_path, 10)
    best = save(store, tmp_path, 20)
    store.pin_best(Best(name=best, step=20, metric="responsePerplexity", value=3.0))
    store.discard_after(10)
    assert store.best() is None
    assert [order_of(name) for name in store.names()] == [(10, 1)]


def test_a_step_saved_again_after_going_back_is_the_newer(kit: ModuleType, tmp_path: Path) -> None:
    store = kit.make_store(tmp_path)
    first = save(store, tmp_path, 10)
    again = store.save(tmp_path / "source", dataclasses.replace(info(10), recoveries=1)).name
    assert store.names() == [again, first]
    assert again == store.name_of(10, recoveries=1) == f"{first}-r1"


def test_going_back_leaves_what_another_run_wrote(kit: ModuleType, tmp_path: Path) -> None:
    save(kit.make_store(tmp_path, keep=9), tmp_path, 90)
    anew = kit.make_store(tmp_path, attempt=2, keep=9)
    for step in (10, 20):
        save(anew, tmp_path, step)
    anew.discard_after(10, own_only=True)
    assert [order_of(name) for name in anew.names()] == [(90, 1), (10, 2)]


def test_a_later_attempt_at_the_same_step_is_the_newer(kit: ModuleType, tmp_path: Path) -> None:
    save(kit.make_store(tmp_path, attempt=1), tmp_path, 10)
    second = save(kit.make_store(tmp_path, attempt=2), tmp_path, 10)
    saved = kit.make_store(tmp_path, attempt=3).latest()
    assert saved.manifest.name == second


def test_a_checkpoint_is_never_overwritten(store: CheckpointStore, tmp_path: Path) -> None:
    save(store, tmp_path, 10)
    with pytest.raises(CheckpointError, match="never overwritten"):
        save(store, tmp_path, 10, content="other")


class Crashing(LocalFolder):
    """Dies after so many calls, as a killed pod does."""

    def __init__(self, root: Path, *, calls: int) -> None:
        super().__init__(root)
        self.calls = calls

    def _count(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise InterruptedError("killed")

    def upload(self, source: Path, name: str, **options: Any) -> None:
        self._count()
        super().upload(source, name, **options)

    def write(self, name: str, data: bytes) -> None:
        self._count()
        super().write(name, data)

    def delete(self, name: str) -> None:
        self._count()
        super().delete(name)


@pytest.mark.parametrize("calls", range(8))
def test_killed_at_any_call_leaves_a_good_newest(
    kit: ModuleType, tmp_path: Path, calls: int
) -> None:
    save(kit.make_store(tmp_path, keep=1), tmp_path, 10)
    store = CheckpointStore(
        Crashing(tmp_path / "checkpoints", calls=calls),
        scratch=tmp_path / "scratch",
        attempt=1,
        writer="1f2e3d4c",
        keep=1,
    )
    # upload, upload, manifest; then the old one goes: manifest, its two files
    done = True
    try:
        save(store, tmp_path, 20)
    except InterruptedError:
        done = False
    saved = kit.make_store(tmp_path, keep=1).latest()
    assert saved.manifest.step == (20 if calls >= 3 else 10)
    assert done == (calls >= 6)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"files": 3}', b'{"files": [], "schema_version": 99}']
)
def test_what_is_no_manifest_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        parse_manifest(data)


def test_names_sort_as_numbers() -> None:
    assert folder_name(7, attempt=2, writer="ABCDEF0123") == "step-000007-a02-abcdef01"
    assert order_of("step-1000000-a100-0") == (1_000_000, 100)
    assert folder_name(7, attempt=2, writer="abc", recoveries=1) == "step-000007-a02-abc-r1"
    assert order_of("step-000007-a02-abc-r1") == (7, 2)
    assert order_of("best.json") is None
