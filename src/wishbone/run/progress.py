"""The progress bar of a run: step, loss, reward margin and accuracy, time left.

Figures stand beside the step that they were logged at. transformers logs a step after it has called `on_step_end`, so a
line is printed when its figures are there; where not every step is logged, the step of the last figures is named.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_NAMES = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}


class ProgressBar(TrainerCallback):  # type: ignore[misc]
    """One line that is redrawn on a terminal; elsewhere a plain line after every tenth of the run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._figures = ""
        self._logged_at = -1
        self._progress: Progress | None = None
        self._last_tenth = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start at the run's first step, which is not 0 after a resume."""
        self._last_tenth = _tenth(state)
        if not state.is_world_process_zero or not self._console.is_terminal:
            return
        columns = (
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._task = self._progress.add_task("training", total=state.max_steps, completed=state.global_step, metrics="")
        self._progress.start()

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
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()

    def _show(self, state: TrainerState) -> None:
        step = state.global_step
        figures = self._figures
        if figures and self._logged_at != step:
            figures = f"{figures}  (of step {self._logged_at})"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, metrics=figures)
        elif state.is_world_process_zero and not self._console.is_terminal and _tenth(state) > self._last_tenth:
            self._last_tenth = _tenth(state)
            self._console.print(f"step {step}/{state.max_steps}  {figures}".rstrip(), highlight=False)


def _tenth(state: TrainerState) -> int:
    tenth: int = 10 * state.global_step // max(state.max_steps, 1)
    return tenth
