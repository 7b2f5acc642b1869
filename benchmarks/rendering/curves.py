"""Training losses as a picture: for each system the mean over its seeds, smoothed over some steps."""

from __future__ import annotations

from statistics import fmean

from benchmarks.harness.results import Row
from benchmarks.rendering.picture import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, picture
from wishbone.report.axis import linear_axis
from wishbone.report.markup import Markup, element
from wishbone.report.series import Series, running_mean

WINDOW = 9
LINE = 14


def curves(rows: list[Row], title: str) -> Markup | None:
    """Return the picture of rows of quality, or None where none was measured."""
    lines = {row["system"]: mean_curve(row) for row in rows if row["status"] == "ok"}
    if not lines:
        return None
    points = [point for line in lines.values() for point in line]
    x = linear_axis([0.0, *(step for step, _ in points)], LEFT, WIDTH - RIGHT, whole=True)
    y = linear_axis([value for _, value in points], HEIGHT - BOTTOM, TOP)
    drawn: list[Markup] = []
    taken: list[float] = []
    for name, line in sorted(lines.items(), key=lambda item: -item[1][-1][1]):
        path = "L".join(f"{x.at(step):.1f} {y.at(value):.1f}" for step, value in line)
        drawn.append(element("path", d=f"M{path}", class_=f"curve {tone(name)}"))
        at = y.at(line[-1][1]) + 4
        while any(abs(at - other) < LINE for other in taken):
            at += 2
        taken.append(at)
        drawn.append(element("text", name, x=WIDTH - RIGHT + 24, y=at))
        drawn.append(element("path", d=f"M{WIDTH - RIGHT + 8} {at - 4:.1f}h12", class_=f"curve {tone(name)}"))
    described = "; ".join(f"{name}: from {line[0][1]:.3f} to {line[-1][1]:.3f}" for name, line in lines.items())
    return picture(title, described, x, y, ("optimizer step", "loss"), *drawn)


def mean_curve(row: Row) -> Series:
    """Return the mean over seeds of the loss of each step, smoothed."""
    by_step = zip(*(run["losses"] for run in row["runs"]), strict=True)
    return running_mean([(float(step), fmean(losses)) for step, losses in enumerate(by_step, 1)], WINDOW)


def tone(system: str) -> str:
    """Return the style of a system's line."""
    return next((form for form in ("fp8", "nf4") if form in system), system.partition("-")[0])
