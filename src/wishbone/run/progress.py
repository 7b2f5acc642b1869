"""Training as a phase: step, loss, reward margin and accuracy.

Figures stand beside the step that they were logged at. transformers logs a step after it has called `on_step_end`, so a
step is told when its figures are there; where not every step is logged, the step of the last figures is named.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wishbone.phases import Phase, begin, end

_NAMES = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}


class TrainingPhases(TrainerCallback):  # type: ignore[misc]
    """Tells of training step by step."""

    def __init__(self) -> None:
        self._figures = ""
        self._logged_at = -1
        self._training: Phase | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start at the run's first step, which is not 0 after a resume."""
        if state.is_world_process_zero:
            self._training = begin("training", state.max_steps, "step", done=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar, unless the figures of this step come in a moment."""
        if not control.should_log:
            self._show(state)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Show the figures of a training step beside it."""
        if not logs or "loss" not in logs:
            return
        shown = (f"{label} {float(logs[name]):.3f}" for name, label in _NAMES.items() if name in logs)
        self._figures, self._logged_at = "  ".join(shown), state.global_step
        self._show(state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End training."""
        if self._training is not None:
            end(self._training)
            self._training = None

    def _show(self, state: TrainerState) -> None:
        step, figures = state.global_step, self._figures
        if figures and self._logged_at != step:
            figures = f"{figures}  (of step {self._logged_at})"
        if self._training is not None:
            self._training.to(step, figures)
