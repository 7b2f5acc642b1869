"""Losses as they are logged: one that is not finite counts as the mean of those before it, as in transformers.

transformers asks on the host whether a loss is finite (`logging_nan_inf_filter`, on by default). So the host waits for
the backward pass, and then the GPU waits for the host, which has yet to launch clipping and the optimizer. Here the GPU
decides: of the losses L_t since the last log,

    l_t = L_t, or, if that is not finite, (l_1 + ... + l_{t-1}) / (1 + steps since that log)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import TrainingArguments


class FiniteLosses:
    """The losses of a run, filtered on their device where the run's arguments ask for a filter."""

    def __init__(self) -> None:
        self._filters = False
        self._logged_at: int | None = None
        self._total: Tensor | None = None

    @contextmanager
    def filtered(self, args: TrainingArguments) -> Iterator[None]:
        """Context of a run in which this filter does what `args.logging_nan_inf_filter` asks transformers to do."""
        asked, self._logged_at, self._total = args.logging_nan_inf_filter, None, None
        self._filters, args.logging_nan_inf_filter = asked, False
        try:
            yield
        finally:
            self._filters, args.logging_nan_inf_filter = False, asked

    def logged(self, loss: Tensor, step: int) -> Tensor:
        """Return the value to log for a loss, a scalar on its device, after `step` optimizer steps."""
        if not self._filters:
            return loss
        if self._logged_at is None:
            self._logged_at = step
        total = torch.zeros_like(loss) if self._total is None else self._total
        logged = torch.where(loss.isfinite(), loss, total / (1 + step - self._logged_at))
        self._total = total + logged
        return logged

    def log(self, step: int) -> None:
        """Start a new logging interval after `step` optimizer steps."""
        self._logged_at, self._total = step, None
