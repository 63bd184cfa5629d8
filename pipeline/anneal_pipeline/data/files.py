"""The dataset's files on the local disk, and their digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from anneal_pipeline.checkpoint.manifest import sha256_of
from anneal_pipeline.errors import DATASET_EMPTY, DATASET_NOT_FOUND, UserError

TRAIN = "train"
VALIDATION = "validation"
TEST = "test"
SPLITS = (TRAIN, VALIDATION, TEST)


@dataclass(frozen=True, kw_only=True)
class DatasetFiles:
    """Local copies of the dataset; their names appear in messages.

    With `validation` or `test` given the split is the user's own and is kept; otherwise `train` is
    split as `dataset.split` says.
    """

    train: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()

    @property
    def is_split(self) -> bool:
        return bool(self.validation or self.test)

    def of(self, split: str) -> tuple[Path, ...]:
        return {TRAIN: self.train, VALIDATION: self.validation, TEST: self.test}[split]

    def digest(self) -> str:
        """SHA-256 over the content of all files, in hex; file names do not enter it."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for path in self.of(split):
                if not path.is_file():
                    raise UserError(
                        DATASET_NOT_FOUND,
                        f"Dataset file {path.name} of the {split} rows is not there; "
                        "set dataset.uri or dataset.files to a file that exists",
                    )
                digest.update(f"{split} {sha256_of(path)}\n".encode())
        return digest.hexdigest()


def no_rows(where: str) -> UserError:
    """The dataset at an address is there, but holds nothing."""
    return UserError(
        DATASET_EMPTY,
        f"The dataset at {where} has no rows; give dataset.uri a file with rows in it.",
    )
