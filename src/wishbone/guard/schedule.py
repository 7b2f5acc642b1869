"""When to measure, so that the guard takes less than 3 % of the run's time.

It measures its own time. Pairs are cheap to score and answers expensive to generate, so each has a schedule and half of
the share. With B = that half of what the whole run takes at the present pace, what is left of B pays for n more
measurements. One is kept for a suspicion, the others are spread over the steps that are left:

    n = floor( (B - spent) / cost of the last measurement ),    interval = ceil( steps left / (n - 1) )

So the interval grows where a measurement is expensive compared with a step, and measurements end where the share is
used up. A suspicion (an early sign in the logs, a sign seen once) brings the next one forward, out of the same share.

The clock decides until the first checkpoint is written; from then on the interval and the number of measurements stay
what they are, so that a run continued from a checkpoint measures at the steps at which it would have measured. Two runs
on different machines may measure at different steps. A fixed interval (`guard_steps`) does not depend on time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SHARE = 0.03
AIM = 0.9 * SHARE / 2
"""What each of the two schedules plans with, so that a slower measurement than the last stays below `SHARE`."""
MOST = 20
"""Most measurements that are planned for a run; more would only see the same again."""
SOONER = 4
"""After a suspicion the next measurement comes after this part of the interval."""


class Schedule:
    """Decides at which steps to measure.

    Args:
        fixed: steps between two measurements, or None: as the share of time allows.

    Attributes:
        next: optimizer steps after which the next measurement is due; None: none is.
        spent: seconds that measurements took so far.
    """

    def __init__(self, fixed: int | None) -> None:
        self._fixed = fixed
        self.next: int | None = fixed
        self.spent = 0.0
        self._interval = fixed or 1
        self._affordable = 0
        self._last = 0
        self._planned_steps = 0
        self._kept = False

    def due(self, step: int) -> bool:
        """Return whether to measure after `step` optimizer steps."""
        return self.next is not None and step >= self.next

    def plan(self, step: int, max_steps: int, *, cost: float, step_seconds: float) -> None:
        """Plan what comes after a measurement at `step` that took `cost` seconds.

        Args:
            step_seconds: mean time of an optimizer step.
        """
        self._last = step
        if self._fixed is not None:
            self.next = step + self._fixed
            return
        if self._kept:
            self._affordable = max(0, self._affordable - 1)
            self.next = step + self._interval if self._affordable > 1 and step < max_steps else None
            return
        self._planned_steps = max_steps
        left = AIM * max_steps * step_seconds - self.spent
        self._affordable = max(0, min(MOST, math.floor(left / max(cost, 1e-9))))
        self._interval = max(1, math.ceil((max_steps - step) / max(self._affordable - 1, 1)))
        self.next = step + self._interval if self._affordable > 1 and step < max_steps else None

    def keep_plan(self) -> None:
        """Ask the clock no more, if it was asked before."""
        self._kept = self._planned_steps > 0

    def suspect(self, step: int) -> None:
        """Bring the next measurement forward, `step` at the earliest, where the share allows one."""
        sooner = max(step, self._last + math.ceil(self._interval / SOONER))
        if self.next is not None or self._affordable > 0:
            self.next = sooner if self.next is None else min(self.next, sooner)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON."""
        own = (self.next, self.spent, self._interval, self._affordable, self._last, self._planned_steps)
        return dict(zip(("next", "spent", "interval", "affordable", "last", "steps"), own, strict=True))

    def restore(self, state: Mapping[str, Any], max_steps: int) -> None:
        """Go on from what `state` returned; another fixed interval than then counts from the last measurement.

        Where the run is longer now, it gets more measurements at the same interval.
        """
        self.next, self.spent, self._interval = state["next"], state["spent"], state["interval"]
        self._affordable, self._last = state["affordable"], state["last"]
        self._planned_steps = state.get("steps", 0)
        self.keep_plan()
        more = (max_steps - self._planned_steps) // self._interval if self._kept else 0
        if more > 0:
            self._planned_steps, self._affordable = max_steps, self._affordable + more
            self.next = self.next or self._last + self._interval
        if self._fixed is not None and self._interval != self._fixed:
            self.next, self._interval = self._last + self._fixed, self._fixed
