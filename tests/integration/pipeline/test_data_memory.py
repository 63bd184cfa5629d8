"""What the data stage holds at a time does not depend on the size of the file.

Counted by the allocators (Python's and Arrow's) and not by the kernel, so that neither the machine
nor what ran before changes the figures.
"""

from __future__ import annotations

import gc
import gzip
import json
import shutil
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from anneal_pipeline.data.files import DatasetFiles
from anneal_pipeline.data.prepare import prepare_data
from anneal_pipeline.data.prepared import PreparedSplit
from anneal_pipeline.data.readers import csv_table
from anneal_pipeline.data.readers.choice import read_rows
from anneal_pipeline.data.statistics import trained_tokens
from anneal_pipeline.observer import NullObserver

MIB = 1 << 20
ROW_BYTES = 2048
SMALL, LARGE = 6 * MIB, 18 * MIB
BYTES_PER_ROW = 256
"""More than the first pass keeps of a row: nine numbers, and what deciding takes for a moment."""


def rows(num_bytes: int) -> Iterator[dict[str, str]]:
    for number in range(num_bytes // ROW_BYTES):
        answer = " ".join(str(number * 7 + k) for k in range(ROW_BYTES // 8))
        yield {"instruction": f"Question {number}?", "output": answer[: ROW_BYTES - 64]}


def lines(num_bytes: int) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows(num_bytes))


def write_array(path: Path, num_bytes: int) -> None:
    path.write_bytes(b"[" + lines(num_bytes).strip().replace(b"\n", b",\n") + b"]")


def write_csv(path: Path, num_bytes: int) -> None:
    cells = [f'"{row["instruction"]}","{row["output"]}"' for row in rows(num_bytes)]
    path.write_text("\n".join(["instruction,output", *cells]))


def write_one_row_group(path: Path, num_bytes: int) -> None:
    table = pa.Table.from_pylist(list(rows(num_bytes)))
    parquet.write_table(table, path, row_group_size=1 << 20, compression="none")


def write_saved(path: Path, num_bytes: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    datasets.Dataset.from_list(list(rows(num_bytes))).save_to_disk(str(path))


FORMATS: dict[str, Callable[[Path, int], Any]] = {
    "rows.jsonl": lambda path, size: path.write_bytes(lines(size)),
    "rows.jsonl.gz": lambda path, size: path.write_bytes(gzip.compress(lines(size), 1)),
    "rows.jsonl.zst": lambda path, size: path.write_bytes(
        pa.Codec("zstd").compress(lines(size), asbytes=True)
    ),
    "rows.json": write_array,
    "rows.csv": write_csv,
    "rows.parquet": write_one_row_group,
    "saved": write_saved,
}


def peak_of(items: Iterable[object]) -> int:
    """The most bytes that Python and Arrow held while these were gone through."""
    gc.collect()
    arrow = base = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        for number, _ in enumerate(items):
            if number % 50 == 0:
                arrow = max(arrow, pa.total_allocated_bytes())
        return tracemalloc.get_traced_memory()[1] + arrow - base
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", FORMATS)
def test_reading_holds_no_more_of_a_larger_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # Arrow holds up to 32 blocks of a CSV file. With the real ones of 4 MiB that is 128 MiB, which
    # only files of several times that size would show, in minutes; that it is bounded by blocks
    # shows with small ones too. tests/benchmarks/data_memory.py measures 1 GB with the real ones.
    monkeypatch.setattr(csv_table, "_BLOCK_BYTES", 1 << 17)
    peaks = []
    for size in (SMALL, LARGE):
        FORMATS[name](tmp_path / name, size)
        peaks.append(peak_of(read_rows(tmp_path / name)))
    assert peaks[1] < peaks[0] + 3 * MIB
    assert peaks[1] < 12 * MIB


def test_preparing_keeps_a_few_numbers_of_a_row(kit: ModuleType, tmp_path: Path) -> None:
    tokenizer = kit.make_tokenizer()
    peaks = []
    for count in (300, 1200):
        train = kit.write_rows(tmp_path / "rows.jsonl", kit.sums(count))
        gc.collect()
        tracemalloc.start()
        prepare_data(
            kit.make_config(),
            files=DatasetFiles(train=(train,)),
            folder=tmp_path / "data",
            tokenizer=tokenizer,
            stop_ids=frozenset([tokenizer.eos_token_id]),
            observer=NullObserver(),
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 900 < BYTES_PER_ROW


def test_counting_trained_tokens_holds_no_copy_of_them() -> None:
    num_rows, length = 20_000, 400
    split = PreparedSplit(
        ids=torch.empty(0, dtype=torch.int32),
        is_response=torch.arange(num_rows * length, dtype=torch.int64).remainder(2).byte(),
        offsets=torch.arange(num_rows + 1) * length,
    )
    tracemalloc.start()
    counts = trained_tokens(split)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts.tolist() == [length // 2] * num_rows
    assert peak < num_rows * length
