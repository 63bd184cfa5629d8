"""`anneal data inspect`: the data stage of a job alone, with neither weights nor training."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anneal_jobs.cli.job_file import JobFile
from anneal_jobs.errors import JobsError
from anneal_jobs.storage.dataset import fetch_dataset
from anneal_jobs.storage.model import fetch_tokenizer
from anneal_jobs.storage.s3 import S3Settings
from anneal_jobs.storage.source import SourceAccess
from anneal_pipeline.data.prepare import QUARANTINE_NAME, PreparedData, prepare_data
from anneal_pipeline.data.report import REPORT_NAME
from anneal_pipeline.data.statistics_page import HTML_NAME
from anneal_pipeline.data.tokens import generation_eos, stop_token_ids
from anneal_pipeline.model.loading import load_tokenizer
from anneal_pipeline.observer import EVENT_DIAGNOSIS, EVENT_WARNING, NullObserver


@dataclass
class _Listener(NullObserver):
    """Keeps the warnings and diagnoses of the data stage."""

    warnings: list[str] = field(default_factory=list)

    def on_event(self, name: str, message: str, fields: Mapping[str, Any]) -> None:
        if name in (EVENT_WARNING, EVENT_DIAGNOSIS):
            self.warnings.append(message)


def inspect_data(job: JobFile, *, output: str | None, s3_endpoint: str | None) -> Iterator[str]:
    """Prepare the job's data in a folder and say what was found, in lines for the terminal."""
    folder = Path(output or f"{job.name}-data").expanduser().resolve()
    if folder.exists() and not (folder / REPORT_NAME).is_file():
        raise JobsError(
            f"{folder} exists and is no data that was inspected before; it would be emptied. "
            "Name another folder with --output"
        )
    access = SourceAccess(
        s3=S3Settings(endpoint=s3_endpoint, region=os.environ.get("AWS_REGION", "us-east-1"))
    )
    listener = _Listener()
    with tempfile.TemporaryDirectory(prefix="anneal-inspect-") as scratch:
        data = _prepare(job, folder, access=access, scratch=Path(scratch), listener=listener)
    yield from _lines(data, folder)
    yield from (f"warning: {warning}" for warning in listener.warnings)


def _prepare(
    job: JobFile, folder: Path, *, access: SourceAccess, scratch: Path, listener: _Listener
) -> PreparedData:
    config = job.spec.pipeline()
    files = fetch_dataset(
        config.dataset, to=scratch / "dataset", access=access, on_bytes=lambda done, total: None
    )
    model = fetch_tokenizer(config.model, to=scratch / "model", access=access)
    tokenizer = load_tokenizer(model, new_tokens=config.tuning.new_tokens)
    return prepare_data(
        config,
        files=files,
        folder=folder,
        tokenizer=tokenizer,
        stop_ids=stop_token_ids(tokenizer, generation_eos(model)),
        observer=listener,
    )


def _lines(data: PreparedData, folder: Path) -> Iterator[str]:
    report = data.report
    yield f"layout {report.layout} of {'/'.join(report.formats)}, {report.amount_read()} read"
    for name, split in report.splits.items():
        if split.num_rows:
            yield (
                f"{name}: {split.num_rows} rows, {split.num_tokens} tokens "
                f"({split.num_response_tokens} trained), longest {split.longest}"
            )
    if report.packing is not None:
        yield f"packed: {report.packing}"
    for reason, count in report.dropped.items():
        yield f"dropped {count}: {reason}"
    yield f"page {folder / HTML_NAME}"
    if report.dropped:
        yield f"dropped rows {folder / QUARANTINE_NAME}"
