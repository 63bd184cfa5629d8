"""Datasets of every format, as one file or a folder of them, from S3 and from the hub."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from anneal_jobs.storage.dataset import fetch_dataset
from anneal_jobs.storage.s3 import S3Folder, S3Settings, connect
from anneal_jobs.storage.source import SourceAccess
from anneal_jobs.storage.uri import parse_uri
from anneal_pipeline.config.dataset import DatasetConfig
from anneal_pipeline.data.conversation import Conversation
from anneal_pipeline.data.files import DatasetFiles
from anneal_pipeline.data.source import Source
from anneal_pipeline.errors import StopRequestedError, UserError

from .conftest import BUCKET, S3Server
from .hub_server import COMMIT, Hub, serving

ROWS = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(6)]
HELD = [{"prompt": f"And {n}?", "completion": f"Still {n}."} for n in range(2)]


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def one_file(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def csv(folder: Path) -> None:
    pa.csv.write_csv(pa.Table.from_pylist(ROWS), folder / "rows.csv")


def parquet(folder: Path) -> None:
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")


def zstandard(folder: Path) -> None:
    with pa.CompressedOutputStream(str(folder / "rows.jsonl.zst"), "zstd") as file:
        file.write(lines(ROWS))


def split_folder(folder: Path) -> None:
    """As the hub has it, with a card beside the data."""
    (folder / "data").mkdir()
    for name, rows in (("train", ROWS), ("test", HELD)):
        path = folder / "data" / f"{name}-00000-of-00001.parquet"
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")


def same_names(folder: Path) -> None:
    for name, rows in (("a", ROWS[:3]), ("b", ROWS[3:])):
        (folder / name).mkdir()
        (folder / name / "part.jsonl.gz").write_bytes(gzip.compress(lines(rows)))


def saved(folder: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder))


def saved_splits(folder: Path) -> None:
    datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(HELD)}
    ).save_to_disk(str(folder))


FORMS = [
    pytest.param(one_file("rows.jsonl", lines(ROWS)), False, id="JSONL"),
    pytest.param(one_file("rows.jsonl.gz", gzip.compress(lines(ROWS))), False, id="JSONL, gzip"),
    pytest.param(zstandard, False, id="JSONL, zstd"),
    pytest.param(one_file("rows.json", json.dumps(ROWS).encode()), False, id="JSON"),
    pytest.param(csv, False, id="CSV"),
    pytest.param(parquet, False, id="Parquet"),
    pytest.param(split_folder, True, id="a folder of splits"),
    pytest.param(same_names, False, id="folders with files of one name"),
    pytest.param(saved, False, id="a saved dataset"),
    pytest.param(saved_splits, True, id="saved splits"),
]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


class Places:
    """Where a folder is put, to be fetched from."""

    def __init__(self, s3: S3Server, hub: Hub) -> None:
        self.hub = hub
        self.access = SourceAccess(s3=s3.settings, hub_endpoint=hub.endpoint)

    def publish(self, folder: Path, *, where: str) -> dict[str, Any]:
        """The `dataset` section that names it."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        if where == "hub":
            self.hub.repositories["datasets/org/rows"] = files
            return {"uri": "hf://org/rows", "revision": COMMIT}
        address = f"s3://{BUCKET}/datasets/{folder.parent.name}"
        place = S3Folder(connect(self.access.s3), parse_uri(address))
        for name, data in files.items():
            place.write(name, data)
        return {"uri": address}

    def fetch(self, section: dict[str, Any], to: Path) -> DatasetFiles:
        return fetch_dataset(
            DatasetConfig.parse(section), to=to, access=self.access, on_bytes=lambda *_: None
        )


@pytest.fixture
def places(s3: S3Server, hub: Hub) -> Places:
    return Places(s3, hub)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    made.mkdir()
    return made


def rows_of(files: DatasetFiles) -> dict[str, list[tuple[str, str]]]:
    """(prompt, completion) by side, as the pipeline reads them."""
    found: dict[str, list[tuple[str, str]]] = {}
    for side, row in Source(DatasetConfig(uri="x"), files).rows():
        assert isinstance(row, Conversation)
        prompt, completion = row.turns
        found.setdefault(side, []).append((prompt.content, completion.content))
    return found


def pairs(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(row["prompt"], row["completion"]) for row in rows]


@pytest.mark.parametrize("where", ["s3", "hub"])
@pytest.mark.parametrize(("write", "is_split"), FORMS)
def test_rows_come_whole_and_on_their_side(
    places: Places,
    folder: Path,
    tmp_path: Path,
    where: str,
    write: Callable[[Path], None],
    *,
    is_split: bool,
) -> None:
    write(folder)
    section = places.publish(folder, where=where)
    fetched = places.fetch(section, tmp_path / "fetched")
    local = places.fetch({"uri": str(folder)}, tmp_path / "unused")
    assert rows_of(fetched) == {"train": pairs(ROWS)} | ({"test": pairs(HELD)} if is_split else {})
    assert fetched.digest() == local.digest()


@pytest.mark.parametrize(
    ("path", "want"),
    [
        pytest.param("de", {"train": pairs(ROWS)}, id="folder"),
        pytest.param("en/held.jsonl", {"train": pairs(HELD)}, id="file"),
    ],
)
def test_a_part_of_a_repository_is_named_behind_it(
    places: Places, folder: Path, tmp_path: Path, path: str, want: dict[str, Any]
) -> None:
    for name, rows in (("de/rows.jsonl", ROWS), ("en/held.jsonl", HELD)):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(lines(rows))
    section = places.publish(folder, where="hub")
    configurations = [
        {"config_name": name, "data_files": f"{name}/*.jsonl"} for name in ("de", "en")
    ]
    places.hub.cards["datasets/org/rows"] = {"configs": configurations}
    with pytest.raises(UserError, match=r"2 configurations.*\(de, en\).*hf://org/rows/de"):
        places.fetch(section, tmp_path / "all")
    found = places.fetch({**section, "uri": f"hf://org/rows/{path}"}, tmp_path / "part")
    assert rows_of(found) == want
    with pytest.raises(UserError, match="no dataset at hf://org/rows/fr"):
        places.fetch({**section, "uri": "hf://org/rows/fr"}, tmp_path / "none")


def test_sides_on_the_hub_are_files_of_one_revision(
    places: Places, folder: Path, tmp_path: Path
) -> None:
    (folder / "rows.jsonl").write_bytes(lines(ROWS))
    (folder / "held.jsonl").write_bytes(lines(HELD))
    places.publish(folder, where="hub")
    files = {"train": "hf://org/rows/rows.jsonl", "validation": "hf://org/rows/held.jsonl"}
    found = places.fetch({"files": files, "revision": COMMIT}, tmp_path / "fetched")
    assert rows_of(found) == {"train": pairs(ROWS), "validation": pairs(HELD)}


@pytest.mark.usefixtures("ended_transfers_are_forgotten")
def test_a_stop_ends_the_fetching_of_a_dataset(hub: Hub, folder: Path, tmp_path: Path) -> None:
    hub.repositories["datasets/org/rows"] = {"rows.jsonl": lines(ROWS)}

    def stop(done: int, total: int) -> None:
        if done:
            raise StopRequestedError

    with pytest.raises(StopRequestedError):
        fetch_dataset(
            DatasetConfig(uri="hf://org/rows", revision=COMMIT),
            to=tmp_path / "fetched",
            access=SourceAccess(s3=S3Settings(), hub_endpoint=hub.endpoint),
            on_bytes=stop,
        )
