"""Values over optimizer steps: averaged, compared end to end, and thinned so that a page stays small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean

Series = Sequence[tuple[float, float]]


def finite(series: Series) -> list[tuple[float, float]]:
    """Return the points whose value is a finite number."""
    return [point for point in series if math.isfinite(point[1])]


def ends(series: Series) -> tuple[float, float] | None:
    """Return the mean of the first and of the last tenth of the finite values (one value at least), or None."""
    values = [value for _, value in finite(series)]
    if len(values) < 2:
        return None
    tenth = max(1, len(values) // 10)
    return fmean(values[:tenth]), fmean(values[-tenth:])


def running_mean(series: Series, window: int) -> list[tuple[float, float]]:
    """Return the centred mean over `window` finite values, at their steps; shorter windows at both ends.

    Args:
        series: points in the order of their steps.
        window: an odd number of points.
    """
    points = finite(series)
    sums = [0.0, *accumulate(value for _, value in points)]
    half = window // 2
    means = []
    for i, (step, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        means.append((step, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return means


def thin(series: Series, limit: int) -> list[tuple[float, float]]:
    """Return at most `limit` points that look like all of them: first, last and both extremes of every stretch.

    A value that is not finite is kept once a stretch, so that a gap stays a gap.
    """
    if len(series) <= limit:
        return list(series)
    stretches = max(1, (limit - 2) // 3)
    kept = {0, len(series) - 1}
    for stretch in range(stretches):
        members = range(stretch * len(series) // stretches, (stretch + 1) * len(series) // stretches)
        good = [i for i in members if math.isfinite(series[i][1])]
        if good:
            kept |= {min(good, key=lambda i: series[i][1]), max(good, key=lambda i: series[i][1])}
        if len(good) < len(members):
            kept.add(next(i for i in members if not math.isfinite(series[i][1])))
    return [series[i] for i in sorted(kept)]
