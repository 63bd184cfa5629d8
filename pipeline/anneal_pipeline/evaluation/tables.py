"""Tables of the evaluation report's sections, the first column to the left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"\n| {' | '.join(head)} |"
    yield f"|---|{'---:|' * (len(head) - 1)}"
    for cells in rows:
        yield f"| {' | '.join(cells)} |"


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return f"<table>{_row('th', head)}{''.join(_row('td', cells) for cells in rows)}</table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
