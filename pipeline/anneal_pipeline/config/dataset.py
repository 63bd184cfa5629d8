"""Which rows are trained on, how they are read, cleaned and split."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from anneal_pipeline.config.schema import CelRule, Schema
from anneal_pipeline.config.values import ColumnName, Revision, Seed, Share, Uri

SPLIT_SUM_TOLERANCE = 1e-6
"""The three shares of a split must add up to 1 within this."""


class DatasetFiles(Schema):
    """A dataset that is already split; the split is kept as it is."""

    train: Uri
    """Rows to train on."""

    validation: Uri | None = None
    """Rows to evaluate on during training. Default: a share of the training rows, as in split."""

    test: Uri | None = None
    """Rows held out to the end."""


class DatasetColumns(Schema):
    """Names of the columns that hold what the layout needs, where they differ from its own."""

    messages: ColumnName | None = None
    """List of {role, content} turns."""
    prompt: ColumnName | None = None
    """The prompt of a prompt-completion row."""
    completion: ColumnName | None = None
    """The completion of a prompt-completion row."""
    instruction: ColumnName | None = None
    """The instruction of an Alpaca row."""
    input: ColumnName | None = None
    """The optional context of an Alpaca row."""
    response: ColumnName | None = None
    """The answer of an Alpaca row."""
    system: ColumnName | None = None
    """The system message."""
    text: ColumnName | None = None
    """The text of a plain-text row."""
    tools: ColumnName | None = None
    """The tool definitions of a function-calling row."""
    conversation_id: ColumnName | None = None
    """Rows that follow each other with the same value here are joined, in order, into one
    conversation. Not for layout text."""


class SplitConfig(Schema):
    """How rows are divided. By content hash: added rows move none but large near-duplicate sets."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="self.train + self.validation + self.test > 0.999999"
            " && self.train + self.validation + self.test < 1.000001",
            message="train, validation and test must add up to 1; change one of them",
        ),
        CelRule(
            rule="self.train > 0.0",
            message="train must be greater than 0; leave it a share of the rows",
        ),
    )

    train: Share = 0.9
    """Share of rows trained on."""
    validation: Share = 0.1
    """Share of rows evaluated on during training."""
    test: Share = 0.0
    """Share of rows held out to the end."""
    seed: Seed = 42
    """Changes which rows fall on which side."""
    stratify_by: ColumnName | None = None
    """Column whose values keep their proportions on every side."""
    group_by: ColumnName | None = None
    """Column whose equal values stay on one side."""

    @model_validator(mode="after")
    def _shares_add_up(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1.0) > SPLIT_SUM_TOLERANCE:
            raise ValueError(
                "train, validation and test must add up to 1, "
                f"got {self.train} + {self.validation} + {self.test} = {total:g}; change one of "
                "them"
            )
        if self.train == 0.0:
            raise ValueError("train must be greater than 0, got 0; leave it a share of the rows")
        return self


class FiltersConfig(Schema):
    """Which rows are dropped before training. Every dropped row is listed in quarantine.jsonl."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="!has(self.maxTokens) || self.maxTokens >= self.minTokens",
            message="maxTokens must not be less than minTokens; raise it or lower minTokens",
        ),
    )

    min_tokens: int = Field(default=1, ge=1, le=1_000_000)
    """Rows with fewer tokens (prompt and response) are dropped."""
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    """Rows with more tokens are over-long. Default: training.sequenceLength."""
    overlength: Literal["drop", "truncate", "fail"] = "drop"
    """What happens to an over-long row. truncate cuts the end; a cut row gains no end-of-turn."""
    deduplicate: Literal["exact", "near", "off"] = "exact"
    """Whether repeated rows are dropped: exact compares the normalised content, near also finds
    rows that differ in a few words."""
    min_response_tokens: int = Field(default=1, ge=1, le=1_000_000)
    """Rows whose response has fewer tokens are dropped."""
    max_drop_share: Share = 0.5
    """The job fails as a mistake in the data when more than this share of rows is dropped."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(
                f"maxTokens ({self.max_tokens}) must not be less than minTokens "
                f"({self.min_tokens}); raise it or lower minTokens"
            )
        return self


_ON_THE_HUB = (
    "(has(self.uri) && self.uri.startsWith('hf://')) || (has(self.files)"
    " && (self.files.train.startsWith('hf://')"
    " || (has(self.files.validation) && self.files.validation.startsWith('hf://'))"
    " || (has(self.files.test) && self.files.test.startsWith('hf://'))))"
)
"""CEL: whether any part of the dataset lies on the hub."""


