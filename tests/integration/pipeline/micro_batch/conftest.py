"""`start`: a run over `rows`; `longest`: tokens of its longest row; `tightened`: the heap."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from tests.integration.pipeline.micro_batch.rooms import (
    Listener,
    Start,
    config_of,
    planned,
    room_of_bytes,
)
from tests.unit.pipeline.kit import run, sums, write_rows

from anneal_pipeline import micro_batch


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", sums(24))


@pytest.fixture
def start(model_dir: Path, rows: Path) -> Start:
    return partial(run, model_dir=model_dir, rows=rows)


@pytest.fixture(autouse=True)
def tightened(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """How often the heap was held tight; really held so, it would slow the other tests down."""
    calls: list[bool] = []
    monkeypatch.setattr(micro_batch, "return_freed_blocks", lambda: calls.append(True))
    return calls


@pytest.fixture
def longest(tmp_path: Path, start: Start) -> int:
    """Tokens of the longest training row."""
    observer = Listener()
    plenty = room_of_bytes(1 << 40)
    start(tmp_path / "probe", config_of(maxSteps=1), observer=observer, room_of=plenty)
    return int(planned(observer)[0]["tokens"])
