"""The dataset's files on the local disk, and their digest."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from anneal_pipeline.checkpoint.manifest import ignore_chunk, sha256_of
from anneal_pipeline.data.formats import SAVED_MARK, SAVED_SPLITS_MARK
from anneal_pipeline.errors import DATASET_EMPTY, DATASET_NOT_FOUND, UserError

TRAIN = "train"
VALIDATION = "validation"
TEST = "test"
SPLITS = (TRAIN, VALIDATION, TEST)

_NAMES = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "valid", "val", "dev"),
    TEST: ("test", "testing", "eval", "evaluation"),
}
"""How files and folders of a split are named on the Hugging Face hub."""
_SPLIT_OF = {name: split for split, names in _NAMES.items() for name in names}
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True, kw_only=True)
class DatasetFiles:
    """Local copies of the dataset; `names` are what messages call them.

    A path is a data file, or a folder that `Dataset.save_to_disk` made. With `validation` or `test`
    given the split is the user's own and is kept; otherwise `train` is split as `dataset.split`
    says.
    """

    train: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()

    @property
    def is_split(self) -> bool:
        return bool(self.validation or self.test)

    def of(self, split: str) -> tuple[Path, ...]:
        return {TRAIN: self.train, VALIDATION: self.validation, TEST: self.test}[split]

    def names(self) -> dict[Path, str]:
        """What each file is called where rows are named: no two of them alike.

        Its own name, or with the folders below the one that all files share where names repeat.
        """
        paths = list(dict.fromkeys((*self.train, *self.validation, *self.test)))
        own = {path: path.name for path in paths}
        if len(set(own.values())) == len(paths):
            return own
        shared = os.path.commonpath([path.absolute().parent for path in paths])
        return {path: path.absolute().relative_to(shared).as_posix() for path in paths}

    def digest(self, *, on_chunk: Callable[[int], None] = ignore_chunk) -> str:
        """SHA-256 over the content of all files, in hex; file names do not enter it."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for path in self.of(split):
                for file in _files_of(path, split=split):
                    digest.update(f"{split} {sha256_of(file, on_chunk=on_chunk)}\n".encode())
        return digest.hexdigest()


def _files_of(path: Path, *, split: str) -> Iterator[Path]:
    if path.is_dir():
        # The hub's client keeps notes beside what it fetches, with the time in them.
        yield from sorted(
            file
            for file in path.rglob("*")
            if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
        )
    elif path.is_file():
        yield path
    else:
        raise UserError(
            DATASET_NOT_FOUND,
            f"Dataset file {path.name} of the {split} rows is not there; "
            "set dataset.uri or dataset.files to a file that exists",
        )


def split_of_name(name: str) -> str | None:
    """The split that a file's own name or one of its folders says, as in `test/a.parquet`."""
    for part in reversed(PurePosixPath(name).parts):
        for word in _WORD.findall(part.lower().partition(".")[0]):
            if word in _SPLIT_OF:
                return _SPLIT_OF[word]
    return None


def by_split(names: Iterable[str]) -> dict[str, list[str]] | None:
    """The files of a folder that comes already split; None when it does not.

    It does when some files are named after a held-out split and others after the training split; a
    file that names none is trained on.
    """
    sides: dict[str, list[str]] = {}
    for name in names:
        sides.setdefault(split_of_name(name) or TRAIN, []).append(name)
    return sides if TRAIN in sides and len(sides) > 1 else None


def arrange(found: Mapping[str, Path]) -> DatasetFiles:
    """The sides of a dataset from the files at one address: name within it to local path."""
    if SAVED_SPLITS_MARK in found:
        return _saved_splits(found[SAVED_SPLITS_MARK].parent)
    if SAVED_MARK in found:
        return DatasetFiles(train=(found[SAVED_MARK].parent,))
    sides = by_split(found) or {TRAIN: list(found)}
    return DatasetFiles(
        **{side: tuple(found[name] for name in sides.get(side, ())) for side in SPLITS}
    )


def _saved_splits(folder: Path) -> DatasetFiles:
    mark = json.loads((folder / SAVED_SPLITS_MARK).read_text(encoding="utf-8"))
    names: list[str] = mark["splits"]
    sides = by_split(names) or {TRAIN: names}
    return DatasetFiles(**{side: tuple(folder / n for n in sides.get(side, ())) for side in SPLITS})


def no_rows(where: str) -> UserError:
    """The dataset at an address is there, but holds nothing."""
    return UserError(
        DATASET_EMPTY,
        f"The dataset at {where} has no rows; give dataset.uri a file with rows in it.",
    )
