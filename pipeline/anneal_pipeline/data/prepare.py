"""The data stage: from files to prepared splits, quarantine and report.

Held-out files are read before the training file, so that a training row that repeats a held-out one
is left out as a leak. `report.json` is written last: where it is missing, the stage has not been
done.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from anneal_pipeline.checkpoint.manifest import sha256_of
from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.data.conversation import Conversation
from anneal_pipeline.data.files import SPLITS, TEST, TRAIN, VALIDATION, DatasetFiles, no_rows
from anneal_pipeline.data.jsonl import BadRow, SourceRow, preview_of, read_rows
from anneal_pipeline.data.layout import NUM_ROWS_LOOKED_AT, Layout, choose_layout, to_conversation
from anneal_pipeline.data.prepared import TOKENS_NAME, PreparedSplit, SplitBuilder, read_split
from anneal_pipeline.data.quarantine import Quarantine
from anneal_pipeline.data.report import REPORT_NAME, DataReport, describe_split, read_report
from anneal_pipeline.data.split import position_of, side_of
from anneal_pipeline.data.template import (
    TemplateChoice,
    TemplateRefusedRowError,
    settle_template,
)
from anneal_pipeline.data.tokens import Tokenisation, TokenRow
from anneal_pipeline.errors import (
    DATASET_EMPTY,
    DATASET_ROWS_INVALID,
    NO_TRAINABLE_ROWS,
    ROW_TOO_LONG,
    UserError,
)
from anneal_pipeline.observer import (
    EVENT_DATA_READY,
    EVENT_STAGE_REUSED,
    EVENT_WARNING,
    STAGE_DATA,
    Observer,
)

PREPARATION_VERSION = 1
"""Raised when the same inputs give other rows."""
FEW_ROWS = 500
"""Fewer training rows than this get a warning."""
QUARANTINE_NAME = "quarantine.jsonl"

DUPLICATE = "duplicate"
LEAK = "repeats-held-out-row"
TOO_LONG = "too-long"
TOO_SHORT = "too-short"
SHORT_RESPONSE = "short-response"
RESPONSE_CUT_OFF = "response-cut-off"
TEMPLATE_REFUSED = "template-refused"

_ROWS_PER_REPORT = 200


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    folder: Path
    report: DataReport
    splits: dict[str, PreparedSplit]

    @property
    def train(self) -> PreparedSplit:
        return self.splits[TRAIN]

    @property
    def held_out(self) -> str | None:
        """The split base and tuned are compared on: test if there is one, else validation."""
        return next((name for name in (TEST, VALIDATION) if len(self.splits[name])), None)


def prepare_data(
    config: PipelineConfig,
    *,
    files: DatasetFiles | None,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: frozenset[int],
    observer: Observer,
) -> PreparedData:
    """Prepare the dataset in `folder`, or take what an earlier attempt prepared there.

    `files` None means that the prepared data must be there already.
    """
    template = settle_template(tokenizer)
    report = read_report(folder / REPORT_NAME)
    source = files.digest() if files else None
    if report is not None and _is_current(report, config, source=source, template=template):
        message = f"Taking the {report.num_rows_read} rows prepared by an earlier attempt"
        observer.on_event(EVENT_STAGE_REUSED, message, {"stage": STAGE_DATA})
        return open_prepared(folder, report)
    if files is None:
        raise UserError(
            DATASET_EMPTY,
            f"{folder} holds no data prepared for this configuration, and no file was given",
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenisation = Tokenisation(tokenizer, stop_ids=stop_ids)
    with Quarantine(folder / QUARANTINE_NAME) as quarantine:
        run = _Preparation(config, files, tokenisation, quarantine, observer)
        run.read_all()
        run.require_enough()
    return _finish(run, folder=folder, template=template)


def open_prepared(folder: Path, report: DataReport) -> PreparedData:
    splits = {name: read_split(folder / name) for name in SPLITS}
    return PreparedData(folder=folder, report=report, splits=splits)


def _is_current(
    report: DataReport,
    config: PipelineConfig,
    *,
    source: str | None,
    template: TemplateChoice,
) -> bool:
    """True when the same inputs led to `report`; without source files, whatever it was made of."""
    digest = report.source_digest if source is None else source
    return report.inputs_hash == _inputs_hash(config, source=digest, template=template.sha256)


def _inputs_hash(config: PipelineConfig, *, source: str, template: str) -> str:
    inputs = {
        "version": PREPARATION_VERSION,
        "dataset": config.dataset.to_data(),
        "model": config.model.to_data(),
        "sequenceLength": config.training.sequence_length,
        "source": source,
        "template": template,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


@dataclass
class _Preparation:
    """The state of one pass over the files."""

    config: PipelineConfig
    files: DatasetFiles
    tokenisation: Tokenisation
    quarantine: Quarantine
    observer: Observer
    layout: Layout | None = None
    num_read: int = 0
    num_truncated: int = 0
    seen: dict[str, str] = field(default_factory=dict)
    """Content key of every row taken, with its split."""
    builders: dict[str, SplitBuilder] = field(
        default_factory=lambda: {name: SplitBuilder() for name in SPLITS}
    )

    def read_all(self) -> None:
        for split in (TEST, VALIDATION, TRAIN):
            for path in self.files.of(split):
                rows = read_rows(path)
                head = list(itertools.islice(rows, NUM_ROWS_LOOKED_AT))
                good = [row for row in head if isinstance(row, SourceRow)]
                if good:
                    self.known_layout(*good)
                self._take_all(itertools.chain(head, rows), file_split=split)
        self._report_progress()

    def _take_all(self, rows: Iterator[SourceRow | BadRow], *, file_split: str) -> None:
        for row in rows:
            self.num_read += 1
            if self.num_read % _ROWS_PER_REPORT == 0:
                self._report_progress()
            bad = self._take(row, file_split=file_split)
            if bad is not None:
                self.quarantine.add(bad)

    def _report_progress(self) -> None:
        self.observer.on_stage(STAGE_DATA, done=self.num_read, total=0, unit="rows")

    def _take(self, row: SourceRow | BadRow, *, file_split: str) -> BadRow | None:
        if isinstance(row, BadRow):
            return row
        conversation = to_conversation(row, self.known_layout(row))
        if isinstance(conversation, BadRow):
            return conversation
        key = conversation.content_key()
        split = file_split
        if not self.files.is_split:
            split = side_of(key, config=self.config.dataset.effective_split)
        elif split == TRAIN and not self.files.validation:
            split = self._side_beside_test(key)
        repeated = self._repeat_of(key, split=split)
        if repeated is not None:
            return _bad(conversation, repeated, "repeats an earlier row")
        tokens = self._tokens(conversation)
        if isinstance(tokens, BadRow):
            return tokens
        self.seen[key] = split
        self.builders[split].add(conversation, tokens)
        return None

    def known_layout(self, *rows: SourceRow) -> Layout:
        """The layout of the dataset; the first rows that can be read decide it."""
        if self.layout is None:
            self.layout = choose_layout(self.config.dataset, rows)
        return self.layout

    def _side_beside_test(self, key: str) -> str:
        """Rows of a train file that came with a test file but without a validation file."""
        share = self.config.dataset.effective_split.validation
        seed = self.config.dataset.effective_split.seed
        return VALIDATION if position_of(key, seed=seed) < share else TRAIN

    def _repeat_of(self, key: str, *, split: str) -> str | None:
        earlier = self.seen.get(key)
        if earlier is None:
            return None
        if earlier != split:
            return LEAK
        return None if self.config.dataset.filters.deduplicate == "off" else DUPLICATE

    def _tokens(self, conversation: Conversation) -> TokenRow | BadRow:
        filters = self.config.dataset.filters
        limit = min(
            filters.max_tokens or self.config.training.sequence_length,
            self.config.training.sequence_length,
        )
        try:
            row = self.tokenisation.row(conversation)
        except TemplateRefusedRowError as error:
            return _bad(conversation, TEMPLATE_REFUSED, str(error))
        num_tokens = len(row.ids)
        if num_tokens < filters.min_tokens:
            detail = f"has {num_tokens} tokens, fewer than minTokens {filters.min_tokens}"
            return _bad(conversation, TOO_SHORT, detail)
        if row.num_response_tokens < filters.min_response_tokens:
            detail = f"has only {row.num_response_tokens} response tokens"
            return _bad(conversation, SHORT_RESPONSE, detail)
        if num_tokens <= limit:
            return row
        detail = f"has {num_tokens} tokens, more than the {limit} allowed"
        return self._shorten(conversation, row, limit=limit, detail=detail)

    def _shorten(
        self, conversation: Conversation, row: TokenRow, *, limit: int, detail: str
    ) -> TokenRow | BadRow:
        place = conversation.place
        match self.config.dataset.filters.overlength:
            case "fail":
                raise UserError(
                    ROW_TOO_LONG,
                    f"Row {place.line} of {place.file} {detail}; raise training.sequenceLength, or "
                    "set dataset.filters.overlength to drop or truncate",
                )
            case "drop":
                return _bad(conversation, TOO_LONG, detail)
        cut = row.cut(limit)
        if cut.num_response_tokens < self.config.dataset.filters.min_response_tokens:
            return _bad(conversation, RESPONSE_CUT_OFF, f"{detail}, and its response is cut away")
        self.num_truncated += 1
        return cut

    def require_enough(self) -> None:
        """Fail with one sentence when the data as a whole cannot be trained on."""
        names = ", ".join(path.name for path in self.files.train)
        if self.num_read == 0:
            raise no_rows(self._address())
        dropped = self.quarantine.total
        limit = self.config.dataset.filters.max_drop_share
        if dropped and dropped > limit * self.num_read:
            raise UserError(DATASET_ROWS_INVALID, self._drop_message(limit=limit))
        if not len(self.builders[TRAIN]):
            raise UserError(
                NO_TRAINABLE_ROWS,
                f"None of the {self.num_read} rows of {names} is left to train on "
                f"({dropped} dropped); lower dataset.split.validation or give more rows",
            )

    def _address(self) -> str:
        """Where the training rows come from, as the job names it."""
        dataset = self.config.dataset
        return dataset.uri or (dataset.files.train if dataset.files else "")

    def _drop_message(self, *, limit: float) -> str:
        cause = self.quarantine.main_cause()
        count = self.quarantine.counts[cause.reason]
        advice = {
            TOO_LONG: "raise training.sequenceLength or set dataset.filters.overlength",
            DUPLICATE: "remove the repetitions or set dataset.filters.deduplicate to off",
        }.get(cause.reason, "set dataset.columns or fix the file")
        return (
            f"Row {cause.place.line} of {cause.place.file} {cause.detail}; {count} of "
            f"{self.num_read} rows are like it, and {self.quarantine.total} are dropped in all, "
            f"more than the share of {limit:g} that dataset.filters.maxDropShare allows; {advice}"
        )


def _bad(conversation: Conversation, reason: str, detail: str) -> BadRow:
    return BadRow(
        place=conversation.place,
        reason=reason,
        detail=detail,
        preview=preview_of(conversation.messages()),
    )


def _finish(run: _Preparation, *, folder: Path, template: TemplateChoice) -> PreparedData:
    layout = run.known_layout()
    splits = {name: builder.write(folder / name) for name, builder in run.builders.items()}
    source = run.files.digest()
    report = DataReport(
        inputs_hash=_inputs_hash(run.config, source=source, template=template.sha256),
        source_digest=source,
        digest=_digest(folder),
        layout=layout.kind,
        layout_fields=layout.fields(),
        template_origin=template.origin,
        template_sha256=template.sha256,
        num_rows_read=run.num_read,
        dropped=dict(sorted(run.quarantine.counts.items())),
        num_truncated=run.num_truncated,
        stop_token_ids=tuple(sorted(run.tokenisation.seen_stops)),
        splits={name: describe_split(split) for name, split in splits.items()},
        warnings=tuple(_warnings(run)),
    )
    for warning in report.warnings:
        run.observer.on_event(EVENT_WARNING, warning, {"stage": STAGE_DATA})
    report.write(folder / REPORT_NAME)
    run.observer.on_event(EVENT_DATA_READY, _summary(report), {"digest": report.digest})
    run.observer.on_output(folder)
    return PreparedData(folder=folder, report=report, splits=splits)


def _digest(folder: Path) -> str:
    hashes = [sha256_of(folder / name / TOKENS_NAME) for name in SPLITS]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _warnings(run: _Preparation) -> Iterator[str]:
    num_train = len(run.builders[TRAIN])
    if num_train < FEW_ROWS:
        yield (
            f"Only {num_train} rows to train on; below {FEW_ROWS} the model tends to learn the "
            "rows by heart: add rows or train fewer epochs"
        )
    if not len(run.builders[VALIDATION]) and not len(run.builders[TEST]):
        yield "No held-out rows: tuned and base cannot be compared; set dataset.split.validation"


def _summary(report: DataReport) -> str:
    sizes = ", ".join(f"{split.num_rows} {name}" for name, split in report.splits.items())
    dropped = ", ".join(f"{count} {reason}" for reason, count in report.dropped.items())
    read = f"Read {report.num_rows_read} rows as {report.layout}"
    return f"{read}: {sizes}; dropped: {dropped or 'none'}"
