"""An image's tag follows what goes into it, down to the image it stands on."""

import shutil
from pathlib import Path

import image_names
import pytest
from image_names import FULL, SMALL, image
from images import record_references
from places import Places


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of images/ that a test may change."""
    copy = tmp_path / "images"
    shutil.copytree(image_names.IMAGES, copy)
    monkeypatch.setattr(image_names, "IMAGES", copy)
    return copy


def references() -> dict[str, str]:
    return {name: image(name).reference for name in (*SMALL, *FULL)}


def changed(before: dict[str, str]) -> set[str]:
    return {name for name, reference in references().items() if reference != before[name]}


def test_the_same_inputs_give_the_same_tags(folder: Path) -> None:
    assert references() == references()
    assert len(set(references().values())) == len(SMALL) + len(FULL)


def test_a_changed_image_gets_another_tag_alone(folder: Path) -> None:
    before = references()
    with (folder / "thin" / "Containerfile").open("a") as file:
        file.write("LABEL a=b\n")
    assert changed(before) == {"thin"}


def test_a_changed_base_changes_all_that_stand_on_it(folder: Path) -> None:
    before = references()
    (folder / "base" / "bin" / "anneal").chmod(0o700)
    assert changed(before) == set(before) - {"pause"}


def test_references_are_added_to_those_known(tmp_path: Path) -> None:
    places = Places(cache=tmp_path, state=tmp_path / "state")
    record_references({"thin": "a:1", "s3": "b:1"}, places=places)
    record_references({"thin": "a:2"}, places=places)
    text = places.image_references.read_text()
    assert text == '{\n  "s3": "b:1",\n  "thin": "a:2"\n}\n'


@pytest.mark.parametrize("name", [*SMALL, *FULL])
def test_every_image_ends_as_the_unprivileged_user_without_pip(name: str) -> None:
    lines = (image_names.IMAGES / name / "Containerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    assert "pip" not in text
    assert ("USER 65532:65532" in text) == (name in ("base", "pause"))
    assert "USER root" not in text


def test_no_image_sends_usage_data_to_makers_of_libraries() -> None:
    text = (image_names.IMAGES / "base" / "Containerfile").read_text()
    for wanted in (
        "DO_NOT_TRACK=true",
        "HF_HUB_DISABLE_TELEMETRY=1",
        "MLFLOW_DISABLE_TELEMETRY=true",
        "RAY_USAGE_STATS_ENABLED=0",
    ):
        assert f" {wanted}" in text
