"""The data stage: from files to prepared splits, quarantine and report.

The files are read twice: the first pass decides sides and repetitions (`survey`), the second writes
rows and tokens as they come, so that memory does not grow with the data. `report.json` is written
last: where it is missing, the stage has not been done.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from anneal_pipeline.config.pipeline import PipelineConfig
from anneal_pipeline.data.conversation import Conversation
from anneal_pipeline.data.files import SPLITS, TEST, TRAIN, VALIDATION, DatasetFiles
from anneal_pipeline.data.lengths import LengthFilter
from anneal_pipeline.data.near import NearIndex
from anneal_pipeline.data.outcome import finish, require_enough
from anneal_pipeline.data.prepared import PreparedSplit, SplitBuilder, read_split
from anneal_pipeline.data.quarantine import Quarantine
from anneal_pipeline.data.report import REPORT_NAME, DataReport, read_report
from anneal_pipeline.data.rows import BadRow
from anneal_pipeline.data.source import Source
from anneal_pipeline.data.split import shares_of
from anneal_pipeline.data.survey import Judgement, Survey, label_columns, open_side
from anneal_pipeline.data.template import TemplateChoice, settle_template
from anneal_pipeline.data.tokens import Tokenisation
from anneal_pipeline.data.work import Work
from anneal_pipeline.errors import RUN_CHANGED, StopRequestedError, UserError
from anneal_pipeline.observer import EVENT_STAGE_REUSED, STAGE_DATA, Observer
from anneal_pipeline.reading import Reading

PREPARATION_VERSION = 3
"""Raised when the same inputs give other rows."""
QUARANTINE_NAME = "quarantine.jsonl"

_SIGNATURES_NAME = "signatures.partial"


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

    `files` None means that the prepared data must be there already. Asked to stop, it leaves
    nothing behind and raises `StopRequestedError`.
    """
    template = settle_template(tokenizer)
    report = read_report(folder / REPORT_NAME)
    digest = report.source_digest if report else ""
    if files is not None:
        digest = files.digest(on_chunk=Reading(observer=observer, stage=STAGE_DATA))
    inputs = _inputs_hash(config, source=digest, template=template)
    if report is not None and report.inputs_hash == inputs:
        message = f"Taking the {report.num_rows_read} rows prepared by an earlier attempt"
        observer.on_event(EVENT_STAGE_REUSED, message, {"stage": STAGE_DATA})
        return open_prepared(folder, report)
    if files is None:
        raise UserError(
            RUN_CHANGED,
            f"The rows in {folder} that an earlier attempt prepared do not fit this one, which has "
            f"{_what_changed(report, template)}; start the job under another name",
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    preparation = _Preparation.of(
        config, files, Tokenisation(tokenizer, stop_ids=stop_ids), observer=observer
    )
    try:
        report = preparation.run(folder, inputs_hash=inputs, digest=digest, template=template)
    except StopRequestedError:
        shutil.rmtree(folder)
        raise
    return open_prepared(folder, report)


def open_prepared(folder: Path, report: DataReport) -> PreparedData:
    splits = {name: read_split(folder / name) for name in SPLITS}
    return PreparedData(folder=folder, report=report, splits=splits)


def _what_changed(report: DataReport | None, template: TemplateChoice) -> str:
    if report is None:
        return "a version of Anneal that cannot read their report"
    if report.template_sha256 != template.sha256:
        return "another chat template: the model's tokenizer files were changed in between"
    return "another configuration or version of Anneal"


def _inputs_hash(config: PipelineConfig, *, source: str, template: TemplateChoice) -> str:
    inputs: dict[str, object] = {
        "version": PREPARATION_VERSION,
        "dataset": config.dataset.to_data(),
        "model": config.model.to_data(),
        "sequenceLength": config.training.sequence_length,
        "source": source,
        "template": template.sha256,
    }
    # Only where they are set: what was prepared before there were these fields is as good.
    if config.tuning.new_tokens:
        inputs["newTokens"] = list(config.tuning.new_tokens)
    if config.training.packing:  # it changes the report only
        inputs["packing"] = True
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


@dataclass(kw_only=True)
class _Preparation:
    """The state of the two passes over the files."""

    config: PipelineConfig
    files: DatasetFiles
    source: Source
    lengths: LengthFilter
    observer: Observer
    work: Work
    num_read: int = 0
    num_conversations: int = 0

    @classmethod
    def of(
        cls,
        config: PipelineConfig,
        files: DatasetFiles,
        tokenisation: Tokenisation,
        *,
        observer: Observer,
    ) -> _Preparation:
        dataset = config.dataset
        return cls(
            config=config,
            files=files,
            source=Source(dataset, files, labels=label_columns(dataset.effective_split)),
            lengths=LengthFilter(
                filters=dataset.filters,
                sequence_length=config.training.sequence_length,
                tokenisation=tokenisation,
            ),
            observer=observer,
            work=Work(observer=observer),
        )

    def run(
        self, folder: Path, *, inputs_hash: str, digest: str, template: TemplateChoice
    ) -> DataReport:
        with ExitStack() as open_files:
            near = open_files.enter_context(
                NearIndex(folder / _SIGNATURES_NAME, on_work=self.work.compared)
            )
            judgement = self._survey(near)
            builders = {
                name: open_files.enter_context(SplitBuilder(folder / name)) for name in SPLITS
            }
            quarantine = open_files.enter_context(Quarantine(folder / QUARANTINE_NAME))
            self._write(judgement, builders=builders, quarantine=quarantine)
        training = self.config.training
        require_enough(
            self.source,
            num_read=self.num_read,
            quarantine=quarantine,
            num_train=len(builders[TRAIN]),
        )
        return finish(
            DataReport(
                inputs_hash=inputs_hash,
                source_digest=digest,
                formats=tuple(self.source.formats),
                layout=self.source.layout.kind if self.source.layout else "",
                layout_fields=self.source.layout.fields() if self.source.layout else {},
                template_origin=template.origin,
                template_sha256=template.sha256,
                num_rows_read=self.num_read,
                num_conversations_read=self.num_conversations,
                dropped=dict(sorted(quarantine.counts.items())),
                num_truncated=self.lengths.num_truncated,
                num_near_duplicates=judgement.num_near,
                num_near_leaks=judgement.num_near_leaks,
                stop_token_ids=tuple(sorted(self.lengths.tokenisation.seen_stops)),
            ),
            source=self.source,
            builders=builders,
            quarantine=quarantine,
            pack_to=training.sequence_length if training.packing else None,
            tokenizer=self.lengths.tokenisation.tokenizer,
            folder=folder,
            observer=self.observer,
        )

    def _survey(self, near: NearIndex) -> Judgement:
        files, dataset = self.files, self.config.dataset
        split = shares_of(dataset.effective_split, has_test=bool(files.test))
        survey = Survey(dataset, split, near)
        num_read = 0
        for file_split, row in self.source.rows():
            num_read += row.num_rows
            self.work.read(num_read, num_new=row.num_rows)
            if isinstance(row, Conversation):
                side = open_side(
                    file_split, is_split=files.is_split, has_validation=bool(files.validation)
                )
                survey.add(row, side=side)
        survey.require_labels()
        return survey.judge()

    def _write(
        self,
        judgement: Judgement,
        *,
        builders: dict[str, SplitBuilder],
        quarantine: Quarantine,
    ) -> None:
        number = 0
        for _, row in self.source.rows():
            self.num_read += row.num_rows
            self.num_conversations += 1
            self.work.read(self.num_read, num_new=row.num_rows)
            if isinstance(row, BadRow):
                quarantine.add(row)
                continue
            bad = self._take(row, judgement, number=number, builders=builders)
            number += 1
            if bad is not None:
                quarantine.add(bad)
        self.work.end_pass(self.num_read)

    def _take(
        self,
        row: Conversation,
        judgement: Judgement,
        *,
        number: int,
        builders: dict[str, SplitBuilder],
    ) -> BadRow | None:
        verdict = judgement.of(number)
        if verdict.dropped is not None:
            return row.left_out(verdict.dropped, verdict.detail)
        tokens = self.lengths.tokens(row)
        if isinstance(tokens, BadRow):
            return tokens
        builders[verdict.side].add(row, tokens)
        return None
