"""Lowering the learning rate of a run that continues.

A schedule of PyTorch computes each rate from its base rate, and both are saved with the optimizer and the scheduler. So
base rates are multiplied too, and a resumed run goes on with the lowered rates, bit by bit.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

FACTOR = 0.5
"""One half, as the rule `collapse-rate-again` advises for the next run."""


def lower(optimizer: Optimizer, scheduler: Any) -> None:
    """Multiply the present and all later learning rates by `FACTOR`.

    Args:
        optimizer: of the run.
        scheduler: of the run, as PyTorch's or wrapped by accelerate.
    """
    for group in optimizer.param_groups:
        for name in ("lr", "initial_lr"):
            if isinstance(group.get(name), Tensor):
                group[name].mul_(FACTOR)
            elif name in group:
                group[name] *= FACTOR
    schedule = getattr(scheduler, "scheduler", scheduler)
    if hasattr(schedule, "base_lrs"):
        schedule.base_lrs = [FACTOR * rate for rate in schedule.base_lrs]
