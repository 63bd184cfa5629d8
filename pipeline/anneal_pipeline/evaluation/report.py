"""The evaluation report: base against tuned, in numbers and in answers; JSON, Markdown and HTML."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from anneal_pipeline.efficiency.rounding import Rounding
from anneal_pipeline.evaluation.adapter_section import AdapterSection
from anneal_pipeline.evaluation.curve import loss_curve_svg
from anneal_pipeline.evaluation.rounding_section import rounding_html, rounding_markdown

BASE = "base"
TUNED = "tuned"


@dataclass(frozen=True, kw_only=True)
class AnswerPair:
    prompt: str
    reference: str | None
    base: str | None
    tuned: str


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    model: str
    split: str | None
    """The held-out split measured; None when there is none."""
    num_rows: int
    num_tokens: int
    base: Mapping[str, float]
    tuned: Mapping[str, float]
    answers: tuple[AnswerPair, ...]
    losses: tuple[tuple[int, float], ...]
    evaluations: tuple[tuple[int, float], ...]
    """(step, loss on held-out responses)"""
    adapters: AdapterSection | None
    """None where they could not be measured."""
    rounding: Rounding | None
    """Of a base in 4 bits."""

    def change(self, metric: str) -> float | None:
        """Relative change of a metric from base to tuned; -0.6 is a fall by 60 %."""
        if metric not in self.base or metric not in self.tuned or self.base[metric] == 0:
            return None
        return self.tuned[metric] / self.base[metric] - 1.0

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        fields = asdict(self) | {
            "change": {m: self.change(m) for m in self.tuned},
            "adapters": self.adapters and self.adapters.to_data(),
            "rounding": self.rounding and self.rounding.to_data(),
        }
        (folder / "report.json").write_text(
            json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (folder / "report.md").write_text("\n".join(_markdown(self)) + "\n", encoding="utf-8")
        (folder / "report.html").write_text(_html(self), encoding="utf-8")


def _rows(report: ComparisonReport) -> Iterator[tuple[str, str, str, str]]:
    for metric, tuned in report.tuned.items():
        base = report.base.get(metric)
        change = report.change(metric)
        yield (
            metric,
            "-" if base is None else f"{base:.4g}",
            f"{tuned:.4g}",
            "-" if change is None else f"{change:+.1%}",
        )


def _caption(report: ComparisonReport) -> str:
    if report.split is None:
        return "No held-out rows: nothing was measured."
    return (
        f"Measured on {report.num_rows} {report.split} rows ({report.num_tokens} response tokens) "
        "that were not trained on."
    )


def _markdown(report: ComparisonReport) -> Iterator[str]:
    yield f"# Evaluation of {report.model}"
    yield ""
    yield _caption(report)
    yield ""
    yield "| metric | base | tuned | change |"
    yield "|---|---:|---:|---:|"
    for row in _rows(report):
        yield f"| {' | '.join(row)} |"
    if report.adapters is not None:
        yield from report.adapters.markdown()
    if report.rounding is not None:
        yield from rounding_markdown(report.rounding)
    for pair in report.answers:
        yield f"\n## {' '.join(pair.prompt.split())}\n"
        for title, text in _answers_of(pair):
            yield f"**{title}**\n\n{_quote(text)}\n"


def _quote(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines() or [""])


def _answers_of(pair: AnswerPair) -> Iterator[tuple[str, str]]:
    if pair.base is not None:
        yield "Base", pair.base
    yield "Tuned", pair.tuned
    if pair.reference is not None:
        yield "Reference", pair.reference


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color:#1a1a1a;background:#fff}table{border-collapse:collapse}td,th{padding:.3rem .8rem;"
    "border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child,"
    ".facts td{text-align:left;vertical-align:top}.facts td:first-child{white-space:nowrap}"
    ".answers{display:flex;gap:1rem;flex-wrap:wrap}.answers>div{flex:1 1 14rem;background:#f6f6f4;"
    "padding:.6rem .9rem;border-radius:.4rem;white-space:pre-wrap;min-width:0;"
    "overflow-wrap:anywhere}h3{margin-bottom:.4rem}"
    ".answers b{display:block;font-size:.8rem;color:#666}"
)


def _html(report: ComparisonReport) -> str:
    cells = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in _rows(report)
    )
    answers = "".join(_answer_html(pair) for pair in report.answers)
    adapters = "" if report.adapters is None else report.adapters.html()
    rounding = "" if report.rounding is None else rounding_html(report.rounding)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>Evaluation of {escape(report.model)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>Evaluation of {escape(report.model)}</h1><p>{escape(_caption(report))}</p>"
        "<table><tr><th>metric</th><th>base</th><th>tuned</th><th>change</th></tr>"
        f"{cells}</table><h2>Loss</h2>"
        f"{loss_curve_svg(report.losses, report.evaluations)}{adapters}{rounding}"
        f"<h2>Answers</h2>{answers}"
        "</body></html>\n"
    )


def _answer_html(pair: AnswerPair) -> str:
    columns = "".join(
        f"<div><b>{escape(title)}</b>{escape(text)}</div>" for title, text in _answers_of(pair)
    )
    return f'<h3>{escape(pair.prompt)}</h3><div class="answers">{columns}</div>'
