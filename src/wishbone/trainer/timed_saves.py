"""Timed checkpoints, in addition to those by step or epoch, so that a kill costs at most minutes of work.

With T the time between two checkpoints and C what the last one cost, one is due after

    max(T, C / 0.02)

so that saving takes at most 2 % of the time whatever the size of the model. Such a checkpoint is rolling: a later one
replaces it, so checkpoints do not pile up and none that was asked for is pushed out.
"""

from __future__ import annotations

import time
from typing import Any

from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wishbone.engine.distributed import sum_over_processes

LARGEST_SHARE = 0.02
"""Of the time that saving by the clock may take."""


class TimedSaves(TrainerCallback):  # type: ignore[misc]
    """Asks for a checkpoint when one is due.

    Args:
        minutes: between two checkpoints.
        accelerator: of the trainer; the first process decides for all.

    Attributes:
        rolling: whether the checkpoint that is asked for now is one by the clock.
    """

    def __init__(self, minutes: float, accelerator: Accelerator) -> None:
        self._seconds = 60 * minutes
        self._accelerator = accelerator
        self._cost = 0.0
        self._last = time.monotonic()
        self.rolling = False

    def saved(self, seconds: float) -> None:
        """Note that a checkpoint was written, and the seconds that it took."""
        self._cost, self._last, self.rolling = seconds, time.monotonic(), False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self._last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a checkpoint if one is due and none is asked for."""
        self.rolling = False
        if args.save_strategy not in ("steps", "epoch") or control.should_save or state.global_step >= state.max_steps:
            return
        waited = time.monotonic() - self._last
        due = state.is_world_process_zero and waited >= max(self._seconds, self._cost / LARGEST_SHARE)
        if sum_over_processes(int(due), self._accelerator):
            self.rolling = control.should_save = True
