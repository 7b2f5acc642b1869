"""What the logs of training say anyway: an early sign that a measurement is due, at no cost.

In the first epoch a batch is scored before it is trained on, so its rewards are those of pairs that were not seen yet.
They are noisy (a batch has few pairs) and decide nothing; they only bring the next measurement forward.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean, median
from typing import Any

FIRST, LAST = 8, 3
EARLY_DRIFT = 0.1
"""Nats a token that chosen answers have lost in the last logs when a measurement becomes due."""
EARLY_GROWTH = 5.0
"""The same for gradient norms, as a multiple of the first ones."""


class TrainingFigures:
    """Collects gradient norms and chosen rewards from logs.

    Args:
        beta: scale of the rewards.

    Attributes:
        first_gradients: the first finite gradient norms of the run, at most `FIRST`.
    """

    def __init__(self, beta: float) -> None:
        self._beta = beta
        self.first_gradients: list[float] = []
        self._gradients: deque[float] = deque(maxlen=LAST)
        self._chosen: deque[float] = deque(maxlen=LAST)
        self._drift_level, self._growth_level = EARLY_DRIFT, EARLY_GROWTH

    def add(self, logs: Mapping[str, object]) -> None:
        """Take a log of training; others are ignored."""
        if "loss" not in logs:
            return
        gradient, chosen = logs.get("grad_norm"), logs.get("rewards/chosen")
        if isinstance(gradient, int | float):
            self._gradients.append(float(gradient))
            if len(self.first_gradients) < FIRST and math.isfinite(gradient):
                self.first_gradients.append(float(gradient))
        if isinstance(chosen, int | float):
            self._chosen.append(float(chosen) / self._beta)

    def values(self) -> dict[str, float]:
        """Return `gradient`, the median of the last norms, and `gradient_growth`, over that of the first ones."""
        if len(self._gradients) < LAST:
            return {}
        last = median(self._gradients) if all(map(math.isfinite, self._gradients)) else math.inf
        values = {"gradient": last}
        if len(self.first_gradients) == FIRST and (first := median(self.first_gradients)) > 0:
            values["gradient_growth"] = last / first
        return values

    def suspicious(self, chosen_tokens: float) -> bool:
        """Return whether a measurement is due: a level is passed for the first time, or twice the last level.

        Args:
            chosen_tokens: mean length of a chosen answer.
        """
        drift = -fmean(self._chosen) / max(chosen_tokens, 1) if len(self._chosen) == LAST else 0.0
        growth = self.values().get("gradient_growth", 0.0)
        if drift < self._drift_level and growth < self._growth_level:
            return False
        while self._drift_level <= drift < math.inf:
            self._drift_level *= 2
        while self._growth_level <= growth < math.inf:
            self._growth_level *= 2
        return True

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON."""
        return {
            "first_gradients": self.first_gradients,
            "gradients": list(self._gradients),
            "chosen": list(self._chosen),
            "levels": [self._drift_level, self._growth_level],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.first_gradients = list(state["first_gradients"])
        self._gradients.extend(state["gradients"])
        self._chosen.extend(state["chosen"])
        self._drift_level, self._growth_level = state["levels"]
