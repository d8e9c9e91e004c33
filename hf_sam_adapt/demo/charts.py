"""Charts as HTML: Gradio's plots show the values of the update before when only their data change."""

from __future__ import annotations

import html
from collections.abc import Sequence


def bars(title: str, rows: Sequence[tuple[str, float]], faint: bool = False) -> str:
    """A bar of 0..1 and its number for each name; the caller's strings are escaped.

    Args:
        faint: the numbers do not count, and look so.
    """
    lines = "".join(
        f'<span>{html.escape(name)}</span><div><i style="width: {100 * value:.1f}%"></i></div><b>{value:.2f}</b>'
        for name, value in rows
    )
    kind = "chart faint" if faint else "chart"
    return f'<div class="{kind}"><p>{html.escape(title)}</p><div class="bars">{lines}</div></div>'


def gauge(title: str, value: float, limit: float) -> str:
    """A bar that is red beyond the mark of a limit, with both numbers."""
    width, mark = (80 * part / max(value, limit, 1e-9) for part in (value, limit))
    kind = ' class="beyond"' if value > limit else ""
    bar = f'<i{kind} style="width: {width:.1f}%"></i><u style="left: {mark:.1f}%"></u>'
    return (
        f'<div class="chart"><p>{html.escape(title)}</p>'
        f'<div class="bars"><span>distance</span><div>{bar}</div><b>{value:.3f}</b></div>'
        f"<p>threshold {limit:.3f}</p></div>"
    )


def curve(title: str, points: Sequence[tuple[int, float]], last: int) -> str:
    """A line through (step, value of 0..1).

    Args:
        last: the step at the right border.
    """
    width, height = 600, 150
    places = [(36 + (width - 46) * x / max(1, last), 8 + (height - 30) * (1 - y)) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places)
    levels = ((8 + (height - 30) * (1 - value), value) for value in (0, 0.5, 1))
    grid = "".join(
        f'<path d="M36 {y:.0f}H{width - 10}"/><text x="30" y="{y + 4:.0f}" text-anchor="end">{value:.1f}</text>'
        for y, value in levels
    )
    steps = f'<text x="36" y="{height - 4}">step 0</text>'
    steps += f'<text x="{width - 10}" y="{height - 4}" text-anchor="end">{last}</text>'
    drawing = f'{grid}{steps}<polyline points="{line}"/>{dots}'
    return f'<div class="chart"><p>{html.escape(title)}</p><svg viewBox="0 0 {width} {height}">{drawing}</svg></div>'
