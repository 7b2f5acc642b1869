"""Do two systems agree within the noise of seeds?

Each system trains with k seeds, and a figure m of a run (held-out accuracy, say) scatters with them. Two systems agree
on it where the difference of their means is no larger than chance makes it (Student's t at 95 %):

    |mean_a - mean_b| <= t s sqrt(2 / k),    s^2 = (s_a^2 + s_b^2) / 2,    2 k - 2 degrees of freedom.

A figure that is counted in steps of g (accuracy over 60 pairs: 1/60) cannot scatter by less than its rounding, so s is
at least g / sqrt(12). To agree is not to be the same: the table shows differences and noise beside the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, variance

T_95 = {2: 4.303, 4: 2.776, 6: 2.447, 8: 2.306, 10: 2.228, 12: 2.179, 14: 2.145, 16: 2.120, 18: 2.101}
"""Two-sided 95 % quantiles of Student's t by degrees of freedom, of 2 to 10 seeds."""


@dataclass(frozen=True)
class Agreement:
    """Difference of two systems' means, and what it may be by chance."""

    difference: float
    allowed: float

    @property
    def agree(self) -> bool:
        """Whether the difference is within the noise."""
        return abs(self.difference) <= self.allowed


def compare(values: Sequence[float], others: Sequence[float], granularity: float = 0.0) -> Agreement | None:
    """Compare a figure of the same number of runs of two systems; None with fewer than two runs.

    Raises:
        ValueError: different numbers of runs, or more than 10.
    """
    runs = len(values)
    if runs != len(others):
        raise ValueError(f"{runs} runs cannot be compared with {len(others)}")
    if runs < 2:
        return None
    if 2 * runs - 2 not in T_95:
        raise ValueError(f"{runs} runs are more than there is a quantile for; give at most 10 seeds")
    spread = sqrt(max((variance(values) + variance(others)) / 2, granularity**2 / 12))
    return Agreement(fmean(values) - fmean(others), T_95[2 * runs - 2] * spread * sqrt(2 / runs))
