"""The statistics page of the data, as `report.md` and as `report.html`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from anneal_pipeline.data.files import SPLITS
from anneal_pipeline.data.statistics import Drop, Histogram, Preview, Statistics

MARKDOWN_NAME = "report.md"
HTML_NAME = "report.html"

_SPLIT_HEAD = ("split", "rows", "tokens", "trained tokens", "mean length", "longest")
_BAR_CHARS = 40
_PLOT_WIDTH, _PLOT_HEIGHT = 640, 160
_NUMBER = re.compile(r"\d+(\.\d+)?")
_THOUSANDS = re.compile(r"(?<=\d)(?=(\d{3})+(?!\d))")
_NARROW_SPACE = "\u202f"

_STYLE = (
    ":root{color-scheme:light dark;--ink:#1a1a1a;--page:#fff;--line:#ddd;--faint:#666;"
    "--box:#f6f6f4;--trained:#c8ecc9;--alert:#fff4d6;--bar:#4a7ebb}"
    "@media(prefers-color-scheme:dark){:root{--ink:#e4e4e4;--page:#161719;--line:#3a3c40;"
    "--faint:#9a9da3;--box:#212327;--trained:#1f5130;--alert:#4a3a10;--bar:#6f9fd8}}"
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color:var(--ink);background:var(--page);overflow-wrap:anywhere}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "td,th{padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line);text-align:start;"
    "vertical-align:top;unicode-bidi:plaintext}th,td:first-child{white-space:nowrap}"
    ".n{text-align:right;white-space:nowrap}"
    ".warning{background:var(--alert);padding:.5rem .9rem;border-radius:.4rem}"
    "pre{white-space:pre-wrap;background:var(--box);padding:.8rem;border-radius:.4rem;"
    "max-height:28rem;overflow:auto}"
    "mark{background:var(--trained);color:inherit}small{color:var(--faint)}"
    "svg{max-width:100%}svg text{font-size:11px;fill:var(--faint)}svg rect{fill:var(--bar)}"
)


def write_pages(folder: Path, statistics: Statistics) -> None:
    markdown = "\n".join(_markdown(statistics)) + "\n"
    (folder / MARKDOWN_NAME).write_text(markdown, encoding="utf-8")
    (folder / HTML_NAME).write_text(_html(statistics), encoding="utf-8")


def _facts(statistics: Statistics) -> Iterator[tuple[str, str]]:
    report = statistics.report
    fields = ", ".join(
        name if name == meaning else f"{name} (as {meaning})"
        for meaning, name in report.layout_fields.items()
    )
    yield "Source", statistics.source
    yield "Format", ", ".join(report.formats)
    yield "Layout", f"{report.layout}, read from the fields {fields}"
    own = "the model's own" if report.template_origin == "model" else "plain instruction style"
    yield "Chat template", f"{own} (SHA-256 {report.template_sha256[:12]})"
    yield "Read", report.amount_read()
    yield "Rows dropped", f"{sum(report.dropped.values())}, each of them in quarantine.jsonl"
    yield "Rows cut", str(report.num_truncated)
    yield "Near-duplicates", f"{report.num_near_duplicates} rows, on one side of the split each"
    if report.packing is not None:
        yield "Packing", str(report.packing)
    yield "Digest", report.digest


def _splits(statistics: Statistics) -> Iterator[tuple[str, ...]]:
    for name in SPLITS:
        split = statistics.report.splits[name]
        yield (
            name,
            str(split.num_rows),
            str(split.num_tokens),
            str(split.num_response_tokens),
            f"{split.mean_length:g}",
            str(split.longest),
        )


def _percentiles(histogram: Histogram) -> str:
    p = histogram.percentiles
    return f"5 %: {p[5]}, half: {p[50]}, 95 %: {p[95]}, longest: {p[100]}"


def _drop_cells(drop: Drop) -> tuple[str, ...]:
    return (drop.reason, str(drop.count), f"{drop.where} {drop.detail}", drop.preview)


def _markdown(statistics: Statistics) -> Iterator[str]:
    yield "# The data as it is trained on\n"
    for warning in statistics.report.warnings:
        yield f"> **Warning:** {warning}\n"
    for name, value in _facts(statistics):
        yield f"- {name}: {value}"
    yield from _table(_SPLIT_HEAD, _splits(statistics))
    if statistics.drops:
        yield "\n## Dropped rows"
        head = ("reason", "rows", "first of them", "content")
        yield from _table(head, map(_drop_cells, statistics.drops))
    for histogram in statistics.histograms:
        yield f"\n## {histogram.title}\n\n{_percentiles(histogram)}\n\n```"
        yield from _bars(histogram)
        yield "```"
    if statistics.previews:
        yield "\n## Rows as the model sees them\n\nWhat stands between «...» is trained."
    for preview in statistics.previews:
        text = "".join(f"«{p.text}»" if p.is_trained else p.text for p in preview.pieces)
        yield f"\n{preview.num_tokens} tokens\n\n````\n{text}{_ending(preview)}\n````"


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}"
    for row in rows:
        cells = (" ".join(cell.split()).replace("|", "\\|") for cell in row)
        yield f"| {' | '.join(cells)} |"


def _bars(histogram: Histogram) -> Iterator[str]:
    highest = max(histogram.counts)
    for number, count in enumerate(histogram.counts):
        bar = "#" * -(-count * _BAR_CHARS // highest)
        yield f"{_range(histogram, number):>13} {bar} {count}"


def _range(histogram: Histogram, number: int) -> str:
    first, last = number * histogram.width + 1, (number + 1) * histogram.width
    return str(first) if first == last else f"{first}-{last}"


def _ending(preview: Preview) -> str:
    return " ..." if preview.is_cut else ""


def _html(statistics: Statistics) -> str:
    warnings = "".join(
        f'<p class="warning">{escape(text)}</p>' for text in statistics.report.warnings
    )
    facts = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in _facts(statistics)
    )
    drops = _html_table(
        ("reason", "rows", "first of them", "content"), map(_drop_cells, statistics.drops)
    )
    histograms = "".join(
        f"<h2>{escape(h.title)}</h2><p>{_percentiles(h)}</p>{_svg(h)}"
        for h in statistics.histograms
    )
    previews = "".join(_preview_html(preview) for preview in statistics.previews)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>The data</title><style>{_STYLE}</style></head><body>"
        f"<h1>The data as it is trained on</h1>{warnings}<table>{facts}</table>"
        f"<h2>Split</h2>{_html_table(_SPLIT_HEAD, _splits(statistics))}"
        f"{f'<h2>Dropped rows</h2>{drops}' if statistics.drops else ''}{histograms}"
        "<h2>Rows as the model sees them</h2><p>What is <mark>marked</mark> is trained; the rest "
        f"is only read.</p>{previews}</body></html>\n"
    )


def _html_table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    body = list(rows)
    numeric = [all(_NUMBER.fullmatch(row[column]) for row in body) for column in range(len(head))]
    lines = [_html_row("th", head, numeric), *(_html_row("td", row, numeric) for row in body)]
    return f"<table>{''.join(lines)}</table>"


def _html_row(tag: str, cells: tuple[str, ...], numeric: list[bool]) -> str:
    """Numbers stand to the right, with their thousands apart."""
    shown = (
        f'<{tag} class="n">{_THOUSANDS.sub(_NARROW_SPACE, escape(text))}</{tag}>'
        if is_number
        else f"<{tag}>{escape(text)}</{tag}>"
        for text, is_number in zip(cells, numeric, strict=True)
    )
    return f"<tr>{''.join(shown)}</tr>"


def _preview_html(preview: Preview) -> str:
    text = "".join(
        f"<mark>{escape(piece.text)}</mark>" if piece.is_trained else escape(piece.text)
        for piece in preview.pieces
    )
    return f"<p><small>{preview.num_tokens} tokens</small></p><pre>{text}{_ending(preview)}</pre>"


def _svg(histogram: Histogram) -> str:
    highest = max(histogram.counts)
    step = _PLOT_WIDTH / len(histogram.counts)
    bars = []
    for number, count in enumerate(histogram.counts):
        height = _PLOT_HEIGHT * count / highest
        bars.append(
            f'<rect x="{number * step:.1f}" y="{_PLOT_HEIGHT - height:.1f}" '
            f'width="{max(step - 1, 1):.1f}" height="{height:.1f}">'
            f"<title>{_range(histogram, number)} tokens: {count} rows</title></rect>"
        )
    last = len(histogram.counts) * histogram.width
    return (
        f'<svg viewBox="0 -16 {_PLOT_WIDTH} {_PLOT_HEIGHT + 34}" role="img" '
        f'aria-label="{escape(histogram.title)}" width="{_PLOT_WIDTH}">{"".join(bars)}'
        f'<text x="0" y="-5">highest bar: {highest} rows</text>'
        f'<text x="0" y="{_PLOT_HEIGHT + 14}">1</text>'
        f'<text x="{_PLOT_WIDTH}" y="{_PLOT_HEIGHT + 14}" text-anchor="end">{last} tokens</text>'
        "</svg>"
    )
