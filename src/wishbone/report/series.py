"""Values over optimizer steps: running means, first and last tenth, and thinning so that a page stays small."""

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
    """Return the centred mean over `window` finite values, at their steps; windows are cut off at both ends.

    If a value is not finite, the mean there is NaN, so a gap stays a gap.

    Args:
        series: points in the order of their steps.
        window: an odd number of points.
    """
    values = [value for _, value in finite(series)]
    sums = [0.0, *accumulate(values)]
    half = window // 2
    means, seen = [], 0
    for step, value in series:
        if not math.isfinite(value):
            means.append((step, math.nan))
            continue
        first, past = max(0, seen - half), min(len(values), seen + half + 1)
        means.append((step, (sums[past] - sums[first]) / (past - first)))
        seen += 1
    return means


def thin(series: Series, limit: int) -> list[tuple[float, float]]:
    """Return at most `limit` points with the shape of the series: first, last, and both extremes of every interval.

    One value per interval that is not finite is kept, so a gap stays a gap.
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