class DatasetConfig(Schema):
    """The training data."""

    cel_rules: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            rule="has(self.uri) != has(self.files)",
            message="set exactly one of uri and files: uri for one file or folder that is split "
            "here, files for what is split already",
        ),
        CelRule(
            rule="!(has(self.split) && has(self.files))",
            message="split and files exclude each other: an existing split is kept as it is; "
            "remove split, or give all rows in uri",
        ),
        CelRule(
            rule=f"has(self.revision) || !({_ON_THE_HUB})",
            message="revision is required for hf:// datasets; name the commit to read",
        ),
        CelRule(
            rule=f"!has(self.revision) || ({_ON_THE_HUB})",
            message="dataset.revision has an effect on hf:// datasets only; remove it",
        ),
        CelRule(
            rule="self.encoding == 'auto' || !(self.format in ['parquet', 'datasets'])",
            message="encoding has no effect on the formats parquet and datasets, whose text is "
            "always UTF-8; remove it",
        ),
    )

    uri: Uri | None = None
    """One file or folder with all rows: hf://, s3:// or pvc://; a local run also takes a path.
    Exactly one of uri and files."""
    files: DatasetFiles | None = None
    """A dataset that is already split. Exactly one of uri and files."""
    revision: Revision | None = None
    """Commit of a hub dataset, for uri and for every one of files on the hub. Required for hf://,
    and refused where nothing is on the hub."""
    format: Literal["auto", "json", "jsonl", "csv", "parquet", "datasets"] = "auto"
    """File format; auto goes by the file name."""
    encoding: Literal[
        "auto",
        "utf-8",
        "utf-16",
        "latin-1",
        "cp1250",
        "cp1251",
        "cp1252",
        "shift_jis",
        "gb18030",
        "big5",
        "euc-kr",
    ] = "auto"
    """Encoding of JSON, JSONL and CSV files; auto tells UTF-8 and UTF-16. A spreadsheet in western
    Europe writes cp1252. Refused for Parquet and datasets folders."""
    layout: Literal[
        "auto", "messages", "prompt-completion", "instruction", "sharegpt", "text", "tools"
    ] = "auto"
    """What a row looks like; auto recognises it from the first rows and says so."""
    columns: DatasetColumns | None = None
    """Column names that differ from the layout's own."""
    split: SplitConfig | None = None
    """How rows are divided. Default: 0.9 train, 0.1 validation, 0.0 test, seed 42.
    Excluded by files."""
    filters: FiltersConfig = FiltersConfig()
    """Which rows are dropped."""

    @property
    def effective_split(self) -> SplitConfig:
        """The split in force when none is written."""
        return self.split or SplitConfig()

    def sources(self) -> tuple[tuple[str, str], ...]:
        """Return field path (below dataset) and URI of every file or folder that is named."""
        named = [("uri", self.uri)]
        if self.files is not None:
            files = self.files
            named += [(f"files.{part}", getattr(files, part)) for part in DatasetFiles.model_fields]
        return tuple((path, uri) for path, uri in named if uri is not None)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.uri is None) == (self.files is None):
            got = "both" if self.uri is not None else "neither"
            raise ValueError(
                f"set exactly one of uri and files, got {got}: uri for one file or folder that is "
                "split here, files for what is split already"
            )
        if self.split is not None and self.files is not None:
            raise ValueError(
                "split and files exclude each other, got both: an existing split is kept as it is; "
                "remove split, or give all rows in uri"
            )
        return self

    @model_validator(mode="after")
    def _hub_dataset_alone_is_pinned(self) -> Self:
        uris = [uri for _, uri in self.sources()]
        on_the_hub = [uri for uri in uris if uri.startswith("hf://")]
        if on_the_hub and self.revision is None:
            raise ValueError(f"revision is required for {on_the_hub[0]}; name the commit to read")
        if self.revision is not None and not on_the_hub:
            raise ValueError(
                f"revision has no effect on {', '.join(uris)}, which is no hf:// dataset; remove it"
            )
        return self

    @model_validator(mode="after")
    def _only_text_has_an_encoding(self) -> Self:
        if self.encoding != "auto" and self.format in ("parquet", "datasets"):
            raise ValueError(
                f"encoding {self.encoding} has no effect on the format {self.format}, whose text "
                "is always UTF-8; remove it"
            )
        return self
