"""Loss and margin over the steps of a run as one picture, an SVG that needs no style sheet."""

from __future__ import annotations

import math

from wishbone.report.axis import linear_axis
from wishbone.report.markup import Markup, element, join
from wishbone.report.run_directory import HELDOUT_PREFIX, RunRecord
from wishbone.report.series import Series, finite, thin

PANELS = (("loss", "Loss"), ("rewards/margins", "Reward margin"))
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 260, 64, 16, 34, 44
MOST_POINTS = 400
INK, GRID, TRAINING, HELDOUT = "#4a5568", "#cbd5e0", "#2b6cb0", "#c05621"


def curves_picture(record: RunRecord) -> str | None:
    """Return the picture, or None if the run logged nothing."""
    panels = [
        _panel(place, title, record.metrics.get(name, []), record.metrics.get(HELDOUT_PREFIX + name, []))
        for place, (name, title) in enumerate(PANELS)
    ]
    shown = [panel for panel in panels if panel is not None]
    if not shown:
        return None
    background = element("rect", width=len(PANELS) * WIDTH, height=HEIGHT, fill="#ffffff")
    whole = element(
        "svg",
        background,
        *shown,
        xmlns="http://www.w3.org/2000/svg",
        font_family="sans-serif",
        width=len(PANELS) * WIDTH,
        height=HEIGHT,
        viewBox=f"0 0 {len(PANELS) * WIDTH} {HEIGHT}",
    )
    return str(whole) + "\n"


def _panel(place: int, title: str, training: Series, heldout: Series) -> Markup | None:
    points = [*finite(training), *finite(heldout)]
    if not points:
        return None
    left, right, bottom = place * WIDTH + LEFT, (place + 1) * WIDTH - RIGHT, HEIGHT - BOTTOM
    x = linear_axis([step for step, _ in points], left, right, whole=True)
    y = linear_axis([value for _, value in points], bottom, TOP)
    grid = [
        join(
            element("line", x1=left, x2=right, y1=y.at(tick), y2=y.at(tick), stroke=GRID),
            _label(label, left - 6, y.at(tick) + 4, "end"),
        )
        for tick, label in zip(y.ticks, y.labels, strict=True)
    ]
    steps = [_label(label, x.at(tick), bottom + 16, "middle") for tick, label in zip(x.ticks, x.labels, strict=True)]
    path = "".join(
        f"{'L' if number else 'M'}{x.at(step):.1f} {y.at(value):.1f}"
        for number, (step, value) in enumerate(thin(finite(training), MOST_POINTS))
        if math.isfinite(value)
    )
    dots = [
        element("circle", cx=x.at(step), cy=y.at(value), r=4, fill=HELDOUT)
        for step, value in thin(finite(heldout), MOST_POINTS)
    ]
    return element(
        "g",
        *grid,
        *steps,
        _label(title, left, TOP - 14, "start", weight="bold"),
        _label("optimizer step", (left + right) / 2, HEIGHT - 8, "middle"),
        _label("training", right - 70, TOP - 14, "end", color=TRAINING),
        _label("held out", right, TOP - 14, "end", color=HELDOUT) if dots else None,
        element("path", d=path, fill="none", stroke=TRAINING, stroke_width=2) if path else None,
        *dots,
    )


def _label(text: str, x: float, y: float, anchor: str, *, weight: str | None = None, color: str = INK) -> Markup:
    return element("text", text, x=x, y=y, text_anchor=anchor, font_size=12, fill=color, font_weight=weight)
