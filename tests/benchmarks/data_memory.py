"""How much memory and time preparing a dataset takes, by the size of its file.

    .venv/bin/python tests/benchmarks/data_memory.py --megabytes 1024 --format jsonl
    .venv/bin/python tests/benchmarks/data_memory.py --megabytes 1024 --subject datasets

writes a file of that size with rows as chat datasets have them, prepares it in a process of its own
with the tokenizer of the unit tests, and prints one JSON object: peak memory over that of a process
that has only imported the libraries, seconds, rows. `anonymousMiB` is what the process allocated;
`residentMiB` also counts pages of its files, which the kernel takes back when others need them.

The subjects: `anneal` is our whole data stage (layout, duplicates, near-duplicates, split,
template, tokens, statistics), `datasets` is load_dataset and map with the same tokenizer, `pandas`
is read_json alone.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
FORMATS = ("jsonl", "json", "csv", "parquet")
MIB = 1 << 20
WORDS = [f"word{n}" for n in range(5000)]


def rows(num_bytes: int) -> Iterator[dict[str, Any]]:
    """Rows of about a kilobyte, until they add up to `num_bytes` as JSON."""
    random.seed(1)
    written = number = 0
    while written < num_bytes:
        number += 1
        row = {
            "instruction": f"Question {number}: {' '.join(random.choices(WORDS, k=30))}?",
            "output": " ".join(random.choices(WORDS, k=random.randint(60, 140))),
        }
        written += len(json.dumps(row)) + 1
        yield row


def write_file(path: Path, *, num_bytes: int) -> None:
    kind = path.suffix[1:]
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as parquet

        writer = None
        batch: list[dict[str, Any]] = []
        for row in rows(num_bytes):
            batch.append(row)
            if len(batch) == 10_000:
                table = pa.Table.from_pylist(batch)
                writer = writer or parquet.ParquetWriter(path, table.schema)
                writer.write_table(table)
                batch = []
        if batch:
            table = pa.Table.from_pylist(batch)
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
        if writer:
            writer.close()
        return
    with path.open("w", encoding="utf-8") as file:
        if kind == "csv":
            file.write("instruction,output\n")
        for number, row in enumerate(rows(num_bytes)):
            if kind == "csv":
                file.write(f'"{row["instruction"]}","{row["output"]}"\n')
            elif kind == "json":
                file.write(("[" if number == 0 else ",\n") + json.dumps(row))
            else:
                file.write(json.dumps(row) + "\n")
        if kind == "json":
            file.write("]")


def memory() -> tuple[int, int]:
    """(anonymous, resident) bytes of this process."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS"))  # type: ignore[return-value]


class Watch:
    """The highest memory seen, looked at a hundred times a second."""

    def __init__(self) -> None:
        self.peak = self.base = memory()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._done.wait(0.01):
            self.peak = tuple(map(max, self.peak, memory()))  # type: ignore[assignment]

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def over_base(self) -> tuple[float, float]:
        """(anonymous, resident) MiB over those at the beginning."""
        return tuple(round((p - b) / MIB, 1) for p, b in zip(self.peak, self.base, strict=True))  # type: ignore[return-value]


def tokenizer() -> Any:
    """That of the unit tests, with a vocabulary as large as the words of the rows."""
    sys.path.insert(0, str(REPOSITORY))
    from tests.unit.pipeline import kit

    kit.VOCABULARY, kit.CORPUS = 6000, [" ".join(WORDS)] * 2
    return kit.make_tokenizer()


def anneal(path: Path) -> Callable[[], int]:
    fast = tokenizer()
    from tests.unit.pipeline import kit

    from anneal_pipeline.data.files import DatasetFiles
    from anneal_pipeline.data.prepare import prepare_data

    def run() -> int:
        data = prepare_data(
            kit.make_config(training={"sequenceLength": 4096}),
            files=DatasetFiles(train=(path,)),
            folder=path.parent / "data",
            tokenizer=fast,
            stop_ids=frozenset([fast.eos_token_id]),
            observer=kit.RecordingObserver(),
        )
        return data.report.num_rows_read

    return run


def datasets(path: Path) -> Callable[[], int]:
    fast = tokenizer()
    from datasets import load_dataset

    def tokens(rows: dict[str, list[str]]) -> dict[str, Any]:
        texts = [f"{a}\n{b}" for a, b in zip(rows["instruction"], rows["output"], strict=True)]
        return {"input_ids": fast(texts)["input_ids"]}

    def run() -> int:
        kind = "json" if path.suffix == ".jsonl" else path.suffix[1:]
        loaded = load_dataset(
            kind, data_files=str(path), split="train", cache_dir=str(path.parent / "cache")
        )
        return len(loaded.map(tokens, batched=True, remove_columns=loaded.column_names))

    return run


def pandas(path: Path) -> Callable[[], int]:
    from pandas import read_json

    return lambda: len(read_json(path, lines=path.suffix == ".jsonl"))


SUBJECTS = {"anneal": anneal, "datasets": datasets, "pandas": pandas}


def measure(subject: str, path: Path) -> dict[str, Any]:
    run = SUBJECTS[subject](path)
    began = time.monotonic()
    with Watch() as watch:
        num_rows = run()
    anonymous, resident = watch.over_base()
    return {
        "subject": subject,
        "format": path.suffix[1:],
        "fileMiB": round(path.stat().st_size / MIB, 1),
        "rows": num_rows,
        "seconds": round(time.monotonic() - began, 1),
        "anonymousMiB": anonymous,
        "residentMiB": resident,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--format", choices=FORMATS, default="jsonl")
    parser.add_argument("--subject", choices=sorted(SUBJECTS), default="anneal")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.subject, options.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.{options.format}"
        write_file(path, num_bytes=options.megabytes * MIB)
        command = [sys.executable, __file__, "--subject", options.subject, "--measure", str(path)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
