"""Line charts as inline SVG: training as a line, held-out values as dots, axes with round ticks, a legend.

If values scatter, a running mean is drawn over them and they are drawn lighter. Values that are not finite leave a gap
and a mark on the step axis. Colours come from the page's style sheet, so a chart follows its light and dark scheme.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from wishbone.errors import counted
from wishbone.report.axis import Axis, linear_axis, log_axis
from wishbone.report.markup import Markup, element, join
from wishbone.report.outcome import in_words
from wishbone.report.series import Series, finite, running_mean, thin

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 12, 42
SCATTERED = 40
MOST_POINTS, MOST_MARKS = 400, 100


Tone = Literal["one", "two", "three", "four", "five", "six"]
"""Colours of lines, as the style sheet has them."""


@dataclass(frozen=True)
class Line:
    """A metric over steps: of training and, if measured, of held-out pairs, each with its label."""

    training: Series
    heldout: Series = ()
    labels: tuple[str, str] = ("training", "held out")
    tone: Tone = "one"
    scatters: bool = True


@dataclass(frozen=True)
class Chart:
    """A chart and its texts.

    Attributes:
        name: unique on the page, letters and hyphens.
        title, explanation: text above the chart.
        lines: at least one of them has a point.
        share: the values are shares from 0 to 1 and shown in percent.
        guide: a value to compare with, and what it means.
        log: logarithmic values, where all are positive.
    """

    name: str
    title: str
    explanation: str
    lines: tuple[Line, ...]
    share: bool = False
    guide: tuple[float, str] | None = None
    log: bool = False


def draw(chart: Chart) -> Markup:
    """Return a chart as a figure with its legend; if no value is finite, the figure says so."""
    points = [point for line in chart.lines for point in (*line.training, *line.heldout)]
    values = [value for _, value in finite(points)]
    caption = element(
        "figcaption",
        element("h3", chart.title),
        element("p", chart.explanation),
        _legend(chart.lines) if values else None,
    )
    if not values:
        return element("figure", caption, element("p", "None of the values is a finite number.", class_="empty"))
    x = linear_axis([0, *(step for step, _ in points)], LEFT, WIDTH - RIGHT, whole=True)
    y = _value_axis(chart, values)
    picture = element(
        "svg",
        element("title", chart.title, id=f"{chart.name}-title"),
        element("desc", " ".join(map(_described, chart.lines)), id=f"{chart.name}-desc"),
        _frame(x, y),
        _guide(chart.guide, y) if chart.guide else None,
        *(_drawn(line, x, y) for line in chart.lines),
        _gaps(points, x),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{chart.name}-title {chart.name}-desc",
    )
    return element("figure", caption, picture)


def _value_axis(chart: Chart, values: list[float]) -> Axis:
    low, high = float(HEIGHT - BOTTOM), float(TOP)
    if chart.share:
        return Axis(0, 1, low, high, (0, 0.25, 0.5, 0.75, 1), ("0 %", "25 %", "50 %", "75 %", "100 %"))
    if chart.log and min(values) > 0:
        return log_axis(values, low, high)
    return linear_axis(values, low, high)


def _frame(x: Axis, y: Axis) -> Markup:
    """Grid lines, ticks, labels, and the name of the step axis."""
    left, right, bottom = float(LEFT), float(WIDTH - RIGHT), float(HEIGHT - BOTTOM)
    parts = []
    for place, label in zip(y.ticks, y.labels, strict=True):
        at = y.at(place)
        kind = "zero" if place == 0 and y.low < 0 else "grid"
        parts.append(element("line", x1=left, x2=right, y1=at, y2=at, class_=kind))
        parts.append(element("text", label, x=left - 7, y=at + 4, text_anchor="end"))
    for place, label in zip(x.ticks, x.labels, strict=True):
        at = x.at(place)
        parts.append(element("line", x1=at, x2=at, y1=bottom, y2=bottom + 4, class_="axis"))
        parts.append(element("text", label, x=at, y=bottom + 17, text_anchor="middle"))
    parts.append(element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(element("text", "optimizer step", x=(left + right) / 2, y=HEIGHT - 6, text_anchor="middle"))
    return element("g", *parts)


def _guide(guide: tuple[float, str], y: Axis) -> Markup | None:
    value, meaning = guide
    if not y.low <= value <= y.high:
        return None
    at, right = y.at(value), float(WIDTH - RIGHT)
    above = at - 5 if at - TOP > 16 else at + 14
    return join(
        element("line", x1=float(LEFT), x2=right, y1=at, y2=at, class_="guide"),
        element("text", meaning, x=right - 2, y=above, text_anchor="end", class_="meaning"),
    )


def _drawn(line: Line, x: Axis, y: Axis) -> Markup:
    """A line with its running mean and its held-out points."""
    shown = []
    count = len(finite(line.training))
    if count >= SCATTERED and line.scatters:
        smooth = running_mean(line.training, max(5, count // 20) | 1)
        shown.append(element("path", d=_path(thin(line.training, MOST_POINTS), x, y), class_="raw"))
        shown.append(element("path", d=_path(thin(smooth, MOST_POINTS), x, y)))
    elif count:
        alone = {"class_": "alone"} if count == 1 else {}
        shown.append(element("path", d=_path(thin(line.training, MOST_POINTS), x, y), **alone))
    for step, value in thin(finite(line.heldout), MOST_MARKS):
        tip = element("title", f"held out, step {step:,.0f}: {in_words(value)}")
        shown.append(_mark(line.tone, x.at(step), y.at(value), tip))
    return element("g", *shown, class_=f"line {line.tone}")


def _mark(tone: str, x: float, y: float, *children: str) -> Markup:
    """A dot, or for the second line of a chart a square, so that shapes distinguish lines without colour."""
    if tone == "one":
        return element("circle", *children, cx=x, cy=y, r=4)
    return element("rect", *children, x=x - 3.5, y=y - 3.5, width=7, height=7)


def _path(points: Series, x: Axis, y: Axis) -> str:
    """Path data; a single point between two gaps becomes a line of length zero, whose round ends show as a dot."""
    commands, pen_down = [], False
    for step, value in points:
        if math.isfinite(value):
            commands.append(f"{'L' if pen_down else 'M'}{x.at(step):.1f} {y.at(value):.1f}{'' if pen_down else 'h0'}")
        pen_down = math.isfinite(value)
    return "".join(commands)


def _gaps(points: Series, x: Axis) -> Markup | None:
    """Marks on the step axis where a value is not finite."""
    steps = sorted({step for step, value in points if not math.isfinite(value)})
    if not steps:
        return None
    bottom = HEIGHT - BOTTOM
    places = dict.fromkeys(f"M{x.at(step):.0f} {bottom}v-9" for step in steps)
    tip = element("title", f"not a finite number at {counted(len(steps), 'step')}")
    return element("path", tip, d="".join(places), class_="gap")


def _legend(lines: tuple[Line, ...]) -> Markup:
    entries = []
    for line in lines:
        stroke = element("path", d="M1 6h20")
        if line.training:
            entries.append(_entry(line.tone, stroke, line.labels[0]))
        if line.heldout:
            entries.append(_entry(line.tone, _mark(line.tone, 11, 6), line.labels[1]))
    if any(not math.isfinite(value) for line in lines for _, value in (*line.training, *line.heldout)):
        gap = element("path", d="M11 1v10", class_="gap")
        entries.append(_entry("one", gap, "not a finite number"))
    return element("ul", *entries, class_="legend")


def _entry(tone: str, sample: Markup, label: str) -> Markup:
    drawn = element("g", sample, class_=f"line {tone}")
    return element("li", element("svg", drawn, viewBox="0 0 22 12", aria_hidden="true"), label)


def _described(line: Line) -> str:
    """A line described in words, for screen readers."""
    sentences = []
    for name, series in zip(line.labels, (line.training, line.heldout), strict=True):
        points = finite(series)
        if not points:
            continue
        (first_step, first), (last_step, last) = points[0], points[-1]
        values = [value for _, value in points]
        sentences.append(
            f"{name}: {in_words(first)} at step {first_step:,.0f}, {in_words(last)} at step {last_step:,.0f}, "
            f"lowest {in_words(min(values))}, highest {in_words(max(values))}."
        )
    return " ".join(sentences)
