"""A dataset that comes already split is recognised by its files and kept as it is."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from anneal_pipeline.data.files import DatasetFiles, arrange
from anneal_pipeline.data.formats import is_data, is_saved


def names_by_side(*names: str) -> dict[str, list[str]]:
    found = arrange({name: Path("/data") / name for name in names})
    return {
        side: [path.relative_to("/data").as_posix() for path in found.of(side)]
        for side in ("train", "validation", "test")
        if found.of(side)
    }


@pytest.mark.parametrize(
    ("names", "want"),
    [
        pytest.param(["rows.jsonl"], {"train": ["rows.jsonl"]}, id="one file"),
        pytest.param(["train.jsonl"], {"train": ["train.jsonl"]}, id="a file to train on alone"),
        pytest.param(["test.jsonl"], {"train": ["test.jsonl"]}, id="nothing else to train on"),
        pytest.param(
            ["a.csv", "latest.csv"], {"train": ["a.csv", "latest.csv"]}, id="unrelated names"
        ),
        pytest.param(
            ["dev.jsonl", "test.jsonl", "train.jsonl"],
            {"train": ["train.jsonl"], "validation": ["dev.jsonl"], "test": ["test.jsonl"]},
            id="names of files",
        ),
        pytest.param(
            ["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"],
            {
                "train": ["data/train-00000-of-00001.parquet"],
                "test": ["data/test-00000-of-00001.parquet"],
            },
            id="as the hub names them",
        ),
        pytest.param(
            ["train/a.json", "train/b.json", "valid/a.json"],
            {"train": ["train/a.json", "train/b.json"], "validation": ["valid/a.json"]},
            id="names of folders",
        ),
    ],
)
def test_sides_come_from_names(names: list[str], want: dict[str, list[str]]) -> None:
    assert names_by_side(*names) == want


@pytest.mark.parametrize(
    ("paths", "want"),
    [
        pytest.param(["/d/all/rows.jsonl"], ["rows.jsonl"], id="one file"),
        pytest.param(["/d/a/x.jsonl", "/d/b/y.jsonl"], ["x.jsonl", "y.jsonl"], id="own names"),
        pytest.param(
            ["/d/all/a/part.jsonl", "/d/all/b/part.jsonl", "/d/all/c.jsonl"],
            ["a/part.jsonl", "b/part.jsonl", "c.jsonl"],
            id="names that repeat",
        ),
        pytest.param(
            ["/d/part.jsonl", "/d/a/part.jsonl"],
            ["part.jsonl", "a/part.jsonl"],
            id="one above the other",
        ),
    ],
)
def test_no_two_files_are_called_alike(paths: list[str], want: list[str]) -> None:
    first, *others = map(Path, paths)
    files = DatasetFiles(train=tuple(others), validation=(first,))
    assert {str(path): name for path, name in files.names().items()} == dict(
        zip(paths, want, strict=True)
    )


def test_saved_datasets_are_folders(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"text": "a"}])
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "two"))

    def sides(root: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
        found = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
        assert is_saved(list(found))
        files = arrange(found)
        return files.train, files.test

    assert sides(tmp_path / "one") == ((tmp_path / "one",), ())
    assert sides(tmp_path / "two") == ((tmp_path / "two/train",), (tmp_path / "two/test",))


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("a.jsonl", True),
        ("x/A.CSV.gz", True),
        ("a.parquet", True),
        ("README.md", False),
        ("dataset_info.json", False),
        ("a.parquet.gz", False),
    ],
)
def test_which_files_of_a_folder_are_data(name: str, want: bool) -> None:
    assert is_data(name) is want
