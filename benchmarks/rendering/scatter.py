"""Speed against memory as a picture: each system of one case is a point, and up and left is better."""

from __future__ import annotations

from benchmarks.harness.results import Row
from benchmarks.rendering.picture import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, picture
from wishbone.report.axis import Axis, linear_axis
from wishbone.report.markup import Markup, element

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

MARK = 6
"""Half the size of a point."""

LETTER, ASCENT, DESCENT = 7, 10, 3
"""Size of a letter, about."""


def scatter(rows: list[Row], title: str) -> Markup | None:
    """Return the picture of rows of throughput, or None where none was measured."""
    measured = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: -row["pairs_per_s"])
    if not measured:
        return None
    x = linear_axis([0.0, *(row["peak_gib"] for row in measured)], LEFT, WIDTH - RIGHT)
    y = linear_axis([0.0, *(row["pairs_per_s"] for row in measured)], HEIGHT - BOTTOM, TOP)
    described = "; ".join(f"{r['system']}: {r['pairs_per_s']:.2f} pairs/s, {r['peak_gib']:.1f} GiB" for r in measured)
    return picture(title, described, x, y, ("peak memory, GiB", "pairs/s"), *_points(measured, x, y))


def _points(rows: list[Row], x: Axis, y: Axis) -> list[Markup]:
    """Points from the top down; a name that would lie over another one, or over a point, moves down."""
    places = [(x.at(row["peak_gib"]), y.at(row["pairs_per_s"])) for row in rows]
    taken = [(across - MARK, down - MARK, across + MARK, down + MARK) for across, down in places]
    drawn: list[Markup] = []
    for row, (across, down) in zip(rows, places, strict=True):
        name, left, line = row["system"], across + MARK + 3, down + 4
        while any(_meet(_box(name, left, line), other) for other in taken):
            line += 2
        taken.append(_box(name, left, line))
        drawn.append(_mark(name.partition("-")[0], across, down))
        drawn.append(element("text", name, x=left, y=line))
    return drawn


def _box(name: str, left: float, line: float) -> Box:
    return left, line - ASCENT, left + LETTER * len(name), line + DESCENT


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _mark(family: str, x: float, y: float) -> Markup:
    """A shape for each family, so that colour is not all that tells them apart."""
    if family == "wishbone":
        return element("circle", cx=x, cy=y, r=5, class_=family)
    if family == "unsloth":
        return element("rect", x=x - 4.5, y=y - 4.5, width=9, height=9, class_=family)
    return element("path", d=f"M{x:.1f} {y - 6:.1f}l6 10h-12z", class_=family)
