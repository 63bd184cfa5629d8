"""How preparing ends: with a report, or with the one sentence that says why not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from anneal_pipeline.checkpoint.manifest import sha256_of
from anneal_pipeline.data.files import SPLITS, TEST, TRAIN, VALIDATION, no_rows
from anneal_pipeline.data.length_diagnoses import of_lengths, of_template
from anneal_pipeline.data.lengths import TOO_LONG
from anneal_pipeline.data.packing import describe_packing
from anneal_pipeline.data.prepared import TOKENS_NAME, SplitBuilder
from anneal_pipeline.data.quarantine import Quarantine
from anneal_pipeline.data.report import REPORT_NAME, DataReport, describe_split
from anneal_pipeline.data.rows import INVALID_ENCODING
from anneal_pipeline.data.source import Source
from anneal_pipeline.data.statistics import statistics_of
from anneal_pipeline.data.statistics_page import write_pages
from anneal_pipeline.data.survey import DUPLICATE, NEAR_DUPLICATE
from anneal_pipeline.errors import DATASET_ROWS_INVALID, NO_TRAINABLE_ROWS, UserError
from anneal_pipeline.observer import EVENT_DATA_READY, EVENT_WARNING, STAGE_DATA, Observer

FEW_ROWS = 500
"""Fewer training rows than this get a warning."""

_ADVICE = {
    INVALID_ENCODING: "name the encoding of the file in dataset.encoding",
    TOO_LONG: "raise training.sequenceLength or set dataset.filters.overlength",
    DUPLICATE: "remove the repetitions or set dataset.filters.deduplicate to off",
    NEAR_DUPLICATE: "remove the repetitions or set dataset.filters.deduplicate to exact",
}


def require_enough(
    source: Source, *, num_read: int, quarantine: Quarantine, num_train: int
) -> None:
    """Fail with one sentence when the data as a whole cannot be trained on."""
    if num_read == 0:
        raise no_rows(source.address())
    dropped = quarantine.total
    limit = source.config.filters.max_drop_share
    if dropped and dropped > limit * num_read:
        raise UserError(
            DATASET_ROWS_INVALID, _drop_message(quarantine, num_read=num_read, limit=limit)
        )
    if num_train == 0:
        names = ", ".join(path.name for path in source.files.train)
        raise UserError(
            NO_TRAINABLE_ROWS,
            f"None of the {num_read} rows of {names} is left to train on "
            f"({dropped} dropped); lower dataset.split.validation or give more rows",
        )


def _drop_message(quarantine: Quarantine, *, num_read: int, limit: float) -> str:
    cause = quarantine.main_cause()
    count = quarantine.counts[cause.reason]
    advice = _ADVICE.get(cause.reason, "set dataset.columns or fix the file")
    return (
        f"Row {cause.place.line} of {cause.place.file} {cause.detail}; {count} of "
        f"{num_read} rows are like it, and {quarantine.total} are dropped in all, "
        f"more than the share of {limit:g} that dataset.filters.maxDropShare allows; {advice}"
    )


def finish(
    report: DataReport,
    *,
    source: Source,
    builders: dict[str, SplitBuilder],
    quarantine: Quarantine,
    pack_to: int | None,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    observer: Observer,
) -> DataReport:
    """Close the splits, complete the report by what they hold, and tell of it.

    `pack_to` is the length of the sequences that training rows are packed into, if they are.
    """
    splits = {name: builder.finish() for name, builder in builders.items()}
    report = replace(
        report,
        digest=_digest(folder),
        splits={name: describe_split(split) for name, split in splits.items()},
        packing=describe_packing(splits[TRAIN].lengths(), limit=pack_to) if pack_to else None,
    )
    warnings = tuple(_warnings(report, source))
    for warning in warnings:
        observer.on_event(EVENT_WARNING, warning, {"stage": STAGE_DATA})
    overlength, train = source.config.filters.overlength, splits[TRAIN]
    diagnoses = (
        *of_lengths(train, is_packed=pack_to is not None, overlength=overlength),
        *of_template(train, folder / TRAIN, tokenizer=tokenizer),
    )
    for diagnosis in diagnoses:
        diagnosis.tell(observer)
    report = replace(report, warnings=(*warnings, *(str(diagnosis) for diagnosis in diagnoses)))
    statistics = statistics_of(
        report, splits, quarantine, source=source.address(), tokenizer=tokenizer
    )
    write_pages(folder, statistics)
    report.write(folder / REPORT_NAME)
    observer.on_event(EVENT_DATA_READY, _summary(report), {"digest": report.digest})
    observer.on_output(folder)
    return report


def _digest(folder: Path) -> str:
    hashes = [sha256_of(folder / name / TOKENS_NAME) for name in SPLITS]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _warnings(report: DataReport, source: Source) -> Iterator[str]:
    if source.files.validation and source.config.split is not None:
        yield (
            f"The dataset at {source.address()} comes already split, and is kept so: "
            "dataset.split has no effect on it; remove it"
        )
    num_train = report.splits[TRAIN].num_rows
    if num_train < FEW_ROWS:
        yield (
            f"Only {num_train} rows to train on; below {FEW_ROWS} the model tends to learn the "
            "rows by heart: add rows or train fewer epochs"
        )
    if not report.splits[VALIDATION].num_rows and not report.splits[TEST].num_rows:
        yield "No held-out rows: tuned and base cannot be compared; set dataset.split.validation"
    if report.num_near_leaks:
        yield (
            f"{report.num_near_leaks} rows to train on resemble held-out rows of the split you "
            "gave, so the comparison flatters the tuned model; remove them, or set "
            "dataset.filters.deduplicate to near"
        )


def _summary(report: DataReport) -> str:
    sizes = ", ".join(f"{split.num_rows} {name}" for name, split in report.splits.items())
    dropped = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
    read = f"Read {report.amount_read()} of {'/'.join(report.formats)} as {report.layout}"
    return f"{read}: {sizes}; dropped: {dropped or 'none'}"
