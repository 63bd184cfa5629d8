"""A place to prepare data in, again and again."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from anneal_pipeline.data.files import DatasetFiles
from anneal_pipeline.data.prepare import PreparedData, prepare_data
from anneal_pipeline.observer import Observer


class Bench:
    def __init__(self, kit: ModuleType, root: Path) -> None:
        self.kit, self.root = kit, root
        self.observer: Any = None

    def prepare(self, rows: list[Any], **options: Any) -> PreparedData:
        train = self.kit.write_rows(self.root / "support.jsonl", rows)
        return self.prepare_files(DatasetFiles(train=(train,)), **options)

    def prepare_files(
        self,
        files: DatasetFiles | None,
        *,
        observer: Observer | None = None,
        template: str | None = None,
        **sections: Any,
    ) -> PreparedData:
        self.observer = observer or self.kit.RecordingObserver()
        tokenizer = self.kit.make_tokenizer(template=template or self.kit.CHATML)
        return prepare_data(
            self.kit.make_config(**sections),
            files=files,
            folder=self.root / "data",
            tokenizer=tokenizer,
            stop_ids=frozenset([tokenizer.eos_token_id]),
            observer=self.observer,
        )

    def quarantine(self) -> list[dict[str, Any]]:
        lines = (self.root / "data" / "quarantine.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def bench(kit: ModuleType, tmp_path: Path) -> Bench:
    return Bench(kit, tmp_path)
