"""A trainer callback that ends a training's turn and waits for the next one (`turns.py` gives them)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerState

from benchmarks.harness.worker import Progress


class Turns(TrainerCallback):  # type: ignore[misc]
    """Ends a turn after `first` steps, and again after every `each`; then waits until it is told to go on.

    Args:
        first: steps of the first turn.
        each: steps of every other one.
        progress: where the end of a turn is written.
        begin: called with the model when training begins.
    """

    def __init__(self, first: int, each: int, progress: Progress, begin: Callable[[Any], None]) -> None:
        self._first, self._each, self._progress, self._begin = first, each, progress, begin

    def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
        """Prepare the model."""
        self._begin(model)

    def on_step_end(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Hand the turn over if it has ended; the end of training ends the last one."""
        done = state.global_step - self._first
        if done < 0 or done % self._each or state.global_step >= state.max_steps:
            return
        self._progress.write(turn=done // self._each)
        if not sys.stdin.readline():
            raise SystemExit("the process that gives turns has ended")
