"""The loss curve as an inline SVG: training thin, held-out as dots."""

from __future__ import annotations

from collections.abc import Sequence

_WIDTH, _HEIGHT, _MARGIN = 720, 260, 40

Points = Sequence[tuple[int, float]]


def loss_curve_svg(losses: Points, evaluations: Points) -> str:
    """Draw nats per token against the step; an empty string without any point."""
    both = [*losses, *evaluations]
    if not both:
        return ""
    last_step = max(step for step, _ in both)
    top = max(loss for _, loss in both) or 1.0

    def place(step: int, loss: float) -> tuple[str, str]:
        x = _MARGIN + (_WIDTH - 2 * _MARGIN) * step / max(1, last_step)
        y = _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * loss / top
        return f"{x:.1f}", f"{y:.1f}"

    line = " ".join(",".join(place(*point)) for point in losses)
    dots = "".join(
        f'<circle cx="{x}" cy="{y}" r="4" fill="#c2410c"/>'
        for x, y in (place(*point) for point in evaluations)
    )
    bottom, right = _HEIGHT - _MARGIN, _WIDTH - _MARGIN
    legend = '<tspan fill="#2563eb">line: training</tspan>'
    if evaluations:
        legend += '<tspan fill="#c2410c" dx="12">dots: held-out rows</tspan>'
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="100%" role="img" aria-label="loss by step">'
        f'<path d="M{_MARGIN},{_MARGIN}V{bottom}H{right}" fill="none" stroke="#999"/>'
        f'<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="1.5"/>{dots}'
        f'<text x="{_MARGIN}" y="{_MARGIN - 10}" font-size="12">{top:.2f} nats per token</text>'
        f'<text x="{right}" y="{_MARGIN - 10}" font-size="12" text-anchor="end">{legend}</text>'
        f'<text x="{_MARGIN - 6}" y="{bottom}" font-size="12" text-anchor="end">0</text>'
        f'<text x="{right}" y="{_HEIGHT - 12}" font-size="12" text-anchor="end">step {last_step}'
        "</text></svg>"
    )
