"""The data report: what was read, what was recognised, what was left out and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anneal_pipeline.data.packing import PackingReport
from anneal_pipeline.data.prepared import PreparedSplit

REPORT_NAME = "report.json"


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    num_rows: int
    num_tokens: int
    num_response_tokens: int
    longest: int
    mean_length: float


@dataclass(frozen=True, kw_only=True)
class DataReport:
    inputs_hash: str
    """Of everything this preparation follows from; equal means it need not run again."""
    source_digest: str
    """SHA-256 over the content of the files read."""
    digest: str = ""
    """SHA-256 over the prepared rows: what the model is trained on."""
    formats: tuple[str, ...]
    layout: str
    layout_fields: Mapping[str, str]
    template_origin: str
    template_sha256: str
    num_rows_read: int
    num_conversations_read: int
    """As many as rows, but where `dataset.columns.conversationId` joins rows; a row that cannot be
    read counts as one. Sides of the split are counted in conversations, drops in rows."""
    dropped: Mapping[str, int]
    """Rows left out, by reason; each of them is in quarantine.jsonl."""
    num_truncated: int
    num_near_duplicates: int
    """Rows that differ from another in a few words; they are on one side of the split."""
    num_near_leaks: int
    """Those that a split given by the user has on two sides."""
    stop_token_ids: tuple[int, ...]
    splits: Mapping[str, SplitReport] = field(default_factory=dict)
    packing: PackingReport | None = None
    """Of the training rows, where the job packs them."""
    warnings: tuple[str, ...] = ()

    def amount_read(self) -> str:
        """How much was read, in words."""
        rows = f"{self.num_rows_read} rows"
        if self.num_conversations_read == self.num_rows_read:
            return rows
        return f"{rows} in {self.num_conversations_read} conversations"

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")


def read_report(path: Path) -> DataReport | None:
    """The report of an earlier preparation; None when there is none that this version reads."""
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
        splits = {name: SplitReport(**split) for name, split in fields.pop("splits").items()}
        stops = tuple(fields.pop("stop_token_ids"))
        warnings, formats = tuple(fields.pop("warnings")), tuple(fields.pop("formats"))
        packing = fields.pop("packing", None)
        return DataReport(
            splits=splits,
            stop_token_ids=stops,
            warnings=warnings,
            formats=formats,
            packing=PackingReport(**packing) if packing else None,
            **fields,
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def describe_split(split: PreparedSplit) -> SplitReport:
    lengths = split.lengths()
    return SplitReport(
        num_rows=len(lengths),
        num_tokens=sum(lengths),
        # sum() would first make eight bytes of every one.
        num_response_tokens=int(split.is_response.count_nonzero()),
        longest=max(lengths, default=0),
        mean_length=round(sum(lengths) / len(lengths), 1) if lengths else 0.0,
    )
