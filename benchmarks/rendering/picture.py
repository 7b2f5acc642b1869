"""The frame of a picture: SVG with axes and a style of its own, in a light or a dark scheme as the reader has it."""

from __future__ import annotations

from wishbone.report.axis import Axis
from wishbone.report.markup import Markup, element

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 160, 48, 52
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f } .title { font-size: 15px; font-weight: 600 }
.grid { stroke: #d0d7de } .axis { stroke: #57606a } .curve { fill: none; stroke-width: 2 }
.trl { fill: #6e7781; stroke: #6e7781 } .unsloth { fill: #bc4c00; stroke: #bc4c00 }
.wishbone { fill: #0969da; stroke: #0969da }
.fp8 { fill: #bf3989; stroke: #bf3989 } .nf4 { fill: #1a7f37; stroke: #1a7f37 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .grid { stroke: #30363d } .axis { stroke: #8b949e }
  .trl { fill: #8b949e; stroke: #8b949e } .unsloth { fill: #f0883e; stroke: #f0883e }
  .wishbone { fill: #58a6ff; stroke: #58a6ff }
  .fp8 { fill: #f778ba; stroke: #f778ba } .nf4 { fill: #3fb950; stroke: #3fb950 }
}
.curve { fill: none !important }
"""


def picture(title: str, described: str, x: Axis, y: Axis, names: tuple[str, str], *content: Markup) -> Markup:
    """Return an SVG document.

    Args:
        title: above the picture.
        described: what it shows, for those who do not see it.
        x: axis from LEFT to WIDTH - RIGHT.
        y: axis from HEIGHT - BOTTOM up to TOP.
        names: of the two axes.
        content: drawn over the frame.
    """
    return element(
        "svg",
        element("title", title),
        element("desc", described),
        element("style", Markup(STYLE)),
        element("text", title, x=LEFT, y=22, class_="title"),
        _frame(x, y, *names),
        *content,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
    )


def _frame(x: Axis, y: Axis, across: str, up: str) -> Markup:
    left, right, top, bottom = float(LEFT), float(WIDTH - RIGHT), float(TOP), float(HEIGHT - BOTTOM)
    parts = []
    for place, label in zip(y.ticks, y.labels, strict=True):
        parts.append(element("line", x1=left, x2=right, y1=y.at(place), y2=y.at(place), class_="grid"))
        parts.append(element("text", label, x=left - 8, y=y.at(place) + 4, text_anchor="end"))
    for place, label in zip(x.ticks, x.labels, strict=True):
        parts.append(element("line", x1=x.at(place), x2=x.at(place), y1=top, y2=bottom, class_="grid"))
        parts.append(element("text", label, x=x.at(place), y=bottom + 18, text_anchor="middle"))
    parts.append(element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(element("text", across, x=(left + right) / 2, y=HEIGHT - 12, text_anchor="middle"))
    parts.append(element("text", up, x=left, y=top - 8))
    return element("g", *parts)
