"""The part of the evaluation report about a base in 4 bits: what it lost and what it saves."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from anneal_pipeline.efficiency.rounding import KindRounding, Rounding
from anneal_pipeline.evaluation.tables import html_table, markdown_table

_TITLE = "The base in 4 bits"
_HEAD = ("layers", "in the model", "measured", "error", "largest")
_LEGEND = (
    "The error is the root mean square of what rounding changed, over that of the weights; the "
    "metrics of the base above are those of the rounded one."
)


def rounding_markdown(rounding: Rounding) -> Iterator[str]:
    yield f"\n## {_TITLE}\n"
    yield f"{rounding.summary()}. {_LEGEND}"
    yield from markdown_table(_HEAD, map(_cells, rounding.kinds))


def rounding_html(rounding: Rounding) -> str:
    text = escape(f"{rounding.summary()}. {_LEGEND}")
    return f"<h2>{_TITLE}</h2><p>{text}</p>{html_table(_HEAD, map(_cells, rounding.kinds))}"


def _cells(kind: KindRounding) -> tuple[str, ...]:
    return (
        kind.kind,
        str(kind.num_modules),
        str(len(kind.errors)),
        f"{kind.error:.2%}",
        f"{max(kind.errors):.2%}",
    )
